"""The vmap engine: the gradients of many units at once, by torch.func.

It differentiates the very function that the loop engine does, and lets PyTorch batch it over
units. That is right for every layer that has a batching rule, and PyTorch says when one has
none; but it needs memory for all units at once, and random layers are refused.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from client.privacy.engines import LoopEngine, clip_and_add_all, groups
from client.privacy.material import Form, Material, Weights, losses
from common.losses import Batch, Targets
from common.model import MultitaskModel, Outputs

Table = dict[str, Tensor]


class VmapEngine:
    """Units of one form side by side, always the same number of them."""

    name = "vmap"

    def __init__(self, model: MultitaskModel, most: int) -> None:
        """most: images in memory at once."""
        self._model, self._most = model, most
        self._loop = LoopEngine(model, most)
        self._trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def add_clipped(
        self,
        materials: Iterable[Material],
        weights: Weights,
        clipping_norm: float,
        total: list[Tensor],
    ) -> None:
        """See Engine. What is too large or not finite here is the loop's to decide."""
        for form, units, count in groups(materials, weights, self._most):
            left = units
            if form is not None:
                gradients = self._gradients(_table(units), form, weights)
                bad = clip_and_add_all(list(gradients.values()), count, clipping_norm, total)
                left = [units[number] for number in bad]
            self._loop.add_clipped(left, weights, clipping_norm, total)

    def _gradients(self, table: Table, form: Form, weights: Weights) -> Table:
        """Each parameter's gradients, (U, ...), of the units of a table."""

        def run(trained: Table) -> "_Run":
            return _Run(self._model, trained)

        def loss(trained: Table, rows: Table) -> Tensor:
            return losses(run(trained), _one(rows, form), weights)[0]

        gradients: Table = vmap(grad(loss), in_dims=(None, 0))(self._trained, table)
        return gradients

    def close(self) -> None:
        """Nothing to undo."""


class _Run:
    """The model with other parameters than its own."""

    def __init__(self, model: MultitaskModel, trained: Table) -> None:
        self._model, self._trained = model, trained

    def __call__(self, images: Tensor, lung_rows: Tensor, planes: Tensor | None) -> Outputs:
        outputs: Outputs = functional_call(self._model, self._trained, (images, lung_rows, planes))
        return outputs


def _table(units: Sequence[Material]) -> Table:
    """What units of one form hold, (U, ...) each."""
    tables = [_values(unit) for unit in units]
    return {name: torch.stack([table[name] for table in tables]) for name in tables[0]}


def _values(unit: Material) -> Table:
    batch, targets = unit.batch, unit.targets
    values: dict[str, Tensor | None] = {
        "images": batch.images,
        "targets": batch.targets,
        "known": batch.known,
        "masks": batch.masks,
        "planes": unit.planes,
        "strong": unit.strong,
        "strong_planes": unit.strong_planes,
    }
    if targets is not None:
        values |= {
            "findings": targets.findings,
            "weights": targets.weights,
            "open": targets.open,
            "lungs": targets.lungs,
            "pixels": targets.pixels,
        }
    return {name: value for name, value in values.items() if value is not None}


def _one(rows: Table, form: Form) -> Material:
    """One unit's rows of a table as Material."""
    device = rows["images"].device
    material = Material(
        Batch(
            images=rows["images"],
            targets=rows["targets"],
            known=rows["known"],
            lung_rows=torch.arange(form.masks, device=device),
            masks=rows["masks"],
            unit=torch.zeros(form.rows, dtype=torch.int64, device=device),
            units=1,
        ),
        rows.get("planes"),
        rows.get("strong"),
        strong_planes=rows.get("strong_planes"),
    )
    if form.lessons > 0:
        material.targets = Targets(
            findings=rows["findings"],
            weights=rows["weights"],
            open=rows["open"],
            lung_rows=torch.arange(form.asked, device=device),
            lungs=rows["lungs"],
            pixels=rows["pixels"],
            unit=torch.zeros(form.lessons, dtype=torch.int64, device=device),
            units=1,
        )
    return material
