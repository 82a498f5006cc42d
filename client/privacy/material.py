"""What a private step learns from: the images of some units, ready for the loss.

The loss is the one of plain training (`common.losses`), per unit. Here is also how the images
of one unit are taken out, for an engine that takes units one by one, and how every image gets
a place in the decoder, for engines that take all images at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.losses import Batch, Targets, consistency_losses, unit_losses
from common.model import Outputs

Run = Callable[[Tensor, Tensor, Tensor | None], Outputs]


@dataclass(frozen=True)
class Weights:
    """How much each term of a unit's loss counts: public numbers of the plan.

    consistency: strength of the teacher's word, 0 to 1, which multiplies the last two.
    """

    findings: float
    lungs: float
    consistency: float = 0.0
    consistency_findings: float = 0.0
    consistency_lungs: float = 0.0


@dataclass
class Material:
    """The images of U units; a unit's loss averages over its rows, so a row may come repeatedly.

    batch: the annotated view. planes: (M, 2, S, S), what crosses the bridge for
    `batch.lung_rows`, detached; None without a bridge. strong: (R, 1, S, S) strong views, and
    targets: what the teacher says about them, with the same units; both None without a teacher.
    strong_planes: (N, 2, S, S) for `targets.lung_rows`.
    """

    batch: Batch
    planes: Tensor | None = None
    strong: Tensor | None = None
    targets: Targets | None = None
    strong_planes: Tensor | None = None


def losses(run: Run, material: Material, weights: Weights) -> Tensor:
    """Each unit's loss, (U,) float32. run: the model as a function of images, lung_rows, planes."""
    batch, strong, targets = material.batch, material.strong, material.targets
    taught = run(batch.images, batch.lung_rows, material.planes)
    followed = None
    if strong is not None and targets is not None and weights.consistency > 0:
        followed = run(strong, targets.lung_rows, material.strong_planes)
    return losses_of(taught, followed, material, weights)


def losses_of(
    taught: Outputs, followed: Outputs | None, material: Material, weights: Weights
) -> Tensor:
    """Each unit's loss, (U,) float32, from the outputs on the batch and on the strong views."""
    total = unit_losses(taught, material.batch, weights.findings, weights.lungs)
    if followed is None or material.targets is None or weights.consistency == 0:
        return total
    return total + weights.consistency * consistency_losses(
        followed, material.targets, weights.consistency_findings, weights.consistency_lungs
    )


def teaches(material: Material, weights: Weights) -> bool:
    """Whether anything here can have a gradient: without a label, a mask or a teacher it is 0."""
    batch, targets = material.batch, material.targets
    if bool(batch.known.any()) or batch.lung_rows.numel() > 0:
        return True
    return targets is not None and weights.consistency > 0


def one_unit(material: Material, number: int) -> Material:
    """The rows of unit `number` alone, as its only unit; only rows that have a mask are decoded."""
    batch, strong, targets = material.batch, material.strong, material.targets
    rows, masked, lung_rows = _own(batch.unit, batch.lung_rows, number)
    own = Batch(
        images=batch.images[rows],
        targets=batch.targets[rows],
        known=batch.known[rows],
        lung_rows=lung_rows,
        masks=batch.masks[masked],
        unit=torch.zeros_like(rows),
        units=1,
        outlined=_at(batch.outlined, masked),
    )
    alone = Material(own, _at(material.planes, masked))
    if strong is None or targets is None:
        return alone
    rows, masked, lung_rows = _own(targets.unit, targets.lung_rows, number)
    if rows.numel() == 0:
        return alone
    alone.strong = strong[rows]
    alone.strong_planes = _at(material.strong_planes, masked)
    alone.targets = Targets(
        findings=targets.findings[rows],
        weights=targets.weights[rows],
        open=targets.open[rows],
        lung_rows=lung_rows,
        lungs=targets.lungs[masked],
        pixels=targets.pixels[masked],
        unit=torch.zeros_like(rows),
        units=1,
        asked=_at(targets.asked, masked),
    )
    return alone


def every_row(material: Material) -> Material:
    """The same units and losses, but with every row in the decoder, in the order of the rows.

    A row without a mask gets one of zeros, planes of zeros, and a flag by which it counts for
    nothing. Engines that work on all rows at once need that: a layer that sees a part of the
    rows only would give them gradients in the wrong places.
    """
    batch, targets = material.batch, material.targets
    count, masked = len(batch.images), batch.lung_rows
    full = Material(
        replace(
            batch,
            lung_rows=torch.arange(count, device=masked.device),
            masks=_spread(batch.masks, masked, count),
            outlined=_spread(_flags(batch.outlined, masked), masked, count),
        ),
        None if material.planes is None else _spread(material.planes, masked, count),
        material.strong,
    )
    if targets is None or material.strong is None:
        return full
    count, masked = len(material.strong), targets.lung_rows
    full.targets = replace(
        targets,
        lung_rows=torch.arange(count, device=masked.device),
        lungs=_spread(targets.lungs, masked, count),
        pixels=_spread(targets.pixels, masked, count),
        asked=_spread(_flags(targets.asked, masked), masked, count),
    )
    if material.strong_planes is not None:
        full.strong_planes = _spread(material.strong_planes, masked, count)
    return full


def _own(unit: Tensor, lung_rows: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """A unit's rows, which entries of `lung_rows` are its own, and these as rows of its own."""
    mine = unit == number
    place = mine.cumsum(0) - 1  # a row's number among the unit's rows
    masked = mine[lung_rows].nonzero().squeeze(1)
    return mine.nonzero().squeeze(1), masked, place[lung_rows[masked]]


def _at(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _flags(flags: Tensor | None, lung_rows: Tensor) -> Tensor:
    return torch.ones_like(lung_rows, dtype=torch.bool) if flags is None else flags


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values (M, ...) at their rows among `count`, and 0 elsewhere: (count, ...)."""
    return values.new_zeros((count, *values.shape[1:])).index_copy(0, rows, values)
