"""What a site learns from images that nobody has annotated, beside or without labelled ones.

On a finding that a row is not annotated for, and on lungs that nobody has outlined, the student
follows its teacher (`client.learning.teacher`). What may be followed depends on who taught the
head: a local head speaks only on what this site could teach it, a shared head on everything.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.data.batches import (
    Rows,
    SiteData,
    Stream,
    group_units,
    mixed_precision,
    to_model_format,
    unit_rows,
)
from client.learning.evaluate import Heads, predict, true_findings
from client.learning.teacher import Question, Teacher, Thresholds, choose_thresholds
from client.learning.views import make_views
from common.findings import FINDINGS
from common.losses import Targets, consistency_losses, joined_targets
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
    return may_follow(plan, data.annotated("train"), len(data.outlined("train", plan.tasks)) > 0)


def may_follow(plan: Plan, annotated: npt.NDArray[np.bool_], outlined: bool) -> Followed:
    """What a teacher can be right about whose site annotates findings (14,) bool, and lungs."""
    semi, tasks, shared = plan.semi_supervision, plan.tasks, plan.heads == "shared"
    on = semi.mode != "off"
    return Followed(
        (annotated | shared) & (on and tasks.findings and semi.findings_weight > 0),
        bool(on and tasks.lungs and semi.lungs_weight > 0 and (outlined or shared)),
    )


def unlabelled_rows(data: SiteData, plan: Plan) -> Rows:
    """Positions (R,) int64 of training rows on which something is left to follow."""
    return _open_rows(data, followed(data, plan))


def _open_rows(data: SiteData, what: Followed) -> Rows:
    rows = data.rows("train")
    return rows[lacks(data, rows, what)]


def lacks(data: SiteData, rows: Rows, what: Followed) -> npt.NDArray[np.bool_]:
    """Whether something is left to follow on each of rows (R,): (R,) bool."""
    silent = (~data.known[rows] & what.findings).any(axis=1)
    return np.asarray(silent | ((data.mask_row[rows] < 0) & what.lungs))


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


@dataclass(frozen=True)
class Lesson:
    """Strong views (B, 1, S, S), what the teacher says about them, and what crosses the bridge.

    planes: (M, 2, S, S) of the rows `targets.lung_rows`, or None without a bridge.
    """

    strong: Tensor
    targets: Targets
    planes: Tensor | None


def joined_lessons(lessons: Sequence[Lesson]) -> Lesson:
    """Lessons about parts of one unit's rows, in order, as one lesson about all of them."""
    targets = [lesson.targets for lesson in lessons]
    planes = [lesson.planes for lesson in lessons if lesson.planes is not None]
    return Lesson(
        torch.cat([lesson.strong for lesson in lessons]),
        joined_targets(targets, [0] * len(targets), targets[0].units),
        torch.cat(planes) if planes else None,
    )


class Follower:
    """A teacher, and what the student is told by it about rows that lack something."""

    def __init__(
        self,
        student: MultitaskModel,
        data: SiteData,
        plan: Plan,
        what: Followed,
        thresholds: Thresholds | None,
        seed: int,
        precise: bool = False,
    ) -> None:
        """seed: of the views. thresholds: needed by mode fixmatch only.

        precise: float32 on any device, as everything under differential privacy.
        """
        self.teacher = Teacher(student, plan.semi_supervision, thresholds)
        self._student, self._data, self._plan, self._what = student, data, plan, what
        self._generator, self._precise = torch.Generator().manual_seed(seed), precise

    def seed(self, seed: int) -> None:
        """Draw the next lesson's views from here on."""
        self._generator.manual_seed(seed)

    def lesson(self, rows: Rows, unit: Rows, units: int) -> Lesson:
        """About rows (B,) int64, which belong to units (B,) int64 in [0, units)."""
        semi = self._plan.semi_supervision
        views = make_views(self._data.pictures(rows), semi, self._generator)
        asked = self._asked(rows, unit, units)
        strong = views.strong if self._precise else to_model_format(views.strong)
        planes = self._student.planes(strong[asked.lung_rows])
        with nullcontext() if self._precise else mixed_precision(strong.device):
            return Lesson(strong, self.teacher.targets(views, asked), planes)

    def _asked(self, rows: Rows, unit: Rows, units: int) -> Question:
        data, device = self._data, self._data.images.device
        silent = (data.mask_row[rows] < 0) & self._what.lungs
        return Question(
            torch.from_numpy(~data.known[rows] & self._what.findings).to(device),
            torch.from_numpy(np.flatnonzero(silent)).to(device),
            torch.from_numpy(unit).to(device),
            units,
        )


class Unlabelled:
    """One round's unlabelled stream and its teacher, in training without privacy."""

    def __init__(self, stream: Stream, follower: Follower, plan: Plan, seed: int) -> None:
        self.stream, self.teacher = stream, follower.teacher
        self._follower, self._plan = follower, plan
        self._units = stream.draw(seed)

    def leads(self, rounds_done: float) -> bool:
        """Whether a site without any annotation may take part after so many rounds.

        Only after the ramp: an adaptive optimizer makes its steps as long for a small loss as
        for a large one, so weighing the term down would not hold such a site back.
        """
        return strength(self._plan, rounds_done) == 1.0

    def loss(self, forward: nn.Module, rounds_done: float) -> tuple[Tensor | float, int]:
        """The weighted mean over this step's units, a scalar, and how many images it took."""
        weight = strength(self._plan, rounds_done)
        units = next(self._units)
        if weight == 0.0:
            return 0.0, 0
        rows, unit = unit_rows(units)
        lesson = self._follower.lesson(rows, unit, len(units))
        semi = self._plan.semi_supervision
        with mixed_precision(lesson.strong.device):
            outputs = forward(lesson.strong, lesson.targets.lung_rows, lesson.planes)
        losses = consistency_losses(
            outputs, lesson.targets, semi.findings_weight, semi.lungs_weight
        )
        return weight * losses.mean(), len(rows)


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
    own_seed = seed + _SEED_STEP
    follower = Follower(model, data, plan, what, thresholds, own_seed + 1)
    return Unlabelled(stream, follower, plan, own_seed)


def _thresholds(model: MultitaskModel, data: SiteData, plan: Plan) -> Thresholds:
    """When this round's teacher may be believed: from the site's labelled validation rows."""
    rows = data.labelled("val", plan.tasks)
    [own], _ = predict(model, [Heads(model.findings, None, FINDINGS)], data, rows)
    return choose_thresholds(true_findings(data, rows), own.probabilities, plan.semi_supervision)
