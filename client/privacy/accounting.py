"""What private steps cost: epsilon of everything charged so far, and the noise that fits.

Neighbouring data sets differ by one unit that is added or removed; every step draws its units
by Poisson sampling. The smaller of the two bounds of `client/privacy/bounds.py` counts, for both
are upper bounds. Whatever is asked takes a bounded time: where PRV would take longer, RDP alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version

from client.privacy.bounds import (
    FEW,
    MOST_ERROR,
    MOST_POINTS,
    History,
    alike,
    prv_epsilon,
    prv_error,
    rdp_epsilon,
)
from common.errors import InputError, Problem

LEAST_NOISE, MOST_NOISE = 0.01, 1e4  # less noise than the least is accounted as none
_STEP = 1e-3  # to which a solved noise multiplier is rounded up
_PRV_LIMIT = 60.0  # epsilon above which RDP alone counts: such a bound protects nobody anyway
# The error that PRV adds: of this share of epsilon, and at least so much. Opacus' default of 0.01
# would be a sixth of a spend of 0.06.
_ERROR_SHARE, _LEAST_ERROR = 0.005, 0.0015
_COARSE = 5.0  # in a first pass: times that error
_LEAST_DELTA = 1e-10  # below it, rounding in PRV's Fourier transforms shows: RDP alone counts
# What a search may cost, in points of PRV's meshes; every pass costs as many on top for each kind.
_SEARCH, _PASS = 3_000_000, 150_000


@dataclass(frozen=True)
class Charge:
    """`steps` private steps: each a Gaussian mechanism on a Poisson sample of the units.

    noise_multiplier: standard deviation of the noise / clipping norm (0: no noise, no bound);
    sampling_rate: the chance of a unit to be in a step, in (0, 1].
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no step can have."""
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be 0 or more, not {self.noise_multiplier}")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError(f"sampling_rate must be in (0, 1], not {self.sampling_rate}")
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, not {self.steps}")


def accountant() -> str:
    """Name and version of what computes epsilon, for reports and for the ledger."""
    return f"Opacus {version('opacus')}: smaller of RDP and PRV"


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of all charges together, at delta in (0, 1), for one unit added or removed.

    0.0 for no charges; math.inf when one of them has no noise. The order does not matter.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must be in (0, 1), not {delta}")
    merged = _merged(charges)
    return math.inf if merged is None else _epsilon(merged, delta)


@lru_cache(maxsize=4096)
def solve_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier, rounded up to 0.001, that keeps so many steps within epsilon.

    Where that would take long to find, some more. Raises InputError when even a noise
    multiplier of 10,000 does not.
    """
    # RDP is fast, and what it asks for is enough noise; the smaller bound asks for less.
    enough = math.ceil(quick_noise(epsilon, delta, sampling_rate, steps) / _STEP)
    least, low = round(LEAST_NOISE / _STEP), math.floor(0.8 * enough)
    too_little, tries = least - 1, _tries(((_noise(enough), sampling_rate, steps),), delta)
    above, below, middle = math.inf, epsilon, max(least, low)  # epsilons found at either end
    while enough - too_little > 1 and tries > 0:
        middle, tries = min(max(middle, too_little + 1), enough - 1), tries - 1
        found = _spent(_noise(middle), delta, sampling_rate, steps)
        if found <= epsilon:
            enough, below = middle, found
        else:
            too_little, above = middle, found
        middle = _between(too_little, above, enough, below, epsilon)
    return _noise(enough)


def _between(low: int, above: float, high: int, below: float, epsilon: float) -> int:
    """Where epsilon is reached, if its logarithm is straight in the noise's from low to high."""
    if not 0.0 < below < epsilon < above < math.inf or low < 1:
        return math.floor(0.9 * high) if above == math.inf else (low + high) // 2
    share = math.log(above / epsilon) / math.log(above / below)
    guess: float = low * (high / low) ** share
    return math.ceil(guess)


