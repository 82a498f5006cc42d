"""Noise that nobody can repeat: right in its distribution, fresh in every process and call."""

import math
import os

import pytest
import torch
from scipy import stats

from client.privacy.random import SecureRandom

N = 200_000
# Kolmogorov-Smirnov at this p fails by chance once in a million runs: the numbers have no seed.
BY_CHANCE = 1e-6


def test_uniform_numbers_are_uniform_and_inside() -> None:
    numbers = SecureRandom().uniform(N)
    assert numbers.dtype == torch.float64
    assert numbers.shape == (N,)
    assert numbers.min() > 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > BY_CHANCE


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\x7f", b"\x80"])
def test_the_ends_are_never_reached(monkeypatch: pytest.MonkeyPatch, byte: bytes) -> None:
    """0 would make infinite noise, and 1 would make none."""
    monkeypatch.setattr(os, "urandom", lambda n: byte * n)
    number = SecureRandom().uniform(3)
    assert torch.all((number > 0.0) & (number < 1.0))
    assert SecureRandom().normal((3,), 1.0).isfinite().all()


@pytest.mark.parametrize("strict", [False, True])
def test_normal_numbers_are_normal(strict: bool) -> None:
    numbers = SecureRandom(strict).normal((N // 100, 10, 10), 3.0)
    assert numbers.dtype == torch.float64
    assert numbers.shape == (N // 100, 10, 10)
    flat = numbers.flatten().numpy()
    assert stats.kstest(flat, "norm", args=(0.0, 3.0)).pvalue > BY_CHANCE
    assert float(numbers.std()) == pytest.approx(3.0, rel=6 / math.sqrt(2 * N))
    assert float(numbers.mean()) == pytest.approx(0.0, abs=3.0 * 6 / math.sqrt(N))
    # The two halves of Box and Muller share their sources, yet are independent.
    assert abs(stats.pearsonr(flat[: N // 2], flat[N // 2 :])[0]) < 6 / math.sqrt(N // 2)
    assert abs(stats.pearsonr(flat[: N // 2] ** 2, flat[N // 2 :] ** 2)[0]) < 6 / math.sqrt(N // 2)


def test_strict_takes_four_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or real(n))  # type: ignore[func-returns-value]
    SecureRandom(strict=False).normal((10,), 1.0)
    SecureRandom(strict=True).normal((10,), 1.0)
    assert asked == [80] * 5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (0, 4)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    assert SecureRandom().normal(shape, 1.0).shape == shape
    assert SecureRandom(strict=True).normal(torch.Size(shape), 0.0).abs().sum() == 0.0
    assert SecureRandom().uniform(0).shape == (0,)


def test_no_seed_of_torch_repeats_it() -> None:
    torch.manual_seed(5)
    first = SecureRandom().normal((8,), 1.0)
    torch.manual_seed(5)
    assert not torch.equal(first, SecureRandom().normal((8,), 1.0))


def test_a_forked_process_does_not_repeat_its_parent() -> None:
    random = SecureRandom()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, random.uniform(4).numpy().tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 32) != random.uniform(4).numpy().tobytes()
    os.close(read)
    os.close(write)


def test_seeds_are_63_bits_and_differ() -> None:
    seeds = {SecureRandom().seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    torch.Generator().manual_seed(max(seeds))
