"""The opacus engine: gradients per row from Opacus' hooks, folded to units.

One forward and one backward pass for a group of units. Opacus' samplers are right for some layers
only and silent about the others: `client.privacy.choose` refuses what is known to go wrong, and
before its first step the engine is tried on public noise against plain differentiation. Where
they differ the loop takes over. No patient's image decides that: a refusal would tell of it. The
hooks are there while a group is worked on, and at no other time.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn

from client.privacy.engines import LoopEngine, clip_and_add_all, groups
from client.privacy.material import (
    Form,
    Material,
    Weights,
    form_of,
    in_form,
    losses_of,
    those_there,
)
from client.privacy.trial import public_units
from common.encoder import Affine
from common.errors import InputError, Problem
from common.losses import Batch, joined_targets
from common.model import MultitaskModel, Outputs

AGREE = 1e-4  # relative error of a healthy gradient in float32: 1e-6; of a wrong one: 0.2 to 1


@register_grad_sampler(Affine)  # type: ignore[untyped-decorator]
def affine_rows(
    layer: Affine, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Each row's gradients, (B, C), of y = a x + b: sums over space of g x and of g."""
    over_space = {
        layer.weight: (activations[0] * backprops).sum(dim=(2, 3)),
        layer.bias: backprops.sum(dim=(2, 3)),
    }
    return {parameter: rows for parameter, rows in over_space.items() if parameter.requires_grad}


class OpacusEngine:
    """All rows of a constant number of units of one form in one pass."""

    name = "opacus"

    def __init__(self, model: MultitaskModel, most: int) -> None:
        """model: one that `client.privacy.choose` has nothing against. most: images in memory."""
        self._model, self._most = model, most
        self._loop = LoopEngine(model, most)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        decoder = [] if model.lungs is None else list(model.lungs.parameters())
        self._decoding = [any(p is each for each in decoder) for p in self._trained]
        self._proofs: dict[bool, bool] = {}

    def add_clipped(
        self,
        materials: Iterable[Material],
        weights: Weights,
        clipping_norm: float,
        total: list[Tensor],
    ) -> None:
        """See Engine. Raises InputError for a network that Opacus cannot work with at all."""
        waiting = iter(materials)
        first = next(waiting, None)
        if first is None:
            return
        everyone = chain([first], waiting)
        if not self._proved(tuple(first.batch.images.shape[1:]), weights):
            self._loop.add_clipped(everyone, weights, clipping_norm, total)
            return
        for form, units, count in groups(everyone, weights, self._most):
            left = units
            if form is not None:
                gradients = self._gradients(units, form, weights)
                bad = clip_and_add_all(gradients, count, clipping_norm, total)
                left = [units[number] for number in bad]
            self._loop.add_clipped(left, weights, clipping_norm, total)

    def _proved(self, shape: tuple[int, ...], weights: Weights) -> bool:
        """Whether Opacus agrees with plain differentiation on public noise: asked once."""
        taught = weights.consistency > 0
        if taught not in self._proofs:
            units = [in_form(unit, weights) for unit in public_units(self._model, shape)]
            found = self._gradients(units, form_of(units[0]), weights)
            self._proofs[taught] = all(
                _agree([each[number] for each in found], self._loop.gradients(unit, weights))
                for number, unit in enumerate(units)
            )
        return self._proofs[taught]

    def _gradients(self, units: Sequence[Material], form: Form, weights: Weights) -> list[Tensor]:
        """Each parameter's gradients, (U, ...), of units of one form."""
        joined = _joined(units)
        with _hooked(self._model):
            loss = losses_of(*self._outputs(joined), joined, weights).sum()
            if not loss.requires_grad:
                return [p.new_zeros((len(units), *p.shape)) for p in self._trained]
            torch.autograd.grad(loss, self._trained, allow_unused=True)
            return [
                _folded(parameter, len(units), *_rows(form, decoding))
                for parameter, decoding in zip(self._trained, self._decoding, strict=True)
            ]

    def _outputs(self, joined: Material) -> tuple[Outputs, Outputs | None]:
        """Outputs on the batch and on the strong views, from one pass over both.

        Two passes would add up the gradients of rows that only have the same number.
        """
        batch, strong, targets = joined.batch, joined.strong, joined.targets
        if strong is None or targets is None:
            return self._model(_plain(batch.images), batch.lung_rows, joined.planes), None
        rows, masks = len(batch.images), len(batch.lung_rows)
        outputs: Outputs = self._model(
            _plain(torch.cat([batch.images, strong])),
            torch.cat([batch.lung_rows, targets.lung_rows + rows]),
            those_there([joined.planes, joined.strong_planes]),
        )
        findings, lungs = outputs.findings, outputs.lungs
        return (
            Outputs(_part(findings, 0, rows), _part(lungs, 0, masks)),
            Outputs(_part(findings, rows, None), _part(lungs, masks, None)),
        )

    def close(self) -> None:
        """Nothing to undo: the hooks are gone already."""


