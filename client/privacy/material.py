"""What a private step learns from: the images of one unit, ready for the loss.

The loss is the one of plain training (`common.losses`), per unit. Every unit is a material of
its own, so that nothing of another unit can reach its gradient: no shape, no flag, no number of
rows. Here is also how a unit is brought into a form in which units can be compared, and how one
with many images is cut into parts.
"""

from collections.abc import Callable, Iterator, Sequence
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
    """The images of one unit; its loss averages over its rows, so a row may come repeatedly.

    batch: the annotated view. planes: (M, 2, S, S), what crosses the bridge for
    `batch.lung_rows`, detached; None without a bridge. strong: (R, 1, S, S) strong views, and
    targets: what the teacher says about them; both None without a teacher.
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


def those_there(values: Sequence[Tensor | None]) -> Tensor | None:
    """Those of the values (R, ...) that are there, one after the other; None if none is."""
    present = [each for each in values if each is not None]
    return torch.cat(present) if present else None


def apart(material: Material) -> Iterator[Material]:
    """Each unit of a material of U units, as a material of its own, in the order of the units."""
    for number in range(material.batch.units):
        yield _one_unit(material, number)


@dataclass(frozen=True)
class Form:
    """How many rows a unit has; units of one form can be worked on side by side.

    rows, masks: of the annotated view. lessons, asked: strong views, and those with lungs.
    """

    rows: int
    masks: int
    lessons: int
    asked: int

    @property
    def images(self) -> int:
        """How many images pass the encoder."""
        return self.rows + self.lessons


def form_of(material: Material) -> Form:
    """The form of one unit, as `in_form` returned it."""
    batch, targets = material.batch, material.targets
    lessons, asked = 0, 0
    if targets is not None:
        lessons, asked = len(targets.findings), len(targets.lung_rows)
    return Form(len(batch.images), len(batch.lung_rows), lessons, asked)


def in_form(material: Material, weights: Weights) -> Material:
    """The same unit and loss, but with the rows that are decoded first, in the masks' order.

    Without its lessons where the teacher's word counts for nothing.
    """
    batch, targets, strong = material.batch, material.targets, material.strong
    order = _decoded_first(batch.lung_rows, len(batch.images))
    first = Material(
        replace(
            batch,
            images=batch.images[order],
            targets=batch.targets[order],
            known=batch.known[order],
            lung_rows=_numbers(batch.lung_rows),
        ),
        material.planes,
    )
    if targets is None or strong is None or weights.consistency == 0:
        return first
    order = _decoded_first(targets.lung_rows, len(strong))
    first.strong, first.strong_planes = strong[order], material.strong_planes
    first.targets = replace(
        targets,
        findings=targets.findings[order],
        weights=targets.weights[order],
        open=targets.open[order],
        lung_rows=_numbers(targets.lung_rows),
    )
    return first


def parts(material: Material, weights: Weights, most: int) -> Iterator[tuple[Material, Weights]]:
    """One unit as parts of about `most` rows at most, whose losses add up to the unit's.

    A term of a part counts as much as the part has of the rows over which the term is a mean.
    A unit that fits is its own part with its own weights, to the bit. A part has a row of the
    annotated view in any case, and so may have a lesson beside it where `most` is 1.
    """
    form = form_of(material)
    count = 1
    while -(-form.rows // count) - (-form.lessons // count) > most and count < form.rows:
        count += 1
    if count <= 1:
        yield material, weights
        return
    whole = _denominators(material)
    numbered = _by_part(material, count)
    for part in apart(numbered):
        shares = [own / max(1, all_) for own, all_ in zip(_denominators(part), whole, strict=True)]
        yield (
            part,
            replace(
                weights,
                findings=weights.findings * shares[0],
                lungs=weights.lungs * shares[1],
                consistency_findings=weights.consistency_findings * shares[2],
                consistency_lungs=weights.consistency_lungs * shares[3],
            ),
        )


def _denominators(material: Material) -> tuple[int, int, int, int]:
    """Over how many rows each term of a unit's loss is a mean, as `common.losses` counts them."""
    batch, targets = material.batch, material.targets
    own = int(batch.known.any(dim=1).sum()), len(batch.lung_rows)
    if targets is None:
        return (*own, 0, 0)
    return (*own, int(targets.open.any(dim=1).sum()), len(targets.lung_rows))


def _by_part(material: Material, count: int) -> Material:
    """One unit's rows, dealt evenly to `count` units that are its parts."""
    batch, targets = material.batch, material.targets
    return replace(
        material,
        batch=replace(batch, unit=_dealt(batch.unit, count), units=count),
        targets=None
        if targets is None
        else replace(targets, unit=_dealt(targets.unit, count), units=count),
    )


def _dealt(unit: Tensor, count: int) -> Tensor:
    return torch.arange(len(unit), device=unit.device) * count // max(1, len(unit))


def _decoded_first(lung_rows: Tensor, count: int) -> Tensor:
    """The numbers of `count` rows, (count,) int64: those that are decoded, then the others."""
    others = torch.ones(count, dtype=torch.bool, device=lung_rows.device)
    others[lung_rows] = False
    return torch.cat([lung_rows, others.nonzero().squeeze(1)])


def _numbers(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)


def _one_unit(material: Material, number: int) -> Material:
    """The rows of unit `number` alone, as its only unit."""
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
    )
    return alone


def _own(unit: Tensor, lung_rows: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """A unit's rows, which entries of `lung_rows` are its own, and these as rows of its own."""
    mine = unit == number
    place = mine.cumsum(0) - 1  # a row's number among the unit's rows
    masked = mine[lung_rows].nonzero().squeeze(1)
    return mine.nonzero().squeeze(1), masked, place[lung_rows[masked]]


def _at(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
