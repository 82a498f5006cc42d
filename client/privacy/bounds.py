"""Two upper bounds on the epsilon of private steps, each at a cost that is known beforehand.

- Rényi differential privacy (Mironov, Talwar and Zhang, arXiv 1908.10530), converted by
  theorem 21 of Balle et al., arXiv 1905.09982. Fast at any epsilon, some ten per cent too high.
- Privacy random variables (Gopi, Lee and Wutschitz, arXiv 2106.02848): within a chosen error of
  the truth, which is added to the estimate. Its time and memory are the number of points of its
  mesh, which grows with the steps: where they would be too many, the mesh is coarser and the
  error larger.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

History = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps), merged
Curve = np.ndarray[Any, np.dtype[np.float64]]

# The order of the RDP bound that fits best is small for a large epsilon, and large for a small one.
BROKEN = tuple(1.0 + x / 10.0 for x in range(1, 100) if x % 10)
WHOLE = (*(float(x) for x in range(2, 64)), 72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0)
WHOLE += (1024.0,)
# Enough of them where a bound a few per cent higher will do, or there are many kinds of steps.
FEW = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
_BROKEN_NOISE = 20.0  # the series of a broken order takes seconds for more, and gains nothing
MOST_KINDS = 8  # of steps, that PRV composes and for which broken orders are worked out
MOST_POINTS = 600_000  # of PRV's meshes together: 0.2 s and 100 MB
MOST_ERROR = 0.5  # PRV's guarantee needs an error below 1
# Kinds beyond MOST_KINDS are taken together for PRV where they differ by no more than the last of
# these factors. Each grid is part of the one before, so that another kind never lowers the bound.
_FINEST, _GRIDS = 1.002, 7  # 0.2 %, then twice as coarse each: up to 13.6 %
_MOST_STEPS = 10**12  # beyond it, rounding in PRV shows
# Less than they are, and so an upper bound: epsilon falls with the noise, and rises with the rate.
_MOST_NOISE, _LEAST_RATE = 1e6, 1e-12
_ROUNDING = 1e-14  # of log A, times the order: the logarithms of the binomials are so exact


def rdp_epsilon(history: History, delta: float, orders: Sequence[float] = ()) -> float:
    """The RDP bound, 0 or more; math.inf where numbers overflow. Never raises.

    orders: whole numbers above 1, in order; () for all that are worth their time, and, where the
    kinds of steps are few, broken ones.
    """
    few = len(history) <= MOST_KINDS
    whole = tuple(orders) or (WHOLE if few else FEW)
    with _quiet():
        total = _whole_curves(history, whole)
        used = np.array(whole)
        if few and not orders:
            broken = np.zeros(len(BROKEN))
            for noise, rate, steps in history:
                broken = broken + _broken_curve(noise, rate) * _times(steps)
            total, used = np.concatenate([total, broken]), np.concatenate([used, BROKEN])
        found = total - (math.log(delta) + np.log(used)) / (used - 1) + np.log1p(-1 / used)
    found = found[~np.isnan(found)]
    return max(0.0, float(found.min())) if len(found) else math.inf


def _whole_curves(history: History, orders: tuple[float, ...]) -> Curve:
    """RDP of all steps together at each of the orders."""
    if len(history) <= MOST_KINDS:
        total = np.zeros(len(orders))
        for noise, rate, steps in history:
            total = total + _whole_curve(noise, rate, orders) * _times(steps)
        return total
    times = np.array([_times(steps) for *_, steps in history])
    pairs = tuple((noise, rate) for noise, rate, _ in history)
    return np.asarray(_curves_of_many(pairs, orders) @ times)


@lru_cache(maxsize=16)
def _curves_of_many(pairs: tuple[tuple[float, float], ...], orders: tuple[float, ...]) -> Curve:
    """RDP of one step of each kind: (orders, kinds)."""
    noises, rates = np.array(pairs).T
    return np.array([_rdp(noises, rates, int(order)) for order in orders])


@lru_cache(maxsize=4096)
def _whole_curve(noise: float, rate: float, orders: tuple[float, ...]) -> Curve:
    """RDP of one step at each of the orders, all of them whole."""
    pair = np.array([noise]), np.array([rate])
    return np.array([_rdp(*pair, int(order))[0] for order in orders])


def _rdp(noise: Curve, rate: Curve, order: int) -> Curve:
    """RDP of one step of each kind at a whole order: arXiv 1908.10530, section 3.3."""
    noise, rate = np.minimum(noise, _MOST_NOISE)[:, None], np.maximum(rate, _LEAST_RATE)[:, None]
    i = np.arange(order + 1.0)
    binomial = gammaln(order + 1.0) - gammaln(i + 1.0) - gammaln(order - i + 1.0)
    some = np.where(rate < 1.0, rate, 0.5)  # a rate of 1 has a closed form
    terms = binomial + i * np.log(some) + (order - i) * np.log1p(-some)
    log_a = logsumexp(terms + (i * i - i) / (2.0 * noise**2), axis=1) + _ROUNDING * order
    closed = order / (2.0 * noise[:, 0] ** 2)
    return np.asarray(np.where(rate[:, 0] < 1.0, np.maximum(log_a, 0.0) / (order - 1), closed))


@lru_cache(maxsize=4096)
def _broken_curve(noise: float, rate: float) -> Curve:
    """RDP of one step at each of the broken orders; infinite where that would take long."""
    from opacus.accountants.analysis.rdp import compute_rdp  # slow: only private plans need it

    if noise > _BROKEN_NOISE:
        return np.full(len(BROKEN), math.inf)
    with _quiet():
        try:
            found = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(BROKEN))
        except (ValueError, ArithmeticError):  # the series may not converge
            return np.full(len(BROKEN), math.inf)
    return np.where(np.asarray(found) > 0.0, found, math.inf)


def _times(steps: int) -> float:
    """The number of steps as a float; math.inf for a number that no float holds."""
    try:
        return float(steps)
    except OverflowError:
        return math.inf


def alike(history: History) -> History:
    """A history that costs no less, of at most MOST_KINDS kinds; the same one where none is near.

    A kind's noise is rounded down and its rate up, to the finest grid on which so few are left.
    """
    if len(history) <= MOST_KINDS:
        return history
    for width in (math.log(_FINEST) * 2**grid for grid in range(_GRIDS)):
        together: dict[tuple[int, int], int] = {}
        for noise, rate, steps in history:
            pair = math.floor(math.log(noise) / width), math.ceil(math.log(rate) / width)
            together[pair] = together.get(pair, 0) + steps
        if len(together) <= MOST_KINDS:
            return tuple(
                (
                    math.exp(down * width) * (1 - 1e-12),
                    min(1.0, math.exp(up * width) * (1 + 1e-12)),
                    n,
                )
                for (down, up), n in sorted(together.items())
            )
    return history


def prv_error(history: History, delta: float, error: float) -> tuple[float, float]:
    """The error that PRV can afford, at least the one given, and the points of its meshes.

    The error is math.inf where PRV cannot be afforded at all.
    """
    steps = sum(steps for *_, steps in history)
    if len(history) > MOST_KINDS or steps > _MOST_STEPS:
        return math.inf, 0.0
    side = _domain(history, delta, error)
    if not math.isfinite(side):
        return math.inf, 0.0
    # Opacus: a mesh of error / sqrt(steps log(12 / (delta / 1000)) / 2) from -side to side.
    fine = 2.0 * side * math.sqrt(steps * math.log(12_000.0 / delta) / 2.0) * len(history)
    error = max(error, fine / MOST_POINTS)
    return (error, fine / error) if error <= MOST_ERROR else (math.inf, 0.0)


def _domain(history: History, delta: float, error: float) -> float:
    """How far the losses reach (remark 5.6 of Gopi et al., as in Opacus), in nats."""
    small = delta / 1000.0
    steps = sum(steps for *_, steps in history)
    reach = rdp_epsilon(history, small / 4.0)
    for noise, rate, _ in history:
        reach = max(reach, rdp_epsilon(((noise, rate, 1),), small / (8.0 * steps)))
    return max(reach, error) + 3.0


def prv_epsilon(history: History, delta: float, error: float) -> float:
    """The PRV bound; math.inf where its numbers would not be exact enough. Never raises.

    error: in epsilon, as `prv_error` allows it.
    """
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain

    class Bounded(PRVAccountant):  # type: ignore[misc]  # Opacus has no types
        """Opacus' accountant on our domain: its own works out the RDP bound anew, in seconds."""

        def _get_domain(self, prvs: Any, num_self_compositions: Any, **_: Any) -> Domain:
            side = _domain(history, delta, error)
            total = sum(num_self_compositions)
            mesh = error / math.sqrt(total * math.log(12_000.0 / delta) / 2.0)
            return Domain.create_aligned(-side, side, mesh)

    accountant = Bounded()
    accountant.history = list(history)
    with _quiet():
        try:
            found = float(accountant.get_epsilon(delta, eps_error=error))
        except (ValueError, RuntimeError, ArithmeticError, IndexError):
            return math.inf
    return found if math.isfinite(found) else math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Opacus' advice on orders, and without NumPy's on log(0) at a sampling rate of 1."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
