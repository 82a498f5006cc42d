"""Units of public noise, on which an engine is tried where no patient's image may decide."""

import torch
from torch import Tensor

from client.privacy.material import Material
from common.findings import FINDINGS
from common.losses import Batch, Targets
from common.model import MultitaskModel

UNITS = 2


def public_units(model: MultitaskModel, shape: tuple[int, ...]) -> list[Material]:
    """Two units of one form, with labels, a mask, a teacher's word and, if any, the bridge.

    shape: of one image, (1, S, S). The same on every machine for the same model and shape.
    """
    generator = torch.Generator().manual_seed(0)
    return [_public_unit(model, shape, generator) for _ in range(UNITS)]


def _public_unit(
    model: MultitaskModel, shape: tuple[int, ...], generator: torch.Generator
) -> Material:
    first = next(model.parameters())
    device = first.device

    def noise(rows: int, *more: int) -> Tensor:
        return torch.rand((rows, *more), generator=generator).to(device)

    count = 1 if model.lungs is not None else 0
    decoded = torch.arange(count, device=device)
    labels = len(FINDINGS)
    images, strong = noise(2, *shape).to(first.dtype), noise(1, *shape).to(first.dtype)
    everything = torch.ones((2, labels), dtype=torch.bool, device=device)
    return Material(
        Batch(
            images=images,
            targets=noise(2, labels).round(),
            known=everything,
            lung_rows=decoded,
            masks=noise(count, *shape).round(),
            unit=torch.zeros(2, dtype=torch.int64, device=device),
            units=1,
        ),
        model.planes(images[decoded]),
        strong,
        Targets(
            findings=noise(1, labels),
            weights=noise(1, labels),
            open=everything[:1],
            lung_rows=decoded,
            lungs=noise(count, *shape),
            pixels=noise(count, *shape) > 0.5,
            unit=torch.zeros(1, dtype=torch.int64, device=device),
            units=1,
        ),
        model.planes(strong[decoded]),
    )
