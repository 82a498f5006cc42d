"""From guesses about canaries to a lower bound on epsilon, with confidence.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023: each of
m canaries is put into the training or left out by a coin of its own. Whoever sees the result
guesses r of the coins, those that look surest. Few guesses of an (epsilon, delta)-private result
can be right beyond chance, so many right ones refute a small epsilon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

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
