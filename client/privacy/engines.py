"""Engines: how the clipped gradients of single units are worked out and added up.

DP-SGD (Abadi et al., CCS 2016, algorithm 1, lines "compute gradient" and "clip gradient"): the
gradient of a unit's loss over everything that is trained, encoder and heads together, scaled
down to the clipping norm. All engines give the same sum; `client.privacy.choose` says which one
a site uses. Gradients are float32 on any device, whatever plain training does on a GPU.

What a unit adds depends on the unit and the weights alone, to the last bit: with weights that
somebody chose for it, even a rounding error can be as long as the clipping norm. So a unit is
computed alone (loop), or among a constant number of units of its own form (vmap, opacus).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from client.privacy.material import (
    Form,
    Material,
    Weights,
    form_of,
    in_form,
    losses,
    parts,
    teaches,
)
from common.model import MultitaskModel

# Added to a norm before dividing by it, so that a clipped gradient stays below the clipping norm
# after rounding, and a gradient of 0 is no special case.
SMALL = 1e-6
# How many units wait, made ready, for each thread of the loop.
WAITING = 4
# Most units of a group. Few are quick enough on a CPU; a GPU takes what the memory allows.
GROUP_ON_CPU = 8


class Engine(Protocol):
    """Adds up clipped gradients of units."""

    name: str

    def add_clipped(
        self,
        materials: Iterable[Material],
        weights: Weights,
        clipping_norm: float,
        total: list[Tensor],
    ) -> None:
        """Add the sum over units u of g_u min(1, C / (|g_u| + 1e-6)) to `total`, in place.

        materials: one for each unit of the step, which are differentiated with the model in
        training mode. total: one float64 tensor for each trained parameter, in the model's order.
        |g_u| is the L2 norm over all of them, in float64. A unit whose gradient is not finite
        adds 0. Parameters and their `grad` stay as they are.
        """

    def close(self) -> None:
        """Leave the model as it was before; the engine is not used again."""


def clip_and_add(
    gradients: Sequence[Tensor | None], clipping_norm: float, total: Sequence[Tensor]
) -> bool:
    """Add one unit's gradient to `total`, in place, scaled so that its L2 norm is below the norm.

    gradients: one for each tensor of total, of its shape; None is 0. Returns whether the
    gradient is finite; one that is not adds 0.
    """
    pairs = [(g, t) for g, t in zip(gradients, total, strict=True) if g is not None]
    if not pairs:
        return True
    squares = torch.stack([norms(g.unsqueeze(0)).square() for g, _ in pairs]).sum()
    return _add_scaled(pairs, float(scales(squares, clipping_norm)))


def clip_and_add_all(
    gradients: Sequence[Tensor], count: int, clipping_norm: float, total: Sequence[Tensor]
) -> list[int]:
    """The same for the first `count` of U units: gradients (U, ...) for each tensor of total.

    They are added one after the other, as `clip_and_add` adds them. Returns the numbers of those
    that are not finite.
    """
    squares = torch.stack([norms(gradient).square() for gradient in gradients]).sum(dim=0)
    factors = scales(squares, clipping_norm)[:count].tolist()
    bad = []
    for number, factor in enumerate(factors):
        pairs = [(g[number], t) for g, t in zip(gradients, total, strict=True)]
        if not _add_scaled(pairs, factor):
            bad.append(number)
    return bad


def _add_scaled(pairs: Sequence[tuple[Tensor, Tensor]], factor: float) -> bool:
    if factor == 0:
        return False
    for gradient, sum_ in pairs:
        sum_.add_(gradient, alpha=factor)
    return True


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
    are gone before the next unit's are made, and of a unit with many images so are those of
    its parts. On a CPU the fastest, too, but for tiny networks, with as many units side by side
    as torch has threads, each of them on one: convolutions of one image share badly, and how
    many threads share one may change the last bits.
    """

    name = "loop"

    def __init__(self, model: MultitaskModel, most: int) -> None:
        """most: images in memory at once."""
        self._model, self._most = model, most
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def add_clipped(
        self,
        materials: Iterable[Material],
        weights: Weights,
        clipping_norm: float,
        total: list[Tensor],
    ) -> None:
        """See Engine. The order of the sum is not fixed."""
        turn = Lock()

        def add(material: Material) -> None:
            gradients = self.gradients(material, weights)
            with turn:
                clip_and_add(gradients, clipping_norm, total)

        on_cpu = next(self._model.parameters()).device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        for some in _batches(materials, WAITING * threads):
            run_all(add, some, threads)

    def gradients(self, material: Material, weights: Weights) -> list[Tensor | None]:
        """One unit's gradient for each trained parameter; None where nothing teaches it."""
        total: list[Tensor | None] = [None] * len(self._trained)
        for part, shares in parts(material, weights, self._most):
            if not teaches(part, weights):
                continue
            [loss] = losses(self._model, part, shares)
            if not loss.requires_grad:
                continue
            own = torch.autograd.grad(loss, self._trained, allow_unused=True)
            for number, gradient in enumerate(own):
                total[number] = _sum(total[number], gradient)
        return total

    def close(self) -> None:
        """Nothing to undo."""


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _batches(materials: Iterable[Material], count: int) -> Iterator[list[Material]]:
    waiting = iter(materials)
    while some := list(islice(waiting, count)):
        yield some


def run_all(work: Callable[[Material], None], materials: Sequence[Material], threads: int) -> None:
    """Call `work` for each material, in as many threads, each of which computes alone."""
    if threads == 1:
        for material in materials:
            work(material)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, materials))
    finally:
        torch.set_num_threads(threads)  # the initializer has set it for more than its own thread


def groups(
    materials: Iterable[Material], weights: Weights, most: int
) -> Iterator[tuple[Form | None, list[Material], int]]:
    """Units side by side: their form, always the same number of them, and how many count.

    The number follows from the form and from `most` images: how a result is rounded may depend
    on how many are computed at once, and must not tell whether another unit is there. A short
    group is filled up with copies of its first unit, which do not count. A unit with more than
    `most` images comes alone, with None for its form.
    """
    waiting: dict[Form, list[Material]] = {}
    for material in materials:
        ready = in_form(material, weights)
        form = form_of(ready)
        if form.images > most:
            yield None, [material], 1
            continue
        units = waiting.setdefault(form, [])
        units.append(ready)
        if len(units) == _places(form, ready, most):
            yield form, waiting.pop(form), len(units)
    for form, units in waiting.items():
        missing = _places(form, units[0], most) - len(units)
        yield form, units + [units[0]] * missing, len(units)


def _places(form: Form, material: Material, most: int) -> int:
    places = max(1, most // form.images)
    return min(places, GROUP_ON_CPU) if material.batch.images.device.type == "cpu" else places
