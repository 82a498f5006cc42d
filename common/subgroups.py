"""The same metrics in groups of patients: sex, age band and view.

A cell with fewer than `MINIMUM` positives, or negatives, is blank (None, its count too): the
number would say more about chance, and about single patients, than about the group.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from common.findings import FINDINGS
from common.metrics import Array, Flags, auroc, macro, operating_point

MINIMUM = 10
# Lower edge (included) and upper edge (excluded) in years.
AGE_BANDS: tuple[tuple[str, float, float], ...] = (
    ("under 18", 0.0, 18.0),
    ("18-39", 18.0, 40.0),
    ("40-59", 40.0, 60.0),
    ("60-79", 60.0, 80.0),
    ("80 and over", 80.0, float("inf")),
)


class Cell(TypedDict):
    """One finding in one group; the rates are at the frozen threshold, None without one."""

    value: float
    positives: int
    sensitivity: float | None
    specificity: float | None


class Subgroup(TypedDict):
    """One group, e.g. kind "view", label "AP"; a blank cell is None."""

    kind: str
    label: str
    images: int
    macro_auroc: float | None
    auroc: dict[str, Cell | None]


def subgroup_table(
    targets: Array,
    scores: Array,
    sex: Array,
    age: Array,
    view: Array,
    thresholds: Mapping[str, float | None] | None = None,
    names: Sequence[str] = FINDINGS,
) -> list[Subgroup]:
    """AUROC of every finding in every subgroup that has an image, worst groups in plain sight.

    targets: (N, F) in {-1, 0, 1}; scores: (N, F) float; sex: (N,) "F"/"M"/""; age: (N,) float
    years, NaN unknown; view: (N,) "PA"/"AP"/"". Images of unknown sex, age or view are in no
    group of that kind. The macro is over the cells that are not blank. `thresholds`, frozen on
    validation data, add the sensitivity and specificity that each group gets from them.
    """
    sex, age, view = np.asarray(sex), np.asarray(age, dtype=np.float64), np.asarray(view)
    groups = [("sex", "female", sex == "F"), ("sex", "male", sex == "M")]
    groups += [("age", label, (age >= low) & (age < high)) for label, low, high in AGE_BANDS]
    groups += [("view", label, view == label) for label in ("PA", "AP")]
    table = []
    for kind, label, chosen in groups:
        if not chosen.any():
            continue
        cells = _cells(targets, scores, chosen, thresholds or {}, names)
        average = macro(cell["value"] for cell in cells.values() if cell is not None)
        size = int(chosen.sum())
        table.append(
            Subgroup(kind=kind, label=label, images=size, macro_auroc=average, auroc=cells)
        )
    return table


def _cells(
    targets: Array,
    scores: Array,
    chosen: Flags,
    thresholds: Mapping[str, float | None],
    names: Sequence[str],
) -> dict[str, Cell | None]:
    cells: dict[str, Cell | None] = {}
    for name, target, score in zip(names, targets.T, scores.T, strict=True):
        cells[name] = _cell(target[chosen], score[chosen], thresholds.get(name))
    return cells


def _cell(target: Array, score: Array, threshold: float | None) -> Cell | None:
    positives, negatives = int((target == 1).sum()), int((target == 0).sum())
    value = auroc(target, score)
    if value is None or min(positives, negatives) < MINIMUM:
        return None
    point = None if threshold is None else operating_point(target, score, threshold)
    return Cell(
        value=value,
        positives=positives,
        sensitivity=point["sensitivity"] if point else None,
        specificity=point["specificity"] if point else None,
    )
