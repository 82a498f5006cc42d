"""One step of differentially private gradient descent: clip each unit, add up, add noise.

Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1. The noise comes
from the kernel, in float64, and is added to the sum before anything else sees it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from client.privacy.engines import Engine
from client.privacy.material import Material, Weights
from client.privacy.random import SecureRandom


class PrivateStep:
    """Makes the gradient of one step and leaves it in the parameters' `grad`."""

    def __init__(
        self,
        engine: Engine,
        parameters: Sequence[nn.Parameter],
        random: SecureRandom,
        clipping_norm: float,
        noise_multiplier: float,
        nominal_batch: int,
    ) -> None:
        """parameters: all that are trained, encoder and heads, in the engine's order.

        nominal_batch: the public number of units by which the noisy sum is divided. How many
        were really drawn is a function of the data and must not show.
        """
        self._engine, self._parameters, self._random = engine, list(parameters), random
        self._clip, self._noise = clipping_norm, noise_multiplier
        self._batch = nominal_batch

    def step(self, materials: Iterable[Material], weights: Weights) -> None:
        """Sum the clipped gradients of every unit, add noise, divide.

        materials: one for each of the step's units; none at all is a step of pure noise, which
        counts like any other.
        """
        # In float64: rounding of a float32 sum could lift one unit's share above the clipping norm.
        total = [torch.zeros_like(p, dtype=torch.float64) for p in self._parameters]
        self._engine.add_clipped(materials, weights, self._clip, total)
        for parameter, clipped in zip(self._parameters, total, strict=True):
            parameter.grad = self._noisy(clipped).to(parameter.dtype)

    def _noisy(self, clipped: Tensor) -> Tensor:
        noise = self._random.normal(tuple(clipped.shape), self._noise * self._clip)
        return clipped.add_(noise.to(clipped.device)).div_(self._batch)
