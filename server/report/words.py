"""The sentences of the report, and how its numbers are written.

Plain words for a physician: what was done, whether it helped, how sure that is, what the
numbers do not show. Every number that is undefined is written as a dash.
"""

from collections.abc import Iterable, Mapping

from common.metrics import macro
from server.report.summary import Estimate, Scores, Summary

DASH = "–"
FEW_POSITIVES = 30  # below this many positive images an AUROC says little

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "AUROC",
        "the chance that the model ranks an image with the finding above one without it: "
        "0.5 is guessing, 1 is perfect. It does not depend on a threshold.",
    ),
    (
        "95 % interval",
        "the range of the value when the test patients are drawn again many times "
        "(bootstrap over patients, not images).",
    ),
    ("Encoder", "the part of the network that reads the image; the only part all hospitals share."),
    ("Head", "the last, small part that turns the encoder's reading into an answer."),
    ("Council", "the mean answer of all hospitals' heads over the shared encoder."),
    ("Personal", "one hospital's own head over the shared encoder."),
    ("Hospital alone", "the same model and the same steps, trained on one hospital's data only."),
    ("Pooled", "the same model trained on all data in one place, which would move the images."),
    ("Dice, IoU", "overlap of the drawn and the true lung area: 0 none, 1 complete."),
    ("Sensitivity, specificity", "share of the ill that are found; share of the healthy left."),
    ("PPV, NPV", "share of alarms that are right; share of all-clears that are right."),
    (
        "ECE, Brier score",
        "how far predicted probabilities lie from what was observed: 0 is best.",
    ),
    ("AP, PA", "X-ray from the front, often at the bedside (AP); from behind, standing (PA)."),
)

REASONS: Mapping[str, str] = {
    "schema": "written in another format version",
    "stale-plan": "made for another plan",
    "stale-round": "made for another round",
    "layout": "shaped for another model",
    "not-finite": "holds numbers that are not finite",
    "norm": "far larger than the other updates",
    "weight": "claims a weight that is not allowed",
    "coverage": "covers findings that it cannot",
    "too-long": "a step too long for the model",
    "name": "speaks in a name that is not its own",
}


def score(value: float | None) -> str:
    """A share with three decimals, e.g. "0.812"."""
    return DASH if value is None else f"{value:.3f}"


def threshold(value: float) -> str:
    """Three decimals, and two digits below 0.01, where thresholds of rare findings lie."""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def interval(estimate: Estimate) -> str:
    """E.g. "0.812 (0.790 to 0.833)"; the value alone where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return score(estimate.value)
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def change(value: float | None) -> str:
    """A difference with its sign, e.g. "+0.032" and "−0.010"."""
    return DASH if value is None else f"{value:+.3f}".replace("-", "−")


def count(value: int | None) -> str:
    """A number of things with thousands marked, e.g. "25,596"."""
    return DASH if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """A share as whole percent, e.g. "43 %"."""
    return DASH if share is None else f"{100 * share:.0f} %"


def size(number: float | None) -> str:
    """Bytes in decimal units, e.g. "4.6 MB"."""
    if number is None:
        return DASH
    units = ("bytes", "kB", "MB", "GB")
    power = min(max(len(f"{number:.0f}") - 1, 0) // 3, len(units) - 1)
    return f"{number / 1000**power:.{1 if power else 0}f} {units[power]}"


def duration(seconds: float | None) -> str:
    """E.g. "8.4 s", "12 min 5 s", "3 h 20 min"."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def finding_name(finding: str) -> str:
    """The finding as people write it."""
    return finding.replace("_", " ")


def column_mean(models: Iterable[Scores], finding: str) -> float | None:
    """The mean AUROC of a finding over the models that define it."""
    return macro(model.value(finding) for model in models)


def local_means(summary: Summary) -> dict[str, float | None]:
    """For every finding the mean AUROC of the hospitals alone."""
    findings = dict.fromkeys(f for model in summary.local_only.values() for f in model.auroc)
    return {finding: column_mean(summary.local_only.values(), finding) for finding in findings}


def gain(summary: Summary) -> Estimate:
    """Council minus the mean of the hospitals alone, macro over the findings both define.

    With its interval when the run computed the paired difference, else without.
    """
    given = summary.comparisons.council_vs_local_mean
    if given is not None and given.value is not None:
        return given
    differences = []
    for finding, alone in local_means(summary).items():
        together = summary.federated.council.value(finding)
        if together is not None and alone is not None:
            differences.append(together - alone)
    return Estimate(value=macro(differences))


