"""Random numbers that nobody can repeat, for noise, sampling and augmentation of private steps.

All bits come from the kernel's generator (os.urandom): no seed exists that could be lost, sent
by a coordinator or guessed, and a forked process does not repeat its parent. torch's own CPU
generator is a Mersenne twister that keeps 32 bits of its seed; such noise could be recomputed and
taken off again (Garfinkel and Leclerc, arXiv 2009.03777).

Floating-point noise is not exactly Gaussian (Mironov, CCS 2012; Jin et al., arXiv 2112.05307).
float64 and the strict form make that harder to exploit; they do not prove it impossible.
"""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor


class SecureRandom:
    """Uniform and normal numbers from the kernel's generator, on the CPU in float64."""

    def __init__(self, strict: bool = False) -> None:
        """strict: each normal number is the sum of four, halved (Holohan and Braghin, arXiv
        2107.10138, the recipe of Opacus' secure mode): about four times slower."""
        self.strict = strict

    def uniform(self, n: int) -> Tensor:
        """n independent uniform numbers, (n,) float64, each strictly between 0 and 1.

        Their values are (i + 1/2) / 2^53 for whole i from 0 to 2^53 - 1, rounded to float64.
        """
        if n == 0:
            return torch.zeros(0, dtype=torch.float64)
        words = torch.frombuffer(bytearray(os.urandom(8 * n)), dtype=torch.int64)
        # Shifting an int64 keeps its sign; the mask leaves the upper 53 bits alone.
        fraction = ((words >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
        return fraction.clamp_(max=1.0 - 2.0**-53)  # the largest i would round up to 1

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        """Independent N(0, std^2) numbers: CPU tensor of that shape, float64."""
        count = math.prod(shape)
        if not self.strict:
            return self._box_muller(count).mul_(std).view(tuple(shape))
        total = torch.zeros(count, dtype=torch.float64)
        for _ in range(4):
            total += self._box_muller(count)
        return total.mul_(std / 2.0).view(tuple(shape))

    def seed(self) -> int:
        """A seed of 63 random bits, for a generator whose numbers need not be secret."""
        return int.from_bytes(os.urandom(8), "little") >> 1

    def _box_muller(self, count: int) -> Tensor:
        """(count,) standard normal numbers, float64 (Box and Muller, 1958)."""
        half = (count + 1) // 2
        uniform = self.uniform(2 * half)
        radius = uniform[:half].log_().mul_(-2.0).sqrt_()
        angle = uniform[half:].mul_(2.0 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
