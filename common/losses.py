"""Losses per privacy unit: the contract that plain and private training share.

A unit is one image or one patient. Each term of a unit's loss is divided by the unit's own
denominators (its annotated findings, its masked images) and by nothing that other units in
the batch could change. So a batch is a plain mean over units, and clipping a unit's gradient
bounds that unit's influence. A loss divided by "labels in the batch" would break this. Units must
be drawn once a step for that: plain training may draw a patient into two streams (labels and
masks, client/data/batches.py) as two units.

Labels and masks teach in `unit_losses`; what a teacher model says about images without them
teaches in `consistency_losses`. These two are the only places that add terms up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from common.model import Outputs


@dataclass
class Batch:
    """Rows (images) of U units.

    images: (B, 1, S, S) float in [0, 1]. targets: (B, 14) float 0/1. known: (B, 14) bool,
    whether the finding is annotated. lung_rows: (M,) int64, rows that have a mask.
    masks: (M, 1, S, S) float 0/1. unit: (B,) int64 in [0, units). units: U.
    """

    images: Tensor
    targets: Tensor
    known: Tensor
    lung_rows: Tensor
    masks: Tensor
    unit: Tensor
    units: int


@dataclass
class Targets:
    """What a teacher says about the B rows (images) of U units; it carries no gradient.

    findings: (B, 14) probabilities, or 0/1. weights: (B, 14) float, how much each counts.
    open: (B, 14) bool, the findings on which the student should follow: the denominator.
    lung_rows: (M,) int64. lungs: (M, 1, S, S) probabilities in the student's frame.
    pixels: (M, 1, S, S) bool, those that count. unit: (B,) int64 in [0, units). units: U.
    """

    findings: Tensor
    weights: Tensor
    open: Tensor
    lung_rows: Tensor
    lungs: Tensor
    pixels: Tensor
    unit: Tensor
    units: int


def joined_targets(parts: Sequence[Targets], first_unit: Sequence[int], units: int) -> Targets:
    """Targets of several groups of rows, one group after the other, as those of `units` units.

    first_unit: by what the units of each part are counted up.
    """
    starts = list(accumulate((len(part.findings) for part in parts), initial=0))
    return Targets(
        findings=torch.cat([part.findings for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
        open=torch.cat([part.open for part in parts]),
        lung_rows=torch.cat([p.lung_rows + row for p, row in zip(parts, starts, strict=False)]),
        lungs=torch.cat([part.lungs for part in parts]),
        pixels=torch.cat([part.pixels for part in parts]),
        unit=torch.cat([p.unit + first for p, first in zip(parts, first_unit, strict=True)]),
        units=units,
    )


def findings_loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy over each row's annotated findings: (B, 14) x 3 to (B,).

    A row without any annotated finding has loss 0.
    """
    terms = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    annotated = known.to(terms.dtype)
    return (terms * annotated).sum(dim=1) / annotated.sum(dim=1).clamp_min(1.0)


def lungs_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy per image: (M, 1, S, S) x 2 to (M,).

    Dice loss after Milletari et al., "V-Net", 3DV 2016, section 3, smoothed by one pixel so
    that an empty mask has a gradient.
    """
    probability = logits.sigmoid().flatten(1)
    target = masks.flatten(1)
    overlap = (probability * target).sum(dim=1)
    dice = (2 * overlap + 1) / (probability.sum(dim=1) + target.sum(dim=1) + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return 1 - dice + entropy.flatten(1).mean(dim=1)


def unit_mean(values: Tensor, present: Tensor, unit: Tensor, units: int) -> Tensor:
    """Mean of `values` (R,) over the rows of each unit that are present: (U,), 0 if none is.

    present: (R,) bool. unit: (R,) int64 in [0, units). No row is picked out by its number, so
    that a GPU need not wait for the CPU to learn how many there are.
    """
    weight = present.to(values.dtype)
    zeros = torch.zeros(units, dtype=values.dtype, device=values.device)
    total = zeros.index_add(0, unit, values * weight)
    count = zeros.index_add(0, unit, weight)
    return total / count.clamp_min(1.0)


def unit_losses(
    outputs: Outputs, batch: Batch, findings_weight: float, lungs_weight: float
) -> Tensor:
    """Each unit's loss, (U,) float32: weighted sum of its findings and its lungs term.

    outputs.lungs must hold the logits of exactly `batch.lung_rows`, in that order.
    """
    device = batch.images.device
    total = torch.zeros(batch.units, dtype=torch.float32, device=device)
    if outputs.findings is not None:
        per_row = findings_loss(outputs.findings.float(), batch.targets, batch.known)
        labelled = batch.known.any(dim=1)
        total = total + findings_weight * unit_mean(per_row, labelled, batch.unit, batch.units)
    if outputs.lungs is not None and batch.lung_rows.numel() > 0:
        per_mask = lungs_loss(outputs.lungs.float(), batch.masks)
        masked = torch.ones_like(per_mask, dtype=torch.bool)
        units = batch.unit[batch.lung_rows]
        total = total + lungs_weight * unit_mean(per_mask, masked, units, batch.units)
    return total


def divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli(sigmoid(logits)) from Bernoulli(targets).

    Elementwise, any shape, targets in [0, 1]. It is cross-entropy minus the target's own
    entropy: the same gradient, but 0 where the two agree.
    """
    entropy: Tensor = torch.special.entr(targets) + torch.special.entr(1 - targets)
    crossed = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return crossed - entropy


def findings_consistency(logits: Tensor, targets: Targets) -> Tensor:
    """How far (B, 14) logits are from the teacher's findings, over each row's open ones: (B,)."""
    terms = divergence(logits, targets.findings) * targets.weights * targets.open
    return terms.sum(dim=1) / targets.open.sum(dim=1).clamp_min(1)


def lungs_consistency(logits: Tensor, targets: Targets) -> Tensor:
    """How far (M, 1, S, S) logits are from the teacher's lungs, over pixels that count: (M,)."""
    terms = (divergence(logits, targets.lungs) * targets.pixels).flatten(1).sum(dim=1)
    return terms / targets.pixels.flatten(1).sum(dim=1).clamp_min(1)


def consistency_losses(
    outputs: Outputs, targets: Targets, findings_weight: float, lungs_weight: float
) -> Tensor:
    """Each unit's loss for not following the teacher, (U,) float32.

    outputs.lungs must hold the logits of exactly `targets.lung_rows`, in that order.
    """
    total = torch.zeros(targets.units, dtype=torch.float32, device=targets.unit.device)
    if outputs.findings is not None and findings_weight > 0:
        per_row = findings_consistency(outputs.findings.float(), targets)
        follows = targets.open.any(dim=1)
        means = unit_mean(per_row, follows, targets.unit, targets.units)
        total = total + findings_weight * means
    if outputs.lungs is not None and lungs_weight > 0 and targets.lung_rows.numel() > 0:
        per_image = lungs_consistency(outputs.lungs.float(), targets)
        asked = torch.ones_like(per_image, dtype=torch.bool)
        units = targets.unit[targets.lung_rows]
        total = total + lungs_weight * unit_mean(per_image, asked, units, targets.units)
    return total
