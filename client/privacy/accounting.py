"""What private steps cost: epsilon of everything charged so far, and the noise that fits.

Neighbouring data sets differ by one unit that is added or removed; every step draws its units
by Poisson sampling. Two bounds from Opacus, and the smaller counts, for both are upper bounds:

- Rényi differential privacy (Mironov, Talwar and Zhang, arXiv 1908.10530), converted by
  theorem 21 of Balle et al., arXiv 1905.09982. Fast at any epsilon, some ten per cent too high.
- Privacy random variables (Gopi, Lee and Wutschitz, arXiv 2106.02848): within a chosen error of
  the truth, which is added to the estimate. Slow at a large epsilon.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from scipy.optimize import brentq

from common.errors import InputError, Problem

LEAST_NOISE, MOST_NOISE = 0.01, 1e4  # less noise than the least is accounted as none
_STEP = 1e-3  # to which a solved noise multiplier is rounded up
_PRV_LIMIT = 60.0  # epsilon above which RDP alone counts: such a bound protects nobody anyway
# The error that PRV adds: of this share of epsilon, and at least so much. Opacus' default of 0.01
# would be a sixth of a spend of 0.06.
_ERROR_SHARE, _LEAST_ERROR = 0.005, 0.0015
# In a first pass: times that error, and never more, for PRV's guarantee needs an error below 1.
_COARSE, _MOST_ERROR = 5.0, 0.5
_LEAST_DELTA = 1e-10  # below it, rounding in PRV's Fourier transforms shows: RDP alone counts
# The order of the RDP bound that fits best is small for a large epsilon, and large for a small one.
_ORDERS = [1.0 + x / 10.0 for x in range(1, 100)] + [float(x) for x in range(12, 64)]
_ORDERS += [72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0]
# Enough of them where a bound a few per cent higher will do: those between whole ones are slow.
_FEW_ORDERS = [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0]
_History = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps), merged


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
    merged: dict[tuple[float, float], int] = {}
    for charge in charges:
        if charge.noise_multiplier < LEAST_NOISE:
            return math.inf
        if charge.steps:
            pair = (charge.noise_multiplier, charge.sampling_rate)
            merged[pair] = merged.get(pair, 0) + charge.steps
    if not merged:
        return 0.0
    return _epsilon(tuple(sorted((*pair, steps) for pair, steps in merged.items())), delta)


@lru_cache(maxsize=4096)
def solve_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier, rounded up to 0.001, that keeps so many steps within epsilon.

    Raises InputError when even a noise multiplier of 10,000 does not.
    """

    def spent(noise: float) -> float:
        return _spent(noise, delta, sampling_rate, steps)

    # RDP is fast, and what it asks for is enough noise; the smaller bound asks for less.
    high = quick_noise(epsilon, delta, sampling_rate, steps)
    low = max(LEAST_NOISE, 0.8 * high)
    while low > LEAST_NOISE and spent(low) <= epsilon:
        low, high = max(LEAST_NOISE, 0.8 * low), low
    root = _crossing(spent, epsilon, low, high)
    ticks = math.ceil(root / _STEP)
    while spent(_noise(ticks)) > epsilon:
        ticks += 1
    while _noise(ticks - 1) >= LEAST_NOISE and spent(_noise(ticks - 1)) <= epsilon:
        ticks -= 1
    return _noise(ticks)


@lru_cache(maxsize=4096)
def quick_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Enough noise by the RDP bound alone, at once: a tenth, for few steps a quarter too much.

    Raises InputError when even a noise multiplier of 10,000 is not enough.
    """

    def spent(noise: float) -> float:
        return _rdp_epsilon(((noise, sampling_rate, steps),), delta, _FEW_ORDERS)

    low, high = LEAST_NOISE, 1.0
    while spent(high) > epsilon:
        low, high = high, min(2.0 * high, MOST_NOISE)
        if low == MOST_NOISE:
            found = f"epsilon {epsilon:g} for {steps} steps at a sampling rate of {sampling_rate:g}"
            allowed = f"what a noise multiplier of {MOST_NOISE:g} or less can keep"
            next_step = "Ask for a larger epsilon, fewer rounds or smaller batches."
            raise InputError(Problem("plan", "key 'privacy.epsilon'", found, allowed, next_step))
    noise = _crossing(spent, epsilon, low, high)
    while spent(noise) > epsilon:  # the root is exact to 0.02 % only
        noise *= 1.0005
    return noise


def _crossing(spent: Callable[[float], float], epsilon: float, low: float, high: float) -> float:
    """About where `spent`, which falls from low to high, comes down to epsilon."""
    if spent(low) <= epsilon:
        return low
    # The logarithm of epsilon is nearly straight in the noise's.
    target = math.log(epsilon)
    root: float = brentq(
        lambda x: math.log(min(max(spent(math.exp(x)), 1e-12), 1e12)) - target,
        math.log(low),
        math.log(high),
        xtol=2e-4,
        rtol=1e-5,
    )
    return math.exp(root)


def most_steps(spent: Sequence[Charge], charge: Charge, delta: float, cap: float) -> int:
    """The most steps of `charge`, at most its own number, after which epsilon is at most `cap`."""
    fits, too_many = 0, charge.steps + 1  # none is always possible: it spends nothing
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        within = epsilon([*spent, replace(charge, steps=middle)], delta) <= cap
        fits, too_many = (middle, too_many) if within else (fits, middle)
    return fits


def _noise(ticks: int) -> float:
    return round(ticks * _STEP, 3)


def _spent(noise: float, delta: float, sampling_rate: float, steps: int) -> float:
    return epsilon([Charge(noise, sampling_rate, steps)], delta)


@lru_cache(maxsize=4096)
def _epsilon(history: _History, delta: float) -> float:
    """The smaller of the two bounds, at least 0. RDP first: it says whether PRV is affordable."""
    bound = _rdp_epsilon(history, delta)
    if bound > _PRV_LIMIT or delta < _LEAST_DELTA:
        return max(0.0, bound)
    if _error(bound) > _LEAST_ERROR:
        # RDP may be a hundred times too high for a few steps, and so would the error taken from
        # it be. A coarse pass finds the size of epsilon. It depends on nothing but the bound, so
        # that epsilon never falls when steps are added.
        error = min(_COARSE * _error(bound), _MOST_ERROR)
        bound = min(bound, _prv_epsilon(history, delta, error))
    return max(0.0, min(bound, _prv_epsilon(history, delta, _error(bound))))


def _error(size: float) -> float:
    """What PRV may add to an epsilon of about this size."""
    return max(_LEAST_ERROR, _ERROR_SHARE * size)


def _rdp_epsilon(
    history: _History, delta: float, orders: Sequence[float] = tuple(_ORDERS)
) -> float:
    from opacus.accountants import RDPAccountant  # a slow import, and only private plans need it

    accountant = RDPAccountant()
    accountant.history = list(history)
    with _quiet():
        try:
            return float(accountant.get_epsilon(delta, alphas=list(orders)))
        except (ValueError, OverflowError):  # the series of a broken order may not converge
            whole = [order for order in orders if float(order).is_integer()]
            return float(accountant.get_epsilon(delta, alphas=whole))


def _prv_epsilon(history: _History, delta: float, error: float) -> float:
    """math.inf where the method says itself that its numbers would not be exact enough."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    with _quiet():
        try:
            found = float(accountant.get_epsilon(delta, eps_error=error))
        except (ValueError, RuntimeError):
            return math.inf
    return found if math.isfinite(found) else math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Opacus' advice on orders, and without NumPy's on log(0) at a sampling rate of 1."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
