"""Arithmetic under differential privacy: float32 proper, and the same way each time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """On a GPU no TF32, whose mantissa has 10 bits, and no choice of algorithm by a race.

    What a unit adds must depend on the unit alone. How a convolution or a matrix product is
    computed may depend on how many images there are, and on which algorithm was the fastest a
    moment ago.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
