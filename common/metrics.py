"""How well scores and masks agree with the truth: plain numbers, no intervals, no torch.

A finding whose answer cannot be computed (no positive, no negative, no known target, or no
output of the model) is *undefined*: None, never 0 and never NaN, and a mean leaves it out.
Targets are 1 present, 0 absent, -1 unknown; unknown images are left out finding by finding.
Intervals are in common/bootstrap.py, subgroups in common/subgroups.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from common.findings import FINDINGS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rule = Literal["youden", "specificity"]


class OperatingPoint(TypedDict):
    """A frozen threshold and what it does. `score >= threshold` raises the alarm."""

    threshold: float
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None


class Calibration(TypedDict):
    """Expected calibration error and Brier score, both in [0, 1]; 0 is best."""

    ece: float | None
    brier: float | None


def known(target: Array, score: Array) -> tuple[Flags, Floats]:
    """The images of one finding that count: (positive (M,) bool, score (M,) float64).

    target: (N,) in {-1, 0, 1}; score: (N,) float. A score column that is NaN throughout says
    that the model has no output for the finding: nothing is left (M = 0). Raises ValueError on
    other shapes or targets, and on scores that are partly NaN or infinite: those are a fault of
    the model, and leaving the images out would hide it.
    """
    target, score = np.asarray(target), np.asarray(score, dtype=np.float64)
    if target.ndim != 1 or target.shape != score.shape:
        raise ValueError(f"target {target.shape} and score {score.shape} must be (N,) and (N,)")
    if not np.isin(target, (-1, 0, 1)).all():
        raise ValueError("targets must be 1 (present), 0 (absent) or -1 (unknown)")
    if len(score) and np.isnan(score).all():
        return np.zeros(0, dtype=bool), np.zeros(0)
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} scores are not finite")
    chosen = target >= 0
    return target[chosen] == 1, score[chosen]


def auroc(target: Array, score: Array) -> float | None:
    """Area under the ROC curve of one finding, in [0, 1]; None when undefined.

    The share of (positive, negative) pairs that the score orders rightly, ties counting one
    half: the Mann-Whitney statistic (Fawcett, "An introduction to ROC analysis", 2006,
    section 7). target: (N,) in {-1, 0, 1}; score: (N,) float. Raises ValueError as `known`.
    """
    positive, score = known(target, score)
    present, absent = int(positive.sum()), int((~positive).sum())
    if not present or not absent:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores each gets the mean rank
    wins = ranks[inverse][positive].sum() - present * (present + 1) / 2
    return float(wins / (present * absent))


def average_precision(target: Array, score: Array) -> float | None:
    """Area under the precision-recall steps of one finding, in [0, 1]; None when undefined.

    Precision at every threshold, weighted by the recall gained there, without interpolation
    (Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 8.4).
    Chance level is the prevalence, so read it next to that. Undefined without positives, and
    without negatives too, where it could only be 1. Arguments and errors as `auroc`.
    """
    positive, score = known(target, score)
    if not positive.any() or positive.all():
        return None
    _, hits, alarms = _sweep(positive, score)
    gained = np.diff(hits, prepend=0.0)
    return float((gained * hits / alarms).sum() / positive.sum())


def macro(values: Iterable[float | None]) -> float | None:
    """Mean over the defined values; None when none is defined."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _sweep(positive: Flags, score: Floats) -> tuple[Floats, Floats, Floats]:
    """Every distinct score as a threshold, highest first: (thresholds, true alarms, alarms)."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order])[last].astype(np.float64)
    return ranked[last], hits, (last + 1).astype(np.float64)


def choose_threshold(
    target: Array, score: Array, rule: Rule = "youden", specificity: float = 0.9
) -> float | None:
    """The threshold of one finding, to be chosen on *validation* data and then frozen.

    youden: the largest sensitivity + specificity - 1 (Youden, 1950), the higher threshold of
    two equals. specificity: the largest sensitivity among thresholds whose specificity is at
    least `specificity`; above every score if no observed one reaches it. None when undefined.
    Arguments and errors as `auroc`; ValueError too when `specificity` is outside [0, 1].
    """
    if not 0.0 <= specificity <= 1.0:
        raise ValueError(f"specificity must be in [0, 1], not {specificity}")
    positive, score = known(target, score)
    if not positive.any() or positive.all():
        return None
    thresholds, hits, alarms = _sweep(positive, score)
    sensitivity = hits / positive.sum()
    false_alarms = (alarms - hits) / (~positive).sum()
    if rule == "youden":
        return float(thresholds[np.argmax(sensitivity - false_alarms)])
    # 1e-12: 1 - 9/10 must still count as a specificity of 0.1
    fitting = np.flatnonzero(1.0 - false_alarms >= specificity - 1e-12)
    if not len(fitting):
        return float(np.nextafter(thresholds[0], np.inf))
    return float(thresholds[fitting[np.argmax(sensitivity[fitting])]])


def choose_thresholds(
    targets: Array,
    scores: Array,
    rule: Rule = "youden",
    specificity: float = 0.9,
    names: Sequence[str] = FINDINGS,
) -> dict[str, float | None]:
    """`choose_threshold` for every finding: targets (N, F), scores (N, F), names F."""
    columns = zip(names, targets.T, scores.T, strict=True)
    return {name: choose_threshold(t, s, rule, specificity) for name, t, s in columns}


def operating_point(target: Array, score: Array, threshold: float) -> OperatingPoint:
    """What a frozen threshold does on other data: rates in [0, 1], each None without cases.

    Predictive values hold at the prevalence of these data only. Arguments as `auroc`.
    """
    positive, score = known(target, score)
    alarm = score >= threshold

    def rate(hits: Flags, of: Flags) -> float | None:
        return float((hits & of).sum() / of.sum()) if of.any() else None

    return OperatingPoint(
        threshold=float(threshold),
        sensitivity=rate(alarm, positive),
        specificity=rate(~alarm, ~positive),
        ppv=rate(positive, alarm),
        npv=rate(~positive, ~alarm),
    )


def operating_table(
    targets: Array,
    scores: Array,
    thresholds: Mapping[str, float | None],
    names: Sequence[str] = FINDINGS,
) -> dict[str, OperatingPoint | None]:
    """`operating_point` of every finding; None where no threshold could be frozen."""
    table: dict[str, OperatingPoint | None] = {}
    for name, target, score in zip(names, targets.T, scores.T, strict=True):
        threshold = thresholds.get(name)
        table[name] = None if threshold is None else operating_point(target, score, threshold)
    return table


def ece(target: Array, probability: Array, bins: int = 15) -> float | None:
    """Expected calibration error of one finding over equal-width bins; None when undefined.

    The mean distance between predicted probability and observed frequency, weighted by the
    images in each bin (Guo et al., "On calibration of modern neural networks", 2017, section 2,
    eq. 3, with the probability of the finding in the place of the confidence). Bins are
    (edge, edge], the first closed. probability: (N,) in [0, 1], else ValueError.
    """
    positive, probability = _probabilities(target, probability)
    if not len(positive):
        return None
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], probability, side="left")
    gap = np.bincount(place, weights=probability - positive, minlength=bins)
    return float(np.abs(gap).sum() / len(positive))


def brier(target: Array, probability: Array) -> float | None:
    """Mean squared distance of probability and outcome (Brier, 1950, for the present class).

    In [0, 1]; None without a known target. Arguments and errors as `ece`.
    """
    positive, probability = _probabilities(target, probability)
    return float(np.mean((probability - positive) ** 2)) if len(positive) else None


def calibration_table(
    targets: Array, probabilities: Array, names: Sequence[str] = FINDINGS
) -> dict[str, Calibration]:
    """ECE (15 bins) and Brier score of every finding: targets, probabilities (N, F)."""
    columns = zip(names, targets.T, probabilities.T, strict=True)
    return {name: Calibration(ece=ece(t, p), brier=brier(t, p)) for name, t, p in columns}


def _probabilities(target: Array, probability: Array) -> tuple[Flags, Floats]:
    positive, probability = known(target, probability)
    if len(probability) and not (probability.min() >= 0.0 and probability.max() <= 1.0):
        raise ValueError("calibration needs probabilities in [0, 1], not logits")
    return positive, probability


def dice(truth: Array, predicted: Array) -> Floats:
    """Dice overlap 2|A and B| / (|A| + |B|) of every mask (Dice, 1945): (N,) float64 in [0, 1].

    truth, predicted: (N, H, W), bool or 0/1. Two empty masks agree: 1; one empty mask: 0.
    Raises ValueError on different or other shapes.
    """
    common, first, second = _areas(truth, predicted)
    return _share(2 * common, first + second)


def iou(truth: Array, predicted: Array) -> Floats:
    """Intersection over union of every mask (Jaccard, 1912): (N,) float64 in [0, 1].

    Never above Dice. Arguments, errors and the empty cases as `dice`.
    """
    common, first, second = _areas(truth, predicted)
    return _share(common, first + second - common)


def _areas(truth: Array, predicted: Array) -> tuple[Floats, Floats, Floats]:
    """Pixels in both, in the truth, in the prediction: each (N,)."""
    if truth.ndim != 3 or truth.shape != predicted.shape:
        raise ValueError(f"masks {truth.shape} and {predicted.shape} must both be (N, H, W)")
    first, second = truth.astype(bool), predicted.astype(bool)
    both, one, other = (m.sum(axis=(1, 2)) for m in (first & second, first, second))
    return both.astype(np.float64), one.astype(np.float64), other.astype(np.float64)


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 1 where both masks are empty."""
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)
