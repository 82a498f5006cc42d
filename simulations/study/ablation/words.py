"""What the numbers of an ablation say, in plain words that are worked out from them.

A difference can be chance in two ways: other test patients, or another training (which also
draws other labels and masks). The patients are resampled. For the trainings there are only the
seeds: Student's t interval of their mean, which with two or three seeds is very wide.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.report import words
from server.report.words import change
from simulations.study.ablation.spec import ROWS

Line = Mapping[str, Any]
Result = Mapping[str, Any]

# What a difference allows to say, from the strongest word to the weakest.
HELPS, HURTS, PERHAPS_HELPS, PERHAPS_HURTS, UNSURE, UNSEEN = KINDS = (
    "helps",
    "hurts",
    "perhaps helps",
    "perhaps hurts",
    "unsure",
    "unseen",
)
COUNTED = {
    HELPS: "a gain",
    HURTS: "a loss",
    PERHAPS_HELPS: "perhaps a gain",
    PERHAPS_HURTS: "perhaps a loss",
    UNSURE: "a difference that not every training shows",
    UNSEEN: "no difference that can be seen",
}


def verdict(line: Line) -> str:
    """One of KINDS for a difference.

    unseen: the interval over patients includes 0. unsure: it does not, but there is one seed
    only, or some seed came out the other way. perhaps: all seeds agree, but they are so few or
    so scattered that their own interval includes 0.
    """
    low, high, mean = line["low"], line["high"], line["mean"]
    seeds = [value for value in line["seeds"].values() if value is not None]
    if low is None or high is None or low <= 0 <= high:
        return UNSEEN
    if len(seeds) < 2 or any(value * mean <= 0 for value in seeds):
        return UNSURE
    if line["seeds_low"] <= 0 <= line["seeds_high"]:
        return PERHAPS_HELPS if mean > 0 else PERHAPS_HURTS
    return HELPS if mean > 0 else HURTS


def in_words(line: Line) -> str:
    """What one difference allows to say."""
    kind, seeds = verdict(line), len(line["seeds"])
    if line["low"] is None or line["high"] is None:
        return "no interval: too few test patients to say anything"
    span = f"{change(line['low'])} to {change(line['high'])}"
    if kind == UNSEEN:
        return f"no difference can be seen: the interval {span} includes 0"
    if kind == UNSURE and seeds < 2:
        return "not chance in who was tested, but from one training: another may differ"
    if kind == UNSURE:
        return f"not chance in who was tested, but not all {seeds} trainings agree"
    over = f"{change(line['seeds_low'])} to {change(line['seeds_high'])}"
    if kind in (PERHAPS_HELPS, PERHAPS_HURTS):
        return f"{kind}: all {seeds} trainings agree, but over trainings {over} includes 0"
    return f"{kind}: all {seeds} trainings agree, over trainings {over}"


def headline(lines: Sequence[Line]) -> str:
    """The shortest honest answer to a question from its comparisons of one measure."""
    counts, total = Counter(map(verdict, lines)), len(lines)
    up, down = (
        counts[sure] + counts[perhaps]
        for sure, perhaps in ((HELPS, PERHAPS_HELPS), (HURTS, PERHAPS_HURTS))
    )
    span = _span(lines)
    if up and down:
        return f"it depends: better in {up} and worse in {down} of {total} comparisons ({span})"
    if up or down:
        way, sure = ("better", counts[HELPS]) if up else ("worse", counts[HURTS])
        # One sure comparison among many that are not may be the luck of asking often.
        answers = ("yes", "perhaps") if up else ("no, on the contrary", "perhaps the contrary")
        answer = answers[2 * sure <= total]
        return f"{answer}: {way} in {up or down} of {total} comparisons ({span})"
    if counts[UNSURE]:
        return f"open: not all trainings agree, in {counts[UNSURE]} of {total} comparisons ({span})"
    return f"not that one could see, in {total} comparison{'' if total == 1 else 's'} ({span})"


def summary(lines: Sequence[Line], what: str) -> str:
    """How many comparisons say what; `what` names the measure and the place."""
    counts = Counter(map(verdict, lines))
    parts = [f"{counts[kind]} × {COUNTED[kind]}" for kind in KINDS if counts[kind]]
    return f"{what}: {', '.join(parts)} ({_span(lines)})."


def _span(lines: Sequence[Line]) -> str:
    """The smallest and the largest difference."""
    ends = dict.fromkeys(change(end([line["mean"] for line in lines])) for end in (min, max))
    return " to ".join(ends)


def methods(result: Result) -> list[str]:
    """How it was done, for `ablation.json` as `run_ablation` returns it."""
    spec, data = result["spec"], result["data"]
    plan = spec["plan"]
    counted = dict.fromkeys(
        words.finding_name(name)
        for line in result["results"]
        if line["auroc"] is not None
        for name in line["auroc"]["counted"]
    )
    tests = "; ".join(
        f"{name}: {facts['images']:,} images of {facts['patients']:,} patients"
        for name, facts in data["tests"].items()
    )
    texts = [
        f"Every row takes the same number of steps, {result['steps']:,} "
        f"({plan['federation']['rounds']} rounds of {plan['training']['local_steps']}), from the "
        "same start with the same schedule. A row that also looks at unlabelled images does more "
        "work in a step.",
        f"{data['training_images']:,} training images of {data['training_patients']:,} patients, "
        f"of which {data['labelled']:,} have labels and {data['outlined']:,} have masks before "
        "any are hidden. A budget is drawn image by image, by seed; of one seed the smaller "
        "budget lies within the larger. Rows with unlabelled images learn from the others too.",
        f"Tests, which no cell trained on: {tests}.",
        f"The mean AUROC is over the findings with at least {spec['min_positives']} positive "
        "images in the test at hand, for a domain in both of its tests: "
        f"{', '.join(counted) or 'none'}.",
        f"Intervals: {plan['evaluation']['bootstrap']:,} resamples of the test patients, the same "
        "for both sides of a difference; the answers are averaged over the seeds.",
        "“Helps” and “hurts” are said only where that interval excludes 0, every seed agrees, and "
        "the interval over the seeds (Student's t) excludes 0 too; “perhaps” where the last fails.",
    ]
    if spec["equipment"]:
        texts.append(
            "Other equipment: the same test images with another tone curve, less contrast, blur, "
            "grain and a collimated border, beyond what training varies."
        )
    if any(line["arrangement"] == "local" for line in result["results"]):
        texts.append(
            "Local: the mean score of the hospitals that had something to learn from, each alone."
        )
    return texts


def limits(result: Result) -> list[str]:
    """What this does not show."""
    seeds, number = len(result["spec"]["seeds"]), len(result["comparisons"])
    chance = 100 * 2 * 0.5**seeds
    texts = [
        f"{seeds} {'training' if seeds == 1 else 'trainings'} per row. Where nothing differs, all "
        f"of them agree in sign by chance alone {chance:.0f} % of the time, and the sd over the "
        "seeds is itself a rough guess. The intervals hold the chance in who was tested, not in "
        "which images were annotated.",
        f"{number} differences are shown. Where nothing differs, at least one interval in twenty "
        "excludes 0 all the same, and in practice more: an interval takes the trainings as they "
        "are, and two trainings of one recipe do differ. Many differences also share a training "
        "(one classifier stands against several mask budgets), so they are not independent. A "
        "single “helps” among many comparisons is weak evidence.",
        "The rows share one plan, tuned for none of them in particular. Another network, size or "
        "number of steps may give another answer.",
        *_limits_of_plan(result["spec"]),
    ]
    if result["data"]["synthetic"]:
        texts.insert(0, "The images are synthetic drawings: nothing here is about patients.")
    return texts


def _limits_of_plan(spec: Mapping[str, Any]) -> Iterator[str]:
    """What the plan's way to train mixes into the differences."""
    plan, rows = spec["plan"], [ROWS[name] for name in spec.get("rows", ())]
    lungs = any(row.lungs for row in rows)
    if lungs and plan["training"].get("lungs_batch_size") is not None:
        yield (
            "Images with labels and images with masks are averaged together in a step. A row with "
            "both tasks gives each a smaller share of the loss than a row with one, and a small "
            "budget of masks puts fewer masked images into a step. Differences between one task "
            "and two, or between budgets of masks, include that."
        )
    unlabelled = any(row.unlabelled and row.findings for row in rows)
    if unlabelled and plan["semi_supervision"]["mode"] == "fixmatch":
        yield (
            "The thresholds above which a guess on an unlabelled image counts are chosen with the "
            "labels of the validation images, which the budget of labels does not count."
        )
