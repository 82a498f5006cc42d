"""Engines: how the clipped gradients of single units are worked out and added up.

DP-SGD (Abadi et al., CCS 2016, algorithm 1, lines "compute gradient" and "clip gradient"): the
gradient of a unit's loss over everything that is trained, encoder and heads together, scaled
down to the clipping norm. All engines give the same sum; `client.privacy.choose` says which one
a site uses. Gradients are float32 on any device, whatever plain training does on a GPU.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from client.privacy.material import Material, Weights, losses, one_unit, teaches
from common.model import MultitaskModel

# Added to a norm before dividing by it, so that a clipped gradient stays below the clipping norm
# after rounding, and a gradient of 0 is no special case.
SMALL = 1e-6


class Engine(Protocol):
    """Adds up clipped gradients of units."""

    name: str

    def add_clipped(
        self, material: Material, weights: Weights, clipping_norm: float, total: list[Tensor]
    ) -> None:
        """Add the sum over units u of g_u min(1, C / (|g_u| + 1e-6)) to `total`, in place.

        material: U >= 1 units, whose losses are differentiated with the model in training mode.
        total: one tensor for each trained parameter, in the model's order, float32 or float64.
        |g_u| is the L2 norm over all of them, in float64. A unit whose gradient is not finite
        adds 0. Parameters and their `grad` stay as they are.
        """

    def close(self) -> None:
        """Leave the model as it was before; the engine is not used again."""


def clip_and_add(
    gradients: Sequence[Tensor | None], clipping_norm: float, total: Sequence[Tensor]
) -> None:
    """Add one unit's gradient to `total`, in place, scaled so that its L2 norm is below the norm.

    gradients: one for each tensor of total, of its shape; None is 0. Not finite adds 0.
    """
    pairs = [(g, t) for g, t in zip(gradients, total, strict=True) if g is not None]
    if not pairs:
        return
    squares = torch.stack([norms(g.unsqueeze(0)).square() for g, _ in pairs]).sum()
    factor = float(scales(squares, clipping_norm))
    if factor > 0:
        for gradient, sum_ in pairs:
            sum_.add_(gradient, alpha=factor)


def clip_and_add_all(
    gradients: Sequence[Tensor], clipping_norm: float, total: Sequence[Tensor]
) -> None:
    """The same for U units at once: gradients (U, ...) for each tensor (...) of total."""
    squares = torch.stack([norms(gradient).square() for gradient in gradients]).sum(dim=0)
    factors = scales(squares, clipping_norm)
    kept = factors.nonzero().squeeze(1)
    for gradient, sum_ in zip(gradients, total, strict=True):
        # Left out, not multiplied by 0: 0 times infinity is not 0.
        mine = gradient if len(kept) == len(factors) else gradient[kept]
        sum_.add_(torch.tensordot(factors[kept], mine.to(factors.dtype), dims=1))


def norms(gradients: Tensor) -> Tensor:
    """L2 norm of each of (U, ...): (U,) float64."""
    flat = gradients.reshape(len(gradients), -1)
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return lengths


def scales(squares: Tensor, clipping_norm: float) -> Tensor:
    """What to multiply gradients by, given their squared norms: same shape, 0 if not finite."""
    factors = (clipping_norm / (squares.sqrt() + SMALL)).clamp_max(1.0)
    return torch.where(squares.isfinite(), factors, torch.zeros_like(factors))


class LoopEngine:
    """One unit after the other, by plain automatic differentiation.

    Right for any layer and any loss, and the one that needs least memory: a unit's activations
    are gone before the next unit's are made. On a CPU the fastest, too, but for tiny networks,
    with as many units side by side as torch has threads: convolutions of one image share badly.
    """

    name = "loop"

    def __init__(self, model: MultitaskModel) -> None:
        self._model = model
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def add_clipped(
        self, material: Material, weights: Weights, clipping_norm: float, total: list[Tensor]
    ) -> None:
        """See Engine. The order of the sum is not fixed."""
        turn = Lock()

        def add(number: int) -> None:
            gradients = self._gradients(one_unit(material, number), weights)
            if gradients is not None:
                with turn:
                    clip_and_add(gradients, clipping_norm, total)

        on_cpu = material.batch.images.device.type == "cpu"
        run_all(add, material.batch.units, torch.get_num_threads() if on_cpu else 1)

    def _gradients(self, alone: Material, weights: Weights) -> Sequence[Tensor | None] | None:
        """One unit's gradient for each trained parameter; None when nothing teaches it."""
        if not teaches(alone, weights):
            return None
        [loss] = losses(self._model, alone, weights)
        if not loss.requires_grad:
            return None
        return torch.autograd.grad(loss, self._trained, allow_unused=True)

    def close(self) -> None:
        """Nothing to undo."""


def run_all(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call `work` for 0 to count - 1, in as many threads, each of which computes alone."""
    if threads == 1 or count == 1:
        for number in range(count):
            work(number)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, range(count)))
    finally:
        torch.set_num_threads(threads)  # the initializer has set it for more than its own thread
