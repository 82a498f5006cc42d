"""From the answers of the cells to means, spreads and paired differences.

Two kinds of chance stand behind a number. Another draw of the test patients: resampled, on the
same resamples for all models, so that differences are paired (common/bootstrap.py). Another
training: seen as the spread over the seeds, which also draw the labels and masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t

from client.learning.evaluate import true_findings
from common.bootstrap import Replicates, bootstrap, difference, mean_interval, mean_of
from common.findings import FINDINGS
from simulations.study.cells import Outcome, TestSet, load_test

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Overlap = Literal["dice", "iou"]


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known about a test's images: targets (N, 14) in {-1, 0, 1}, patients (N,)."""

    targets: npt.NDArray[np.int8]
    patients: npt.NDArray[Any]


def load_truth(test: TestSet) -> Truth:
    """The labels and patients of a test, in the order of its rows."""
    data = load_test(test, torch.device("cpu"))
    rows = np.arange(len(data.table))
    return Truth(true_findings(data, rows), data.table["patient"].to_numpy(str))


@dataclass(frozen=True, eq=False)
class View:
    """A part of the tests, with a name for people: which test, and which of its rows."""

    name: str
    findings: str
    lungs: str
    findings_rows: Flags
    lungs_rows: Flags


class Judge:
    """Scores models, always on the same resamples of the same patients."""

    def __init__(
        self, truths: Mapping[str, Truth], resamples: int, seed: int, min_positives: int
    ) -> None:
        self._truths, self._resamples, self._seed = truths, resamples, seed
        self._min_positives = min_positives

    def counted(self, *views: View) -> tuple[str, ...]:
        """The findings with enough positive test images to be in a mean, in each of the views.

        A view without any image for findings has no mean, and does not count.
        """
        parts = [self._truths[each.findings].targets[each.findings_rows] for each in views]
        positives = [(part == 1).sum(axis=0) for part in parts if len(part)]
        if not positives:
            return ()
        names = zip(FINDINGS, np.min(positives, axis=0), strict=True)
        return tuple(name for name, count in names if count >= self._min_positives)

    def findings(self, models: Sequence[Outcome], view: View) -> Replicates | None:
        """AUROC of each finding: the mean over several models (hospitals alone).

        None when no model has an answer, or the view has no image.
        """
        truth, rows = self._truths[view.findings], view.findings_rows
        logits = [model.logits[view.findings][rows] for model in models]
        logits = [each for each in logits if len(each) and not np.isnan(each).all()]
        if not logits:
            return None
        patients = truth.patients[rows]
        scored = (
            bootstrap(truth.targets[rows], each, patients, self._resamples, self._seed).auroc
            for each in logits
        )
        return mean_of(list(scored))

    def lungs(self, models: Sequence[Outcome], view: View, kind: Overlap) -> Floats | None:
        """(M,) overlap of each outlined image: the mean over the models that draw lungs.

        None when none does, or the view has no mask.
        """
        values = [getattr(model, kind)[view.lungs][view.lungs_rows] for model in models]
        values = [each for each in values if not np.isnan(each).all()]
        if not values:
            return None
        mean: Floats = np.mean(values, axis=0)
        return mean[~np.isnan(mean)]

    def lung_patients(self, models: Sequence[Outcome], view: View) -> npt.NDArray[Any]:
        """(M,) whose images the values of `lungs` are."""
        for model in models:
            values = model.dice[view.lungs][view.lungs_rows]
            if not np.isnan(values).all():
                return self._truths[view.lungs].patients[view.lungs_rows][~np.isnan(values)]
        return np.empty(0, dtype=str)

    def mean(self, values: Floats, patients: npt.NDArray[Any]) -> dict[str, Any]:
        """Mean of per-image values with its patient interval."""
        return dict(mean_interval(values, patients, self._resamples, self._seed))


