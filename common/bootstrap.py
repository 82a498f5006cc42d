"""How sure a number is: 95 % intervals from resampled *patients*, never from resampled images.

Images of one patient resemble each other (in NIH ChestX-ray14 one patient has up to 184), and
resampling images gives intervals up to 2.3 times too narrow. So patients are drawn with
replacement and bring all their images: the cluster bootstrap (Davison and Hinkley, "Bootstrap
Methods and their Application", 1997, section 3.8), with percentile intervals (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3). A resample is a vector of
patient counts, so each finding is sorted once, for all resamples. The same patients and seed
give the same resamples, which makes two models comparable. Inside this module undefined is
NaN; what leaves it as a table is None.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from common.findings import FINDINGS
from common.metrics import Array, Flags, Floats, known

PERCENTILES = (2.5, 97.5)
_ROWS = 16  # resamples at a time: the sums of one sweep then stay in the processor's cache

Counts = npt.NDArray[np.unsignedinteger[Any]]
Indices = npt.NDArray[np.intp]


class Interval(TypedDict):
    """A value with its 95 % interval and the positive images behind it; None is undefined."""

    value: float | None
    low: float | None
    high: float | None
    positives: int


class ScoreTable(TypedDict):
    """One model on one test population, in the shape of `summary.json`."""

    auroc: dict[str, Interval]
    macro_auroc: float | None
    macro_low: float | None
    macro_high: float | None


@dataclass(frozen=True)
class Replicates:
    """One metric of one model on the data and on every resample of it; NaN is undefined.

    names: F findings; value: (F,) float64; samples: (R, F) float64; positives: (F,) int64
    images; enough: (F,) bool, at least two patients with the finding and two without, below
    which resampling says nothing; draw: names the resamples, so that only pairs are compared.
    """

    names: tuple[str, ...]
    value: Floats
    samples: Floats
    positives: npt.NDArray[np.int64]
    enough: Flags
    draw: int

    def table(self) -> dict[str, Interval]:
        """The interval of every finding."""
        return {name: self._interval(column) for column, name in enumerate(self.names)}

    def _interval(self, column: int) -> Interval:
        samples = self.samples[:, column] if self.enough[column] else np.zeros(0)
        low, high = _bounds(samples)
        value = _plain(self.value[column])
        return Interval(value=value, low=low, high=high, positives=int(self.positives[column]))

    def macro(self) -> Interval:
        """Mean over the defined findings in every resample; positives: theirs together."""
        defined = ~np.isnan(self.value)
        samples = _mean(self.samples[:, defined], axis=1)
        low, high = _bounds(samples if self.enough[defined].any() else np.zeros(0))
        value = _plain(_mean(self.value, axis=0))
        positives = int(self.positives[defined].sum())
        return Interval(value=value, low=low, high=high, positives=positives)

    def scores(self) -> ScoreTable:
        """The finding table and the macro, as `summary.json` has them."""
        whole = self.macro()
        return ScoreTable(
            auroc=self.table(),
            macro_auroc=whole["value"],
            macro_low=whole["low"],
            macro_high=whole["high"],
        )


@dataclass(frozen=True)
class Bootstrap:
    """Both ranking metrics of one model, from the same resamples."""

    auroc: Replicates
    average_precision: Replicates


def bootstrap(
    targets: Array,
    scores: Array,
    patients: Array,
    resamples: int = 1000,
    seed: int = 0,
    names: Sequence[str] = FINDINGS,
) -> Bootstrap:
    """AUROC and average precision of every finding, on the data and on patient resamples.

    targets: (N, F) in {-1, 0, 1}; scores: (N, F) float, a column of NaN for a finding that the
    model has no output for; patients: (N,) identifiers, any type that sorts; resamples >= 0
    (0: no intervals). Definitions as in common/metrics.py, with an image weighing as often as
    its patient was drawn. A resample without positives or negatives is left out of that
    finding. Raises ValueError on other shapes or values.
    """
    if targets.shape != scores.shape or targets.shape != (len(patients), len(names)):
        raise ValueError(
            f"targets {targets.shape} and scores {scores.shape} must both be "
            f"({len(patients)} patients' images, {len(names)} findings)"
        )
    patient, counts = _draw(patients, resamples, seed)
    results = np.full((2, 1 + resamples, len(names)), np.nan)
    enough = np.zeros(len(names), dtype=bool)
    for column in range(len(names)):
        positive, score = known(targets[:, column], scores[:, column])
        if not positive.any() or positive.all():
            continue
        owner = patient[targets[:, column] >= 0]
        sides = (owner[positive], owner[~positive])
        enough[column] = min(len(np.unique(side)) for side in sides) >= 2
        results[:, :, column] = _rank_metrics(positive, score, owner, counts)
    positives, draw = (targets == 1).sum(axis=0), zlib.crc32(counts.tobytes())
    return Bootstrap(
        *(Replicates(tuple(names), r[0], r[1:], positives, enough, draw) for r in results)
    )


def mean_of(models: Sequence[Replicates]) -> Replicates:
    """The mean over several models, finding by finding, of those that are defined.

    Raises ValueError without a model, or when they are not from the same resamples.
    """
    if not models:
        raise ValueError("the mean needs at least one model")
    first = models[0]
    for other in models[1:]:
        _check_pair(first, other)
    value = _mean(np.stack([m.value for m in models]), axis=0)
    samples = _mean(np.stack([m.samples for m in models]), axis=0)
    enough = np.any([m.enough for m in models], axis=0)
    return Replicates(first.names, value, samples, first.positives, enough, first.draw)


def difference(first: Replicates, second: Replicates) -> Replicates:
    """first - second in every resample: a paired comparison, over the findings both define.

    `.table()` and `.macro()` of the result are the differences with their intervals. Raises
    ValueError when the two are not from the same images, patients and seed.
    """
    _check_pair(first, second)
    enough = first.enough & second.enough
    value, samples = first.value - second.value, first.samples - second.samples
    return Replicates(first.names, value, samples, first.positives, enough, first.draw)


def mean_interval(values: Array, patients: Array, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of a per-image number (Dice, IoU) with its patient-bootstrap interval.

    values: (N,) float; patients: (N,). `positives` is N. The value is None without images,
    the interval with fewer than two patients. Raises ValueError on NaN or other shapes.
    """
    if values.ndim != 1 or values.shape != patients.shape:
        raise ValueError(f"values {values.shape} and patients {patients.shape} must be (N,)")
    if not np.isfinite(values).all():
        raise ValueError("the mean of values that are not finite has no interval")
    if not len(values):
        return Interval(value=None, low=None, high=None, positives=0)
    patient, counts = _draw(patients, resamples, seed)
    weights = counts.astype(np.float64)
    means = (weights @ np.bincount(patient, weights=values)) / (weights @ np.bincount(patient))
    low, high = _bounds(means[1:] if counts.shape[1] > 1 else np.zeros(0))
    return Interval(value=float(means[0]), low=low, high=high, positives=len(values))


