"""The vmap engine: the gradients of many units at once, by torch.func.

It differentiates the very function that the loop engine does, and lets PyTorch batch it over
units. That is right for every layer that has a batching rule, and PyTorch says when one has
none; but it needs memory for all units at once, and random layers are refused.
"""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pad_sequence

from client.privacy.engines import clip_and_add_all
from client.privacy.material import Material, Weights, every_row, losses
from common.losses import Batch, Targets
from common.model import MultitaskModel, Outputs

Table = dict[str, Tensor]


class VmapEngine:
    """Units that are filled up to the same number of rows, and then taken all at once."""

    name = "vmap"

    def __init__(self, model: MultitaskModel) -> None:
        self._model = model
        self._trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def add_clipped(
        self, material: Material, weights: Weights, clipping_norm: float, total: list[Tensor]
    ) -> None:
        """See Engine."""
        full = every_row(material)
        for units in alike(material):
            table = _batch_table(full, units)
            if weights.consistency > 0:
                table |= _strong_table(full, units)
            gradients = self._gradients(table, weights)
            clip_and_add_all(list(gradients.values()), clipping_norm, total)

    def _gradients(self, table: Table, weights: Weights) -> Table:
        """Each parameter's gradients, (U, ...), of the units of a table."""
        # What is decoded must be settled before vmap, where no value may decide anything.
        decoded = bool(table["outlined"].any()), "asked" in table and bool(table["asked"].any())

        def run(trained: Table) -> "_Run":
            return _Run(self._model, trained)

        def loss(trained: Table, rows: Table) -> Tensor:
            return losses(run(trained), _one(rows, *decoded), weights)[0]

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


def alike(material: Material) -> list[Tensor]:
    """All unit numbers, in groups of units with similar numbers of rows, the largest first.

    Filled up to its largest unit, a group has about as many rows as the whole material, or less:
    one patient with many images must not multiply the memory that all others take.
    """
    sizes = torch.bincount(material.batch.unit, minlength=material.batch.units)
    if material.targets is not None:
        sizes = sizes + torch.bincount(material.targets.unit, minlength=material.batch.units)
    most, groups = int(sizes.sum()), []
    left = sizes.argsort(descending=True, stable=True)
    while len(left):
        count = max(1, most // max(1, int(sizes[left[0]])))
        groups.append(left[:count])
        left = left[count:]
    return groups


def _batch_table(full: Material, units: Tensor) -> Table:
    batch = full.batch
    assert batch.outlined is not None  # every_row gives it
    table = {
        "images": batch.images,
        "targets": batch.targets,
        "known": batch.known,
        "masks": batch.masks,
        "outlined": batch.outlined,
    }
    if full.planes is not None:
        table["planes"] = full.planes
    return _filled_up(table, batch.unit, units)


def _strong_table(full: Material, units: Tensor) -> Table:
    targets, strong = full.targets, full.strong
    if targets is None or strong is None or not bool(torch.isin(targets.unit, units).any()):
        return {}
    assert targets.asked is not None  # every_row gives it
    table = {
        "strong": strong,
        "findings": targets.findings,
        "weights": targets.weights,
        "open": targets.open,
        "lungs": targets.lungs,
        "pixels": targets.pixels,
        "asked": targets.asked,
    }
    if full.strong_planes is not None:
        table["strong_planes"] = full.strong_planes
    return _filled_up(table, targets.unit, units)


def _filled_up(table: Table, unit: Tensor, units: Tensor) -> Table:
    """Values (B, ...) of rows as (U, K, ...): K rows for each unit, the last of them zeros."""
    own = [(unit == number).nonzero().squeeze(1) for number in units]
    rows = pad_sequence(own, batch_first=True, padding_value=-1)
    filled: Table = {}
    for name, values in table.items():
        filled[name] = values[rows.clamp_min(0)]
        filled[name][rows < 0] = 0
    return filled


def _one(rows: Table, decoded: bool, strong_decoded: bool) -> Material:
    """One unit's rows of a table as Material. decoded: whether any unit has a mask at all."""
    unit = torch.zeros(len(rows["images"]), dtype=torch.int64, device=rows["images"].device)
    everyone = torch.arange(len(unit), device=unit.device)
    material = Material(
        Batch(
            images=rows["images"],
            targets=rows["targets"],
            known=rows["known"],
            lung_rows=everyone if decoded else everyone[:0],
            masks=rows["masks"],
            unit=unit,
            units=1,
            outlined=rows["outlined"],
        ),
        rows.get("planes"),
    )
    if "strong" not in rows:
        return material
    unit = torch.zeros(len(rows["strong"]), dtype=torch.int64, device=unit.device)
    everyone = torch.arange(len(unit), device=unit.device)
    material.strong, material.strong_planes = rows["strong"], rows.get("strong_planes")
    material.targets = Targets(
        findings=rows["findings"],
        weights=rows["weights"],
        open=rows["open"],
        lung_rows=everyone if strong_decoded else everyone[:0],
        lungs=rows["lungs"],
        pixels=rows["pixels"],
        unit=unit,
        units=1,
        asked=rows["asked"],
    )
    return material