def title(summary: Summary) -> str:
    """The first line of the page."""
    if not summary.completed:
        return "This run did not finish"
    return f"{_hospitals(len(summary.sites))} trained one chest X-ray model together"


def _hospitals(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    word = words[number] if number < len(words) else f"{number:,}"
    return f"{word} hospital{'' if number == 1 else 's'}"


def what_happened(summary: Summary) -> str:
    """One sentence on who trained what, for how long, on how much."""
    if not summary.completed:
        reason = f" The reason given: {summary.reason.rstrip('.')}." if summary.reason else ""
        return (
            f"The status of this run is “{summary.status}”: it stopped after "
            f"{summary.rounds} finished round{'' if summary.rounds == 1 else 's'}.{reason} "
            "Numbers on this page, if any, come from an unfinished run and are not its result."
        )
    images = [facts.images for facts in summary.sites.values() if facts.images is not None]
    patients = [facts.patients for facts in summary.sites.values() if facts.patients is not None]
    holdings = (
        f", which hold {sum(images):,} X-rays of {sum(patients):,} patients" if images else ""
    )
    return (
        f"In {summary.rounds} round{'' if summary.rounds == 1 else 's'} "
        f"({duration(summary.seconds)}), {_hospitals(len(summary.sites)).lower()}{holdings}, "
        "trained a shared image encoder. No image left its hospital: only changes of the "
        "network's numbers travelled."
    )


def did_it_help(summary: Summary) -> str:
    """The answer, by how much, and how sure."""
    value = gain(summary)
    if value.value is None:
        return "Whether the federation beats the hospitals alone is open: this run has no number."
    amount = f"{abs(value.value):.3f}"
    if abs(value.value) < 0.0005:
        verdict = "No difference: together and alone, the hospitals reach the same mean AUROC."
    elif value.value > 0:
        verdict = f"Yes: together they score {amount} higher in mean AUROC than alone on average."
    else:
        verdict = f"No: together they score {amount} lower in mean AUROC than alone on average."
    return f"{verdict} {how_sure(value)}"


def how_sure(value: Estimate) -> str:
    """What the interval of a difference says, in words."""
    if value.low is None or value.high is None:
        return "No interval of this difference was computed, so how sure it is stays open."
    span = f"The 95 % interval of the difference is {change(value.low)} to {change(value.high)}"
    if value.low <= 0 <= value.high:
        return f"{span}; it includes zero, so this may be chance in who was tested."
    return f"{span}; it excludes zero, so chance in who was tested hardly explains it."


def against_pooled(summary: Summary) -> str:
    """What is lost against moving all images to one place; empty without that baseline."""
    if summary.pooled is None or summary.pooled.macro_auroc is None:
        return ""
    text = (
        "Training on all images in one place, which would make them leave the hospitals, "
        f"reaches {score(summary.pooled.macro_auroc)}."
    )
    given = summary.comparisons.council_vs_pooled
    if given is not None and given.value is not None:
        text += f" The council differs from that by {change(given.value)}"
        if given.low is not None and given.high is not None:
            text += f" (95 % interval {change(given.low)} to {change(given.high)})"
        text += "."
    return text


def limits(summary: Summary) -> list[str]:
    """What this report does not show."""
    texts = []
    if summary.data.synthetic:
        texts.append(
            "The images are synthetic drawings. The numbers show that the software learns; they "
            "say nothing about patients."
        )
    council = summary.federated.council.auroc
    undefined = [finding_name(name) for name, e in council.items() if e.value is None]
    if undefined:
        texts.append(f"Not measured here, as the test offers no cases: {', '.join(undefined)}.")
    few = [
        f"{finding_name(name)} ({estimate.positives})"
        for name, estimate in council.items()
        if estimate.value is not None and (estimate.positives or FEW_POSITIVES) < FEW_POSITIVES
    ]
    if few:
        texts.append(f"Few positive test images, so read with caution: {', '.join(few)}.")
    return [
        *texts,
        "The labels of public chest X-ray sets are read from reports by a program and are often "
        "wrong: in NIH ChestX-ray14, of the images labelled pneumothorax that radiologists read "
        "again, fewer than half showed one. A model is measured against these labels.",
        "The intervals say how much the test patients matter. They hold neither another training "
        "run nor another hospital: where one archive was cut into hospitals, these share "
        "scanners and readers that real hospitals would not.",
        "An image staying at home is not a proof of privacy: unless the plan trains with "
        "differential privacy, the changes that travelled may still reveal something.",
        "This is research software. It is not a medical device and must not guide care.",
    ]
