"""The sentences of the page of `consilium-sim tasks`, worked out from its numbers.

An undefined number is a dash, and what hangs on it is said to be open.
"""

from collections.abc import Mapping
from typing import Any

from common.findings import FINDINGS
from server.report import words
from server.report.summary import Estimate
from simulations.study.tasks.cost import FINDINGS_ONLY, LUNGS_ONLY, MULTITASK, SINGLE

UNEQUAL = 0.05  # share by which two networks may differ in what a step taught before we say so

Result = Mapping[str, Any]


def leading(result: Result) -> dict[str, Any]:
    """The mean that the page leads with: over the frequent findings, or else the defined ones."""
    accuracy = result["accuracy"]
    line: dict[str, Any] = accuracy["macro"] if accuracy["macro"]["over"] else {}
    return line or dict(accuracy["macro_defined"])


def accuracy_sentence(line: Mapping[str, Any], other: str) -> str:
    """Whether the multitask network is as accurate as `other` ("single" or "findings")."""
    difference = Estimate(**line[f"{MULTITASK}_vs_{other}"])
    network = {SINGLE: "the single-task networks", FINDINGS_ONLY: "the findings-only network"}
    return _compared("mean AUROC", line[MULTITASK], line[other], network[other], difference)


def lungs_sentence(lungs: Mapping[str, Any]) -> str:
    """Whether it outlines the lungs as well as the network that does nothing else."""
    difference = Estimate(**lungs[f"{MULTITASK}_vs_{LUNGS_ONLY}"])
    other = "the lungs-only network"
    return _compared("mean Dice", lungs[MULTITASK], lungs[LUNGS_ONLY], other, difference)


def _compared(
    what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], other: str, change: Estimate
) -> str:
    if change.value is None:
        return f"How the multitask network compares with {other} is open: no {what} of both."
    sure = words.how_sure(change)
    numbers = f"{words.score(ours['value'])} against {words.score(theirs['value'])}"
    if change.low is None or change.high is None:
        verdict = "ahead of" if change.value > 0 else "behind" if change.value < 0 else "level with"
    elif change.low <= 0 <= change.high:
        verdict = "not distinguishable from"
    else:
        verdict = "better than" if change.value > 0 else "worse than"
        # The interval is over patients only: all that was drawn once stays drawn in it.
        sure += " It is from one training of each network: another training may differ."
    return (
        f"In {what} the multitask network is {verdict} {other}: {numbers}, a difference of "
        f"{words.change(change.value)}. {sure}"
    )


def cost_sentences(cost: Mapping[str, Any]) -> list[str]:
    """Time and size of one multitask pass over those of the single-task networks, with goals."""
    sentences = []
    number = cost["kinds"][SINGLE]["networks"]
    for ratio in cost["ratios"]:
        if ratio["over"] != SINGLE or ratio["goal"] is None:
            continue
        key = ratio["key"]
        what = f"One pass takes {part(ratio['value'])} of the time ({batch_name(key)})"
        if key == "size":
            what = f"The multitask network has {part(ratio['value'])} of the size"
        met = "met" if ratio["met"] else "missed"
        sentences.append(
            f"{what} of the {number} single-task networks; "
            f"the goal, at most 1/{1 / ratio['goal']:.0f}, is {met}."
        )
    return sentences


def batch_name(key: str) -> str:
    """The images that a time was taken with, from its key "seconds at batch B"."""
    batch = key.rsplit(" ", 1)[-1]
    return "one image at a time" if batch == "1" else f"{batch} images at a time"


def part(ratio: float) -> str:
    """A ratio as people say it, e.g. "1/11.5"."""
    return f"1/{1 / ratio:.1f}"


def methods(result: Result) -> list[str]:
    """How it was done."""
    data, training, cost = result["data"], result["training"], result["cost"]
    plan, step = result["plan"], training["per_step"]
    return [
        f"All networks have the same encoder ({plan['model']['backbone']}, "
        f"{plan['model']['image_size']} px) and trained {training['steps']:,} steps on the same "
        f"{data['train_images']:,} images ({data['train_labelled']:,} with labels, "
        f"{data['train_masks']:,} with a lung mask), from the same start (seed "
        f"{training['seed']}), all data in one place.",
        _training_time(result["cell_seconds"]),
        f"A step taught the multitask network {step[MULTITASK]['labels']:.1f} labelled and "
        f"{step[MULTITASK]['masks']:.1f} outlined images on average, the findings-only network "
        f"{step[FINDINGS_ONLY]['labels']:.1f} labelled, the lungs-only network "
        f"{step[LUNGS_ONLY]['masks']:.1f} outlined ones.",
        f"Tested on {data['test_images']:,} images of {data['test_patients']:,} patients, and on "
        f"{data['lungs_test_images']:,} images with a lung mask, none of them used in training. "
        f"Intervals: {plan['evaluation']['bootstrap']:,} resamples of patients, the same ones for "
        "all networks, so that differences are paired.",
        f"Time: median of {cost['repeats']} repeats in which all kinds took turns, on "
        f"{'a GPU' if cost['device'] == 'cuda' else 'the processor'} with {cost['threads']} "
        f"thread{'' if cost['threads'] == 1 else 's'}; {len(FINDINGS)} single-task networks with "
        "a findings head of one row each, run one after the other. Operations: as PyTorch counts "
        "them for convolutions and matrix products, a multiplication and an addition as two. "
        "Size: the weights as float32 safetensors.",
    ]


def _training_time(seconds: Mapping[str, float]) -> str:
    single = [value for name, value in seconds.items() if name.startswith(SINGLE)]
    return (
        f"Training, with one thread each: {words.duration(seconds.get(MULTITASK))} for the "
        f"multitask network, {words.duration(seconds.get(FINDINGS_ONLY))} for the findings-only "
        f"one, {words.duration(seconds.get(LUNGS_ONLY))} for the lungs-only one, "
        f"{words.duration(sum(single))} for {len(single)} single-task ones together."
    )


def limits(result: Result) -> list[str]:
    """What this page does not show."""
    step, texts = result["training"]["per_step"], []
    for other, kind in ((FINDINGS_ONLY, "labels"), (LUNGS_ONLY, "masks")):
        ours, theirs = step[MULTITASK][kind], step[other][kind]
        if abs(ours - theirs) > UNEQUAL * theirs:
            texts.append(
                f"A step taught the multitask network {ours:.1f} images with {kind} and the "
                f"{other}-only one {theirs:.1f}: a part of their difference may come from that. "
                "training.lungs_batch_size in the plan sets the share of masks."
            )
    if result["data"]["synthetic"]:
        texts.append("The images are synthetic drawings: the accuracies say nothing on patients.")
    untaught = [n for n, count in result["data"]["train_positives"].items() if not count]
    if untaught:
        names = ", ".join(words.finding_name(name) for name in untaught)
        texts.append(f"Without a positive training image, and so not learnt by anyone: {names}.")
    return [
        *texts,
        "Every network was trained once. The intervals say how much the test patients matter; "
        "another seed would move every network too, and that is not in them.",
        "The settings are the plan's and the same for all. Networks tuned one by one might do "
        "better.",
        "Time and operations are those of the networks alone, without reading images.",
    ]
