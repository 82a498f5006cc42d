"""The teacher: an average of the student's own past, which answers on easy views.

Mean Teacher (Tarvainen and Valpola, NeurIPS 2017, section 2) with soft targets, or FixMatch
(Sohn et al., NeurIPS 2020, section 2) with hard ones where the teacher is sure. In a federation
the teacher of a round starts as the model that the server sent, which is an average over sites.
"""

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.data.augment import warp
from client.data.batches import to_model_format
from client.learning.views import Views
from common.findings import FINDINGS
from common.losses import Targets
from common.model import MultitaskModel
from common.sections import SemiSupervisionPlan

MIN_POSITIVES = 20  # fewer labelled positives can't say where a teacher becomes reliable
MOST_POSITIVES = 1.5  # pseudo-positives per labelled positive, at most
WHOLE = 0.999  # a warped pixel of ones that is less than this looks beyond the image


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a finding counts as present, and up to which as absent.

    positive, negative: (14,) float32; 2 and -1 where the teacher is never sure.
    """

    positive: Tensor
    negative: Tensor

    @property
    def sure(self) -> npt.NDArray[np.bool_]:
        """(14,) bool: findings on which the teacher can be sure of anything at all."""
        return ((self.positive <= 1) | (self.negative >= 0)).numpy()


@dataclass(frozen=True)
class Question:
    """About what the teacher is asked, for B rows of U units.

    open: (B, 14) bool findings. lung_rows: (M,) int64. unit: (B,) int64. units: U.
    """

    open: Tensor
    lung_rows: Tensor
    unit: Tensor
    units: int


class Teacher:
    """A copy of the student that follows it slowly. Never trained, never sent."""

    def __init__(
        self, student: MultitaskModel, plan: SemiSupervisionPlan, thresholds: Thresholds | None
    ) -> None:
        """thresholds: needed by mode fixmatch only."""
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        self._plan, self._thresholds = plan, thresholds

    @torch.no_grad()
    def follow(self, student: MultitaskModel) -> None:
        """Move every parameter a little towards the student's: an exponential average."""
        for own, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            own.lerp_(theirs, 1 - self._plan.teacher_decay)

    @torch.no_grad()
    def targets(self, views: Views, asked: Question) -> Targets:
        """The teacher's answers on the weak views, in the frame of the strong ones."""
        outputs = self.model(to_model_format(views.weak), asked.lung_rows)
        if outputs.findings is None:
            findings = torch.zeros_like(asked.open, dtype=torch.float32)
        else:
            findings = outputs.findings.float().sigmoid()
        targets, weights = self._judge(findings)
        lungs, pixels = self._outline(outputs.lungs, views, asked)
        return Targets(
            targets, weights, asked.open, asked.lung_rows, lungs, pixels, asked.unit, asked.units
        )

    def _judge(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and weights, (B, 14) each, from the teacher's probabilities."""
        if self._plan.mode == "mean-teacher":
            return probability, torch.ones_like(probability)
        assert self._thresholds is not None  # the caller's duty in mode fixmatch
        present = probability >= self._thresholds.positive.to(probability.device)
        absent = probability <= self._thresholds.negative.to(probability.device)
        weights = present.float() + self._plan.negative_weight * (absent & ~present).float()
        return present.float(), weights

    def _outline(
        self, logits: Tensor | None, views: Views, asked: Question
    ) -> tuple[Tensor, Tensor]:
        """Lung probabilities, and which pixels count, both (M, 1, S, S), in the strong frame.

        Logits are moved, not probabilities: a model whose logits move with the image then
        agrees with itself exactly.
        """
        if logits is None:
            nothing = views.weak.new_zeros((0, *views.weak.shape[1:]))
            return nothing, nothing.bool()
        theta = views.theta[asked.lung_rows]
        lungs = warp(logits.float(), theta).sigmoid()
        seen = warp(torch.ones_like(lungs), theta) > WHOLE
        sure = torch.maximum(lungs, 1 - lungs) >= self._plan.lungs_confidence
        return lungs, seen & sure


def choose_thresholds(
    targets: npt.NDArray[np.int8], probabilities: npt.NDArray[np.float32], plan: SemiSupervisionPlan
) -> Thresholds:
    """Per finding, where the teacher may be believed, from labelled validation rows.

    targets: (N, 14) 1, 0, or -1 unknown. probabilities: (N, 14), NaN where the teacher does not
    speak. Present: the lowest score with the plan's precision, but never more than 1.5 times as
    many positives as there are. Absent: the highest with the plan's negative predictive value.
    One threshold for all findings would call nearly nothing present and every rare one absent.
    """
    positive = torch.full((len(FINDINGS),), 2.0)
    negative = torch.full((len(FINDINGS),), -1.0)
    for column in range(len(FINDINGS)):
        known = (targets[:, column] >= 0) & np.isfinite(probabilities[:, column])
        truth = torch.from_numpy(targets[known, column].astype(np.int64))
        score = torch.from_numpy(probabilities[known, column].astype(np.float32))
        found = int(truth.sum())
        if found < MIN_POSITIVES or found == len(truth):
            continue
        sure = _lowest(score, truth, plan.precision)
        ranked = score.sort(descending=True).values
        most = min(int(MOST_POSITIVES * found), len(ranked)) - 1
        positive[column] = max(sure, float(ranked[most]))
        negative[column] = 1 - _lowest(1 - score, 1 - truth, plan.negative_predictive_value)
    return Thresholds(positive, negative)


def _lowest(score: Tensor, truth: Tensor, precision: float) -> float:
    """The score from which on `truth` has this precision with the best recall; 2 if none."""
    # A slow import, and most plans have no thresholds to find.
    from torchmetrics.functional.classification import binary_recall_at_fixed_precision

    recall, threshold = binary_recall_at_fixed_precision(score, truth, precision)
    return float(threshold) if float(recall) > 0 else 2.0
