"""The shared parameters as one flat float32 vector, and the layout that names its parts.

One flat array is cheaper on Flower's wire than hundreds of tensors, and a layout hash makes a
broadcastable wrong shape, which Flower would average silently, impossible.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.errors import LayoutError, Problem
from common.findings import FINDINGS, LUNGS

Flat = npt.NDArray[np.float32]

# The model's parts (see common/model.py) whose parameters may travel.
ENCODER, FINDINGS_HEAD, LUNGS_HEAD = "encoder.", "findings.", "lungs."


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the shared parameters: what moves, then what is fixed.

    Each part is in the model's own order. fixed: how many of the names, at the end, are not
    trained; they go along once, with the base, and then stay as they are. encoder: how images
    enter the encoder and what normalises in it, which shapes do not tell.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    fixed: int = 0
    encoder: str = ""

    @cached_property
    def size(self) -> int:
        """P: how many float32 numbers are shared."""
        return sum(prod(shape) for shape in self.shapes)

    @cached_property
    def moving(self) -> int:
        """T: how many of them, the first ones, are trained and travel in every round."""
        return sum(prod(shape) for shape in self.shapes[: len(self.shapes) - self.fixed])

    def moved(self, shared: Flat, delta: Flat) -> Flat:
        """Shared parameters (P,) with a delta (T,) added to those that move: (P,) float32."""
        after = shared.copy()
        after[: self.moving] += delta
        return after

    @cached_property
    def sha256(self) -> str:
        """Hex digest of all of it and the findings: with the same one, sides can be averaged.

        The findings belong to it although local heads don't travel: a site with another list
        would train another task.
        """
        parts = [self.names, self.shapes, FINDINGS, self.fixed, self.encoder]
        text = json.dumps(parts, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def coverage(self, covers: Collection[str]) -> npt.NDArray[np.bool_]:
        """Which of the moving coordinates a site has trained, (T,) bool.

        covers: names of the findings that the site annotates, plus "lungs" if it has masks.
        The encoder is always covered. A row of the findings head belongs to one finding
        (Surgical Aggregation, arXiv 2301.06683, section 3: average a label's head over the
        sites that own the label).
        """
        annotated = np.array([finding in covers for finding in FINDINGS])
        parts = []
        moving = len(self.names) - self.fixed
        for name, shape in zip(self.names[:moving], self.shapes[:moving], strict=True):
            if name.startswith(FINDINGS_HEAD):
                parts.append(np.repeat(annotated, prod(shape) // len(FINDINGS)))
            else:
                covered = not name.startswith(LUNGS_HEAD) or LUNGS in covers
                parts.append(np.full(prod(shape), covered))
        return np.concatenate(parts)


def shared_layout(model: nn.Module, heads: Literal["local", "shared"]) -> Layout:
    """The layout of what is shared: the encoder, and the heads too if they are shared.

    What does not require a gradient is fixed.
    """
    prefixes = (ENCODER,) if heads == "local" else (ENCODER, FINDINGS_HEAD, LUNGS_HEAD)
    shared = [(n, p) for n, p in model.named_parameters() if n.startswith(prefixes)]
    moving = [(name, tuple(p.shape)) for name, p in shared if p.requires_grad]
    fixed = [(name, tuple(p.shape)) for name, p in shared if not p.requires_grad]
    names, shapes = zip(*moving, *fixed, strict=True)
    return Layout(names, shapes, len(fixed), str(getattr(model, "words", "")))


def flatten(model: nn.Module, layout: Layout) -> Flat:
    """The model's shared parameters, (P,) float32, copied to the CPU."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parts = [parameters[name].detach().reshape(-1).float() for name in layout.names]
        return torch.cat(parts).cpu().numpy().copy()


def load_flat(model: nn.Module, layout: Layout, flat: Flat) -> None:
    """Copy a (P,) float32 vector into the model, in place.

    Raises LayoutError when the vector has another length.
    """
    if flat.shape != (layout.size,):
        raise LayoutError(
            Problem(
                "shared parameters",
                "",
                f"shape {flat.shape}",
                f"({layout.size},), the layout of the plan's model",
                "Use the same plan and the same version of Consilium on both sides.",
            )
        )
    parameters = dict(model.named_parameters())
    source = torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float32))
    start = 0
    with torch.no_grad():
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            end = start + prod(shape)
            parameters[name].copy_(source[start:end].view(shape))
            start = end
