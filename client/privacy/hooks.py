"""The opacus engine: gradients per row from Opacus' hooks, folded to units.

One forward and one backward pass for all units. Opacus' samplers are right for some layers only
and silent about the others: `client.privacy.choose` refuses what is known to go wrong, and every
portion is checked against the gradient that PyTorch itself gives for the sum. The hooks are
there while a portion is worked on, and at no other time.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor

from client.privacy.engines import clip_and_add_all
from client.privacy.material import Material, Weights, every_row, losses_of
from common.errors import InputError, Problem
from common.model import MultitaskModel, Outputs

AGREE = 1e-4  # relative error of a healthy sum in float32: 1e-6; of a sampler gone wrong: 0.2 to 1


class OpacusEngine:
    """All rows of all units in one pass."""

    name = "opacus"

    def __init__(self, model: MultitaskModel) -> None:
        """model: one that `client.privacy.choose` has nothing against."""
        self._model = model
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def add_clipped(
        self, material: Material, weights: Weights, clipping_norm: float, total: list[Tensor]
    ) -> None:
        """See Engine. Raises InputError when Opacus' gradients turn out wrong."""
        full = every_row(material)
        if weights.consistency == 0:
            full.strong = full.targets = full.strong_planes = None
        unit = full.batch.unit
        if full.targets is not None:
            unit = torch.cat([unit, full.targets.unit])
        with _hooked(self._model):
            loss = losses_of(*self._outputs(material, full), full, weights).sum()
            if not loss.requires_grad:
                return
            sums = torch.autograd.grad(loss, self._trained, allow_unused=True)
            rows = [_rows(parameter, len(unit)) for parameter in self._trained]
        _check(rows, sums)
        units = [_folded(each, unit, full.batch.units) for each in rows]
        clip_and_add_all(units, clipping_norm, total)

    def _outputs(self, material: Material, full: Material) -> tuple[Outputs, Outputs | None]:
        """Outputs on the batch and on the strong views, from one pass over both.

        Two passes would add up the gradients of rows that only have the same number.
        """
        parts, planes = [full.batch.images], [full.planes]
        decoded = material.batch.lung_rows.numel() > 0
        if full.strong is not None and material.targets is not None:
            parts, planes = [*parts, full.strong], [*planes, full.strong_planes]
            decoded |= material.targets.lung_rows.numel() > 0
        images = _joined(parts)
        lung_rows = torch.arange(len(images) if decoded else 0, device=images.device)
        crossing = self._crossing(parts, planes) if decoded else None
        outputs: Outputs = self._model(images, lung_rows, crossing)
        count = len(full.batch.images)
        taught = Outputs(_part(outputs.findings, 0, count), _part(outputs.lungs, 0, count))
        if full.strong is None:
            return taught, None
        end = len(images)
        followed = Outputs(_part(outputs.findings, count, end), _part(outputs.lungs, count, end))
        return taught, followed

    def _crossing(self, parts: list[Tensor], planes: list[Tensor | None]) -> Tensor | None:
        """The planes of all rows. Where no row of a part is decoded there are none: zeros."""
        given = next((each for each in planes if each is not None), None)
        if given is None:
            return None
        shape = given.shape[1:]
        pairs = zip(parts, planes, strict=True)
        return _joined([given.new_zeros(len(a), *shape) if b is None else b for a, b in pairs])

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


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts (B, C, S, S), one after the other, in NCHW memory: Opacus takes others for it."""
    return torch.cat(parts).clone(memory_format=torch.contiguous_format)


def _part(values: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if values is None else values[start:end]


def _rows(parameter: Tensor, count: int) -> Tensor:
    """Each row's gradient, (count, ...); zeros for a parameter that no row used."""
    rows = getattr(parameter, "grad_sample", None)
    if rows is None:
        return parameter.new_zeros((count, *parameter.shape))
    if not isinstance(rows, Tensor) or len(rows) != count:
        raise InputError(_unfit("opacus, which cannot tell the rows of this network apart"))
    return rows


def _folded(rows: Tensor, unit: Tensor, units: int) -> Tensor:
    """Gradients of rows (B, ...), added up by unit: (U, ...)."""
    return rows.new_zeros((units, *rows.shape[1:])).index_add_(0, unit, rows)


def _check(rows: list[Tensor], sums: tuple[Tensor | None, ...]) -> None:
    """Raise InputError unless the rows add up to what PyTorch gives for all together.

    Rounding is in proportion to the rows, which may be much longer than their sum.
    """
    error = length = torch.zeros((), dtype=torch.float64)
    for each, expected in zip(rows, sums, strict=True):
        wrong = each.sum(dim=0) - (0 if expected is None else expected)
        error = error + wrong.double().square().sum().cpu()
        length = length + each.double().square().sum().cpu()
    if not bool((error + length).isfinite()):
        return  # a unit that is not finite adds 0, and leaves nothing to compare with
    if bool(error.sqrt() > AGREE * length.sqrt()):
        ratio = float(error.sqrt() / length.sqrt().clamp_min(1e-12))
        raise InputError(_unfit(f"opacus, wrong by {ratio:.0%} on this network"))


def _unfit(found: str) -> Problem:
    next_step = "Set engine to auto or loop: these are right for every network."
    return Problem("site.yaml", "key 'engine'", found, "auto, loop", next_step)