@contextmanager
def _hooked(model: MultitaskModel) -> Iterator[None]:
    """Put Opacus' hooks on the model, and take away everything of theirs afterwards."""
    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # An image needs no gradient, and PyTorch wonders about a hook on the first layer.
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            yield
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise InputError(_unfit("opacus for a network that writes into its results")) from None
    finally:
        hooks.cleanup()
        for module in model.modules():
            for left in ("activations", "max_batch_len"):
                if hasattr(module, left):
                    delattr(module, left)


def _joined(units: Sequence[Material]) -> Material:
    """Units of one form as a material of U units, one after the other."""
    batches = [unit.batch for unit in units]
    joined = Material(
        Batch(
            images=torch.cat([batch.images for batch in batches]),
            targets=torch.cat([batch.targets for batch in batches]),
            known=torch.cat([batch.known for batch in batches]),
            lung_rows=_shifted([batch.lung_rows for batch in batches], len(batches[0].images)),
            masks=torch.cat([batch.masks for batch in batches]),
            unit=_shifted([batch.unit for batch in batches], 1),
            units=len(units),
        ),
        those_there([unit.planes for unit in units]),
    )
    lessons = [unit.targets for unit in units if unit.targets is not None]
    if lessons:
        joined.strong = those_there([unit.strong for unit in units])
        joined.strong_planes = those_there([unit.strong_planes for unit in units])
        joined.targets = joined_targets(lessons, range(len(units)), len(units))
    return joined


def _shifted(rows: list[Tensor], step: int) -> Tensor:
    """Numbers of each unit's own rows, one unit after the other, as numbers among all rows."""
    return torch.cat([each + number * step for number, each in enumerate(rows)])


def _plain(images: Tensor) -> Tensor:
    """The images in NCHW memory: Opacus takes others for it."""
    return images.clone(memory_format=torch.contiguous_format)


def _part(values: Tensor | None, start: int, end: int | None) -> Tensor | None:
    return None if values is None else values[start:end]


def _rows(form: Form, decoding: bool) -> tuple[int, int]:
    """How many rows of each unit a parameter sees: of the annotated view, and of its lessons."""
    return (form.masks, form.asked) if decoding else (form.rows, form.lessons)


def _folded(parameter: Tensor, units: int, rows: int, lessons: int) -> Tensor:
    """Gradients of rows, added up by unit: (U, ...); 0 for a parameter that no row used.

    The rows of all units come first, then the lessons of all units. Raises InputError when
    there are not that many.
    """
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        return parameter.new_zeros((units, *parameter.shape))
    if not isinstance(found, Tensor) or len(found) != units * (rows + lessons):
        raise InputError(_unfit("opacus, which cannot tell the rows of this network apart"))
    split = units * rows
    taught = found[:split].reshape(units, rows, *parameter.shape).sum(dim=1)
    followed = found[split:].reshape(units, lessons, *parameter.shape).sum(dim=1)
    return taught + followed


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor | None]) -> bool:
    """Whether one unit's gradients are finite and the same, but for rounding."""
    error = length = 0.0
    for one, other in zip(found, expected, strict=True):
        right = torch.zeros_like(one) if other is None else other
        error += float((one - right).double().square().sum())
        length += float(right.double().square().sum())
    return error <= AGREE**2 * length < float("inf")


def _unfit(found: str) -> Problem:
    next_step = "Set engine to auto or loop: these are right for every network."
    return Problem("site.yaml", "key 'engine'", found, "auto, loop", next_step)
