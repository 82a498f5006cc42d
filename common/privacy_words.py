"""What epsilon and delta mean, and why a site refuses, in words for people who sign.

(epsilon, delta) differential privacy limits every test of "was this unit in the data?". With a
false alarm rate f, the share of hits h obeys h <= e^epsilon f + delta and
1 - f <= e^epsilon (1 - h) + delta (Wasserman and Zhou, JASA 2010; Kairouz, Oh and Viswanath,
ICML 2015, theorem 2.1). Both figures below follow from these two lines and nothing else.
"""

import math
from collections.abc import Mapping

import numpy as np

from common.errors import REFUSALS

DASH = "–"
NO_BOUND = "no bound"
_LARGEST = 700.0  # beyond it e^epsilon is no float; the bounds are 1 long before

# What a ledger that is not in order makes a site answer: faults, not refusals.
_FAULTS: Mapping[str, str] = {
    "ledger-damaged": "the ledger is not in order",
    "ledger-locked": "another process held the ledger for too long",
}


def refusal(code: str) -> str:
    """Why a site refused, in words; the code itself where we have no words for it."""
    return {**REFUSALS, **_FAULTS}.get(code, code)


def epsilon_text(value: float | None) -> str:
    """Epsilon with three decimals, rounded up so that it never says less than the ledger.

    None, or infinite, is "no bound".
    """
    if value is None or math.isinf(value):
        return NO_BOUND
    # Nine decimals first: 2.001 is stored as 2.00099999..., or a hair above.
    return f"{math.ceil(round(value * 1000, 6)) / 1000:,.3f}"


def delta_text(delta: float) -> str:
    """Delta as a share and as one in so many, e.g. "0.00001 (1 in 100,000)"."""
    return f"{np.format_float_positional(delta, trim='-')} (1 in {1 / delta:,.0f})"


def percent_up(share: float) -> str:
    """A share in percent, rounded up to one decimal: it is an upper limit."""
    return f"{math.ceil(round(share * 1000, 6)) / 10:.1f} %"


def odds_factor(epsilon: float) -> str:
    """e^epsilon as text: what the odds may be multiplied by, rounded up."""
    if epsilon > math.log(1e6):
        return "more than a million"
    factor = math.exp(epsilon)
    digits = 2 if factor < 100 else 0
    return f"{math.ceil(round(factor * 10**digits, 6)) / 10**digits:,.{digits}f}"


def coin(epsilon: float, delta: float) -> float:
    """Largest share of right answers to "in or out?" when both are equally likely beforehand."""
    return 1.0 - (1.0 - delta) / (1.0 + math.exp(min(epsilon, _LARGEST)))


def hits(epsilon: float, delta: float, false_alarms: float) -> float:
    """Largest share of those inside who are found, at a share of false alarms outside."""
    factor = math.exp(min(epsilon, _LARGEST))
    few = factor * false_alarms + delta
    many = 1.0 - (1.0 - delta - false_alarms) / factor
    return min(1.0, few, many)


def strength(epsilon: float, delta: float) -> str:
    """How much the limit is worth, said plainly. The steps are ours: there is no norm."""
    share = coin(epsilon, delta)
    if share <= 0.75:
        return "That is a strong limit: such a guess stays unreliable whoever makes it."
    if share <= 0.95:
        return (
            "That is a real but moderate limit: a doubt remains about every single patient, though "
            "an observer with ideal knowledge may often guess right."
        )
    return (
        "That is a weak limit: taken alone, the guarantee rules out little. Attacks that are known "
        "today usually reach far less than this worst case, but nothing guarantees it."
    )