@lru_cache(maxsize=4096)
def quick_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Enough noise by the RDP bound alone, at once: a tenth, for few steps a quarter too much.

    Raises InputError when even a noise multiplier of 10,000 is not enough.
    """

    def spent(noise: float) -> float:
        return rdp_epsilon(((noise, sampling_rate, steps),), delta, FEW)

    if spent(LEAST_NOISE) <= epsilon:
        return LEAST_NOISE
    if spent(MOST_NOISE) > epsilon:
        found = f"epsilon {epsilon:g} for {steps} steps at a sampling rate of {sampling_rate:g}"
        allowed = f"what a noise multiplier of {MOST_NOISE:g} or less can keep"
        next_step = "Ask for a larger epsilon, fewer rounds or smaller batches."
        raise InputError(Problem("plan", "key 'privacy.epsilon'", found, allowed, next_step))
    low, high = LEAST_NOISE, MOST_NOISE
    while high > 1.0002 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def most_steps(spent: Sequence[Charge], charge: Charge, delta: float, cap: float) -> int:
    """The most steps of `charge`, at most its own number, after which epsilon is at most `cap`.

    Where that would take long to find, fewer.
    """

    def history(steps: int) -> History | None:
        return _merged([*spent, replace(charge, steps=steps)])

    def holds(steps: int, bound: Callable[[History, float], float]) -> bool:
        merged = history(steps)
        return merged is not None and bound(merged, delta) <= cap

    whole = history(charge.steps)
    if whole is None:
        return 0
    fits, too_many = 0, charge.steps + 1  # none is always possible: it spends nothing
    while too_many - fits > 1:  # RDP costs nothing once its curve is known
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if holds(middle, rdp_epsilon) else (fits, middle)
    too_many, tries = charge.steps + 1, _tries(whole, delta)
    while too_many - fits > 1 and tries > 0:
        middle, tries = (fits + too_many) // 2, tries - 1
        fits, too_many = (middle, too_many) if holds(middle, _epsilon) else (fits, middle)
    return fits


def _tries(history: History, delta: float) -> int:
    """How often `_epsilon` of about this history may be worked out in a search."""
    error, points = prv_error(alike(history), delta, _error(rdp_epsilon(history, delta)))
    points = points if math.isfinite(error) else MOST_POINTS
    return max(2, int(_SEARCH / (1.3 * points + 2 * _PASS * len(history))))


def _merged(charges: Iterable[Charge]) -> History | None:
    """The steps of each kind together, in one order; None when some have no noise."""
    merged: dict[tuple[float, float], int] = {}
    for charge in charges:
        if charge.noise_multiplier < LEAST_NOISE:
            return None
        if charge.steps:
            pair = (charge.noise_multiplier, charge.sampling_rate)
            merged[pair] = merged.get(pair, 0) + charge.steps
    return tuple(sorted((*pair, steps) for pair, steps in merged.items()))


def _noise(ticks: int) -> float:
    return round(ticks * _STEP, 3)


def _spent(noise: float, delta: float, sampling_rate: float, steps: int) -> float:
    return epsilon([Charge(noise, sampling_rate, steps)], delta)


@lru_cache(maxsize=4096)
def _epsilon(history: History, delta: float) -> float:
    """The smaller of the two bounds, at least 0. RDP first: it says whether PRV is affordable."""
    bound = rdp_epsilon(history, delta) if history else 0.0
    if not history or bound > _PRV_LIMIT or delta < _LEAST_DELTA:
        return bound
    if _error(bound) > _LEAST_ERROR:
        # RDP may be a hundred times too high for a few steps, and so would the error taken from
        # it be. A coarse pass finds the size of epsilon. It depends on nothing but the bound, so
        # that epsilon never falls when steps are added.
        bound = min(bound, _prv(history, delta, min(_COARSE * _error(bound), MOST_ERROR)))
    return max(0.0, min(bound, _prv(history, delta, _error(bound))))


def _prv(history: History, delta: float, error: float) -> float:
    """The PRV bound with the error that can be afforded; math.inf with none."""
    few = alike(history)
    affordable, _ = prv_error(few, delta, error)
    return prv_epsilon(few, delta, affordable) if math.isfinite(affordable) else math.inf


def _error(size: float) -> float:
    """What PRV may add to an epsilon of about this size."""
    return max(_LEAST_ERROR, _ERROR_SHARE * size)