def _draw(patients: Array, resamples: int, seed: int) -> tuple[Indices, Counts]:
    """Number the patients and draw them: (patient of image (N,), counts (1 + R, P)).

    The first row is the data themselves, every patient once. One byte a count (more only if a
    count needs it) keeps all resamples in the processor's cache while images look them up.
    """
    identifiers, patient = np.unique(patients, return_inverse=True)
    total = len(identifiers)
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + resamples, total), dtype=np.uint32)
    for row in counts[1:] if total else ():
        row[:] = np.bincount(rng.integers(0, total, total), minlength=total)
    return patient, counts.astype(np.min_scalar_type(counts.max(initial=1)))


@dataclass(frozen=True)
class _Groups:
    """Images in groups of equal rank, ready to be summed under any weights of their patients."""

    patient: Indices  # (M,) of every image, the images ordered by group
    starts: Indices  # first image of every group that has one
    filled: Indices  # which groups those are
    total: int

    @classmethod
    def of(cls, group: Indices, patient: Indices, total: int) -> "_Groups":
        order = np.argsort(group, kind="stable")
        ranked = group[order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        return cls(patient[order], starts, ranked[starts], total)

    def sums(self, counts: Counts) -> Floats:
        """(C, groups): weight of every group under each row of counts (C, P)."""
        out = np.zeros((len(counts), self.total))
        weights = counts.take(self.patient, axis=1)
        out[:, self.filled] = np.add.reduceat(weights, self.starts, axis=1, dtype=np.int32)
        return out


def _rank_metrics(positive: Flags, score: Floats, patient: Indices, counts: Counts) -> Floats:
    """(2, 1 + R): AUROC and average precision of one finding for every row of counts (1 + R, P).

    Only the K distinct scores of positives matter. A negative lies below, at or above them: on
    slot 2k between level k - 1 and level k, on slot 2k + 1 at level k.
    """
    levels, level = np.unique(score[positive], return_inverse=True)
    negatives = score[~positive]
    above = np.searchsorted(levels, negatives)
    tied = levels[np.minimum(above, len(levels) - 1)] == negatives
    present = _Groups.of(level, patient[positive], len(levels))
    absent = _Groups.of(2 * above + tied, patient[~positive], 2 * len(levels) + 1)
    parts = []
    for start in range(0, len(counts), _ROWS):
        some = counts[start : start + _ROWS]
        parts.append(_from_sums(present.sums(some), absent.sums(some)))
    return np.concatenate(parts, axis=1)


def _from_sums(hits: Floats, slots: Floats) -> Floats:
    """(2, C) AUROC, average precision from weights of positives (C, K), negatives (C, 2K+1)."""
    below = np.cumsum(slots, axis=1)
    positives, negatives = hits.sum(axis=1), below[:, -1]
    defined = (positives > 0) & (negatives > 0)
    wins = np.einsum("ck,ck->c", hits, below[:, :-1:2] + slots[:, 1::2] / 2)
    true_alarms = np.cumsum(hits[:, ::-1], axis=1)[:, ::-1]
    alarms = true_alarms + (negatives[:, None] - below[:, :-1:2])
    # Weights are whole numbers: where nothing is at or above a level, hits are 0 there too.
    precision = np.einsum("ck,ck->c", hits, true_alarms / np.maximum(alarms, 1.0))
    out = np.full((2, len(hits)), np.nan)
    np.divide(wins, positives * negatives, out=out[0], where=defined)
    np.divide(precision, positives, out=out[1], where=defined)
    return out


def _check_pair(first: Replicates, second: Replicates) -> None:
    same = first.names == second.names and first.draw == second.draw
    if not same or not np.array_equal(first.positives, second.positives):
        raise ValueError("only models on the same images, patients and seed can be compared")


def _mean(values: Floats, axis: int) -> Floats:
    """Mean over an axis that leaves NaN out; NaN where nothing is left (without a warning)."""
    defined = ~np.isnan(values)
    number = defined.sum(axis=axis)
    sums = np.where(defined, values, 0.0).sum(axis=axis)
    return np.where(number > 0, sums / np.maximum(number, 1), np.nan)


def _bounds(samples: Floats) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles of the defined samples."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)


def _plain(value: np.float64 | Floats) -> float | None:
    return None if np.isnan(value) else float(value)
