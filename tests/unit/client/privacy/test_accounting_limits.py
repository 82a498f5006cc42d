"""Whatever is asked, accounting ends soon, in little memory, with an upper bound."""

import itertools
import math
import resource
import time
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp

from client.privacy.accounting import Charge, epsilon, most_steps, solve_noise
from client.privacy.bounds import FEW, alike, rdp_epsilon

SECONDS = 6.0  # of the processor: 1 to 3 on an idle one, where it took 45, and a refusal 1,200
MANY = [Charge(0.8 + k * 1e-3, 0.01 + k * 1e-4, 10 + k % 7) for k in range(3000)]
KINDS = [Charge(8.0 + k / 2, 0.01 + k * 1e-3, 5000 + k) for k in range(8)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: epsilon([Charge(1e4, 0.5, 10**6)], 1e-5),
        lambda: most_steps([Charge(7.0, 0.02, 100)], Charge(1e4, 0.5, 10**9), 1e-5, 2.0),
        lambda: most_steps([Charge(7.0, 0.02, 100)], Charge(6.0, 0.01, 10**6), 1e-5, 2.0),
        lambda: most_steps([Charge(7.0, 0.02, 100)], Charge(19.9, 0.5, 10**5), 1e-5, 2.0),
        lambda: solve_noise(3.0, 1e-5, 1.0, 10**6),
        lambda: solve_noise(1.0, 1e-5, 0.5, 10**6),
        lambda: epsilon(MANY, 1e-5),
        lambda: most_steps(MANY, Charge(1.0, 0.01, 10**5), 1e-5, 250.0),
        lambda: epsilon(KINDS, 1e-5),
        lambda: most_steps(KINDS[:7], Charge(6.0, 0.01, 10**5), 1e-5, 1.2),
    ],
)
def test_what_a_plan_may_ask_is_answered_soon(ask: Callable[[], float]) -> None:
    epsilon([Charge(1.1, 0.01, 10)], 1e-5)  # the import of Opacus, once
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert 0.0 <= ask() < math.inf
    assert time.process_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.01), (1.0, 0.3), (3.0, 0.999), (12.0, 1.0)])
def test_whole_orders_are_as_opacus_works_them_out(noise: float, rate: float) -> None:
    for order in FEW:
        theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[order])[0]
        delta = 1e-5
        converted = theirs * 100 - math.log(delta * order) / (order - 1) + np.log1p(-1 / order)
        ours = rdp_epsilon(((noise, rate, 100),), delta, [order])
        assert ours == pytest.approx(max(0.0, converted), rel=1e-6, abs=1e-6)


def test_many_kinds_of_steps_cost_no_less_than_few() -> None:
    """RDP adds up: 12 kinds that hardly differ are about one kind with as many steps."""
    kinds = [Charge(1.0 - k * 1e-6, 0.01, 100) for k in range(12)]
    one = epsilon([Charge(1.0, 0.01, 1200)], 1e-5)
    assert one <= epsilon(kinds, 1e-5) <= 1.3 * one


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0.5, 0.1, 400), (0.7, 0.2, 500), (0.9, 0.5, 200), (1.0, 1.0, 60), (2.0, 0.9, 400)],
)
def test_above_sixty_the_bound_is_ten_per_cent_too_high_at_most(
    noise: float, rate: float, steps: int
) -> None:
    oracle = PLDAccountant(value_discretization_interval=1e-3)
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    oracle.compose(event, steps)
    truth, ours = float(oracle.get_epsilon(1e-5)), epsilon([Charge(noise, rate, steps)], 1e-5)
    assert ours > 60.0
    assert truth <= ours <= 1.1 * truth


@settings(max_examples=40, deadline=6000)
@given(
    st.floats(0.0, 1e308),
    st.floats(5e-324, 1.0),
    st.one_of(st.integers(0, 10**7), st.just(2**63), st.just(10**400)),
    st.floats(1e-15, 0.09),
)
def test_no_charge_makes_the_accountant_fail(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    assert epsilon([Charge(noise, rate, steps)], delta) >= 0.0


ALIKE = [Charge(1.1 + k * 0.004, 0.02, 100) for k in range(10)]
APART = [Charge(1.0 + k % 3 / 2 + k * 0.003, 0.016 * (1 + k % 2), 60) for k in range(10)]


@pytest.mark.parametrize(("kinds", "most"), [(ALIKE, 1.03), (APART, 1.15)])
def test_a_ninth_kind_of_steps_raises_epsilon_by_little_and_none_lowers_it(
    kinds: list[Charge], most: float
) -> None:
    """Above Google's truth by few per cent where they are alike, and by what RDP adds at most."""
    spent = [epsilon(kinds[:n], 1e-5) for n in (8, 9, 10)]
    assert all(fewer < more for fewer, more in itertools.pairwise(spent))
    oracle = PLDAccountant(value_discretization_interval=5e-4)
    for charge in kinds:
        gaussian = dp_event.GaussianDpEvent(charge.noise_multiplier)
        oracle.compose(dp_event.PoissonSampledDpEvent(charge.sampling_rate, gaussian), charge.steps)
    truth = float(oracle.get_epsilon(1e-5))
    assert truth <= spent[-1] <= most * truth


@given(
    st.floats(0.05, 100.0),
    st.floats(1e-6, 0.9),
    st.lists(
        st.tuples(st.floats(1.0, 1.05), st.floats(1.0, 1.05), st.integers(1, 10**6)),
        min_size=9,
        max_size=30,
    ),
)
def test_kinds_that_are_taken_together_cost_no_less(
    noise: float, rate: float, near: list[tuple[float, float, int]]
) -> None:
    """Within 5 % of each other they are 4 at most on the coarsest grid, of 13.6 %."""
    history = tuple(sorted((noise * a, rate * b, steps) for a, b, steps in near))
    merged = alike(history)
    assert len(merged) <= 8
    assert sum(steps for *_, steps in merged) == sum(steps for *_, steps in history)
    for own_noise, own_rate, _ in history:
        assert any(
            own_noise / 1.14 <= less <= own_noise and own_rate <= more <= own_rate * 1.14
            for less, more, _ in merged
        )
