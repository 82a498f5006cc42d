"""What a site learns from images that nobody has annotated, beside or without labelled ones.

On a finding that a row is not annotated for, and on lungs that nobody has outlined, the student
follows its teacher (`client.teacher`). What may be followed depends on who taught the head: a
local head speaks only on what this site could teach it, a shared head on everything.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.batches import (
    Rows,
    SiteData,
    Stream,
    group_units,
    mixed_precision,
    to_model_format,
    unit_rows,
)
from client.evaluate import Heads, predict, true_findings
from client.teacher import Asked, Teacher, Thresholds, choose_thresholds
from client.views import make_views
from common.findings import FINDINGS
from common.losses import consistency_losses
from common.model import MultitaskModel
from common.plan import Plan

# Apart from the seeds of the annotated streams, so that these draw the same with and without.
_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Followed:
    """On what the student may follow: findings (14,) bool, and lungs."""

    findings: npt.NDArray[np.bool_]
    lungs: bool


def followed(data: SiteData, plan: Plan) -> Followed:
    """What a teacher at this site can be right about under this plan."""
    semi, tasks, shared = plan.semi_supervision, plan.tasks, plan.heads == "shared"
    taught = data.annotated("train") | shared
    outlined = shared or len(data.outlined("train", tasks)) > 0
    on = semi.mode != "off"
    return Followed(
        taught & (on and tasks.findings and semi.findings_weight > 0),
        bool(on and tasks.lungs and semi.lungs_weight > 0 and outlined),
    )


def unlabelled_rows(data: SiteData, plan: Plan) -> Rows:
    """Positions (R,) int64 of training rows on which something is left to follow."""
    return _open_rows(data, followed(data, plan))


def _open_rows(data: SiteData, what: Followed) -> Rows:
    rows = data.rows("train")
    silent = (~data.known[rows] & what.findings).any(axis=1)
    return rows[silent | ((data.mask_row[rows] < 0) & what.lungs)]


def strength(plan: Plan, rounds_done: float) -> float:
    """Weight of the unlabelled term after `rounds_done` rounds (may be fractional), 0 to 1.

    The ramp exp(-5 (1 - t)^2) of Laine and Aila, "Temporal ensembling", ICLR 2017, section 2.3:
    a teacher that knows nothing yet must not be followed.
    """
    semi = plan.semi_supervision
    done = rounds_done / plan.federation.rounds - semi.start
    if done < 0:
        return 0.0
    t = min(1.0, done / semi.ramp) if semi.ramp > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


class Unlabelled:
    """One round's unlabelled stream and its teacher."""

    def __init__(
        self,
        student: MultitaskModel,
        data: SiteData,
        plan: Plan,
        what: Followed,
        stream: Stream,
        teacher: Teacher,
        seed: int,
    ) -> None:
        self.stream, self.teacher = stream, teacher
        self._student, self._data, self._plan, self._what = student, data, plan, what
        self._units = stream.draw(seed)
        self._generator = torch.Generator().manual_seed(seed + 1)

    def leads(self, rounds_done: float) -> bool:
        """Whether a site without any annotation may take part after so many rounds.

        Only after the ramp: an adaptive optimizer makes its steps as long for a small loss as
        for a large one, so weighing the term down would not hold such a site back.
        """
        return strength(self._plan, rounds_done) == 1.0

    def loss(self, forward: nn.Module, rounds_done: float) -> tuple[Tensor, int]:
        """The weighted mean over this step's units, a scalar, and how many images it took."""
        weight, device = strength(self._plan, rounds_done), self._data.images.device
        units = next(self._units)
        if weight == 0.0:
            return torch.zeros((), device=device), 0
        rows, unit = unit_rows(units)
        semi = self._plan.semi_supervision
        views = make_views(self._data.pictures(rows), semi, self._generator)
        asked = self._asked(rows, unit, len(units))
        strong = to_model_format(views.strong)
        planes = self._student.planes(strong[asked.lung_rows])
        with mixed_precision(device):
            targets = self.teacher.targets(views, asked)
            outputs = forward(strong, asked.lung_rows, planes)
        losses = consistency_losses(outputs, targets, semi.findings_weight, semi.lungs_weight)
        return weight * losses.mean(), len(rows)

    def _asked(self, rows: Rows, unit: Rows, units: int) -> Asked:
        data, device = self._data, self._data.images.device
        silent = (data.mask_row[rows] < 0) & self._what.lungs
        return Asked(
            torch.from_numpy(~data.known[rows] & self._what.findings).to(device),
            torch.from_numpy(np.flatnonzero(silent)).to(device),
            torch.from_numpy(unit).to(device),
            units,
        )


def open_unlabelled(
    model: MultitaskModel, data: SiteData, plan: Plan, rounds_done: int, seed: int
) -> Unlabelled | None:
    """What the site learns from unannotated rows in the round that follows `rounds_done`.

    None if the plan, the rows or the time don't allow for any. The teacher starts as `model`.
    """
    semi, what = plan.semi_supervision, followed(data, plan)
    if len(_open_rows(data, what)) == 0 or strength(plan, rounds_done + 1) == 0.0:
        return None
    thresholds = None
    if semi.mode == "fixmatch":
        thresholds = _thresholds(model, data, plan)
        # Where the teacher is never sure the loss is 0, and a site that learns nothing else
        # would vote for standing still.
        what = Followed(what.findings & thresholds.sure, what.lungs)
    rows = _open_rows(data, what)
    if len(rows) == 0:
        return None
    stream = Stream(group_units(data, rows, plan.training.unit), semi.batch_size)
    teacher = Teacher(model, semi, thresholds)
    return Unlabelled(model, data, plan, what, stream, teacher, seed + _SEED_STEP)


def _thresholds(model: MultitaskModel, data: SiteData, plan: Plan) -> Thresholds:
    """When this round's teacher may be believed: from the site's labelled validation rows."""
    rows = data.labelled("val", plan.tasks)
    [own], _ = predict(model, [Heads(model.findings, None, FINDINGS)], data, rows)
    return choose_thresholds(true_findings(data, rows), own.probabilities, plan.semi_supervision)