def only(scores: Replicates, names: Sequence[str]) -> Replicates:
    """The same replicates of some of the findings."""
    columns = [scores.names.index(name) for name in names]
    return Replicates(
        tuple(names),
        scores.value[columns],
        scores.samples[:, columns],
        scores.positives[columns],
        scores.enough[columns],
        scores.draw,
    )


def spread(values: Sequence[float | None]) -> float | None:
    """Standard deviation over the seeds (n - 1); None with fewer than two."""
    defined = [value for value in values if value is not None]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def seeds_interval(values: Sequence[float | None]) -> dict[str, float | None]:
    """The 95 % interval of the mean over other trainings: Student's t; None below two seeds.

    Student, "The probable error of a mean", Biometrika 1908. It takes the seeds' results as
    draws from a normal distribution, which so few cannot check.
    """
    defined = [value for value in values if value is not None]
    sd = spread(defined)
    if sd is None:
        return {"seeds_low": None, "seeds_high": None}
    half = float(t.ppf(0.975, len(defined) - 1)) * sd / len(defined) ** 0.5
    mean = float(np.mean(defined))
    return {"seeds_low": mean - half, "seeds_high": mean + half}


def auroc_summary(by_seed: Mapping[int, Replicates], counted: Sequence[str]) -> dict[str, Any]:
    """Macro AUROC over the counted findings, and AUROC of each of the 14, over the seeds.

    `mean`, `low`, `high`: mean over seeds with the patient interval; `sd`: over the seeds.
    """
    macros = {seed: only(each, counted).macro()["value"] for seed, each in by_seed.items()}
    together = mean_of(list(by_seed.values()))
    whole = only(together, counted).macro()
    per_finding = {}
    for column, (name, interval) in enumerate(together.table().items()):
        seeds = [_defined(each.value[column]) for each in by_seed.values()]
        per_finding[name] = _named(dict(interval)) | {"sd": spread(seeds)}
    return {
        "macro": _named(dict(whole)) | _over_seeds(macros),
        "findings": per_finding,
    }


def lungs_summary(
    by_seed: Mapping[int, Floats], patients: npt.NDArray[Any], judge: Judge
) -> dict[str, Any]:
    """Mean overlap over images and seeds with its patient interval, and the sd over seeds."""
    seeds = {seed: float(values.mean()) for seed, values in by_seed.items()}
    whole = judge.mean(np.mean(list(by_seed.values()), axis=0), patients)
    return _named(whole) | _over_seeds(seeds)


def auroc_difference(
    first: Mapping[int, Replicates], second: Mapping[int, Replicates], counted: Sequence[str]
) -> dict[str, Any] | None:
    """Macro AUROC of first minus second over the seeds that both have; None without one."""
    seeds = [seed for seed in first if seed in second]
    if not seeds or not counted:
        return None
    each = {
        seed: difference(only(first[seed], counted), only(second[seed], counted)).macro()["value"]
        for seed in seeds
    }
    means = (mean_of([only(side[seed], counted) for seed in seeds]) for side in (first, second))
    whole = difference(*means).macro()
    return _named(dict(whole)) | _over_seeds(each)


def lungs_difference(
    first: Mapping[int, Floats],
    second: Mapping[int, Floats],
    patients: npt.NDArray[Any],
    judge: Judge,
) -> dict[str, Any] | None:
    """Mean over images of first minus second, paired image by image; None without a seed."""
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return None
    return lungs_summary({seed: first[seed] - second[seed] for seed in seeds}, patients, judge)


def _over_seeds(values: Mapping[int, float | None]) -> dict[str, Any]:
    """Each seed's value, and their spread."""
    each = list(values.values())
    return {"seeds": dict(values), "sd": spread(each), **seeds_interval(each)}


def _named(interval: dict[str, Any]) -> dict[str, Any]:
    """An interval under the names of `ablation.json`."""
    keys = {"value": "mean", "low": "low", "high": "high", "positives": "positives"}
    return {keys[key]: value for key, value in interval.items()}


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
