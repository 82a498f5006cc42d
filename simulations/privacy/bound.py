"""From guesses to a lower bound on epsilon, with confidence.

Many guesses about one run, one about each canary: `lower_bound`. Steinke, Nasr and Jagielski,
"Privacy auditing with one (1) training run", NeurIPS 2023: each of m canaries is put into the
training or left out by a coin of its own. Whoever sees the result guesses r of the coins, those
that look surest. Few guesses of an (epsilon, delta)-private result can be right beyond chance, so
many right ones refute a small epsilon.

One guess about each of many runs, with the same patient there or not: `at_least`. Jagielski,
Ullman and Oprea, "Auditing differentially private machine learning: how private is private SGD?",
NeurIPS 2020, section 3: exact (Clopper-Pearson) limits of both error rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

LARGEST = 64.0  # no number of canaries of ours can show more
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the canaries: how many are guessed


@dataclass(frozen=True)
class Bound:
    """epsilon: the lower bound; correct of guesses: the guesses that gave it."""

    epsilon: float
    guesses: int
    correct: int


def chance(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many correct guesses under (epsilon, delta)-privacy.

    Theorem 5.2 of the paper: a binomial tail for epsilon, plus 2 m delta times the largest mean
    of the probabilities just below `correct`.
    """
    right = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    if correct == 0:
        return 1.0
    below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, right)
    steepest = float((below.cumsum() / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * steepest)


def refuted(canaries: int, guesses: int, correct: int, delta: float, error: float) -> float:
    """The largest epsilon under which so many correct guesses are rarer than `error`; or 0."""
    low, high = 0.0, LARGEST
    if chance(canaries, guesses, correct, low, delta) > error:
        return 0.0
    for _ in range(50):  # halves the interval to 1e-13
        middle = (low + high) / 2
        if chance(canaries, guesses, correct, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def lower_bound(
    scores: npt.NDArray[np.float64],
    included: npt.NDArray[np.bool_],
    delta: float,
    confidence: float,
    fractions: Sequence[float] = FRACTIONS,
) -> Bound:
    """What the scores prove about epsilon, with at least `confidence`.

    scores: (m,), higher for canaries that look included. included: (m,) bool, the coins. For each
    of the `fractions` half of the guesses are "included" for the highest scores and half "left
    out" for the lowest; the best bound counts, and the error is shared among them (Bonferroni).
    """
    canaries, order = len(scores), np.argsort(scores)
    error = (1.0 - confidence) / len(fractions)
    best = Bound(0.0, 0, 0)
    for fraction in fractions:
        half = max(1, int(fraction * canaries) // 2)
        correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        epsilon = refuted(canaries, 2 * half, correct, delta, error)
        if epsilon > best.epsilon or best.guesses == 0:
            best = Bound(epsilon, 2 * half, correct)
    return best


@dataclass(frozen=True)
class Guesses:
    """hits: "it is there", of `there` plays with the target; alarms: of `absent` plays without."""

    hits: int = 0
    there: int = 0
    alarms: int = 0
    absent: int = 0

    @classmethod
    def of(cls, guesses: npt.NDArray[np.bool_], coins: npt.NDArray[np.bool_]) -> "Guesses":
        """Count guesses (N,) bool about coins (N,) bool: True is "it is there"."""
        hits, alarms = int((guesses & coins).sum()), int((guesses & ~coins).sum())
        return cls(hits, int(coins.sum()), alarms, int((~coins).sum()))

    @property
    def plays(self) -> int:
        """How many guesses there are."""
        return self.there + self.absent

    @property
    def right(self) -> int:
        """How many of them are right."""
        return self.hits + self.absent - self.alarms


def limits(guesses: Guesses, confidence: float) -> tuple[float, float]:
    """The least rate of hits and the greatest of false alarms that the guesses allow.

    Both hold together with at least `confidence`: half of the error for each. Clopper and
    Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    error = (1.0 - confidence) / 2
    hits, alarms = guesses.hits, guesses.alarms
    least, most = 0.0, 1.0
    if hits > 0:
        least = float(beta.ppf(error, hits, guesses.there - hits + 1))
    if alarms < guesses.absent:
        most = float(beta.isf(error, alarms + 1, guesses.absent - alarms))
    return least, most


def at_least(guesses: Guesses, delta: float, confidence: float) -> float:
    """The least epsilon, 0 or more, under which the guesses are not refuted at `delta`.

    (epsilon, delta)-privacy asks for h <= e^epsilon f + delta and 1 - f <= e^epsilon (1 - h) +
    delta, h the rate of hits and f of false alarms (Kairouz, Oh and Viswanath, ICML 2015, theorem
    2.1). The two rates do not depend on delta, so bounds at many deltas hold together.
    """
    hits, alarms = limits(guesses, confidence)
    bounds = [0.0]
    for above, below in ((hits - delta, alarms), (1 - alarms - delta, 1 - hits)):
        if above > 0:
            bounds.append(math.log(above / below) if below > 0 else LARGEST)
    return max(bounds)
