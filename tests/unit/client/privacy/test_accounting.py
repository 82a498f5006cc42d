"""Epsilon is an upper bound, tight to a per cent: against Google's privacy loss distributions."""

import itertools
import math
import subprocess
import sys

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from client.privacy.accounting import (
    Charge,
    accountant,
    epsilon,
    most_steps,
    quick_noise,
    solve_noise,
)
from common.errors import InputError

SINGLE = [
    ([Charge(noise, rate, steps)], delta)
    for noise, rate, steps in [
        (6.0, 0.01, 1000),
        (0.7, 0.02, 300),
        (0.8, 0.002, 50),
        (1.0, 0.01, 1000),
        (1.6, 0.05, 100),
        (1.5, 0.1, 200),
        (2.0, 0.016, 500),
        (3.0, 0.016, 10),
        (4.0, 0.2, 500),
        (5.0, 0.3, 30),
        (8.0, 1.0, 40),
        (10.0, 1.0, 1),
        (15.0, 0.3, 1000),
        (40.0, 0.9, 300),
        (0.9, 0.001, 3),
        (2.5, 0.03, 1),
    ]
    for delta in (1e-5, 1e-7)
]
MIXED = [
    ([Charge(1.0, 0.01, 200), Charge(2.0, 0.05, 100)], 1e-5),
    ([Charge(1.0, 0.01, 200), Charge(10.0, 1.0, 3)], 1e-5),
    ([Charge(0.8, 0.004, 20), Charge(20.0, 1.0, 20)], 1e-6),
    ([Charge(3.0, 0.02, 10), Charge(5.0, 0.3, 10), Charge(10.0, 1.0, 1)], 1e-5),
    ([Charge(1.2, 0.02, 400), Charge(1.3, 0.02, 400)], 1e-5),
    ([Charge(1.2, 0.002, 4), Charge(30.0, 0.4, 400)], 1e-4),
    ([Charge(6.0, 0.1, 100), Charge(6.0, 0.2, 50), Charge(6.0, 0.4, 25)], 1e-5),
    ([Charge(4.0, 1.0, 1), Charge(0.9, 0.01, 100)], 1e-7),
]


# The oracle takes a second or two for each: every third point is in the fast half.
POINTS = [
    pytest.param(*point, marks=() if number % 3 == 0 else pytest.mark.slow)
    for number, point in enumerate(SINGLE + MIXED)
]


def google(charges: list[Charge], delta: float, interval: float) -> float:
    oracle = PLDAccountant(value_discretization_interval=interval)
    for charge in charges:
        gaussian = dp_event.GaussianDpEvent(charge.noise_multiplier)
        event = dp_event.PoissonSampledDpEvent(charge.sampling_rate, gaussian)
        oracle.compose(event, charge.steps)
    return float(oracle.get_epsilon(delta))


def test_there_are_enough_points() -> None:
    assert len(SINGLE + MIXED) >= 40


@pytest.mark.parametrize(("charges", "delta"), POINTS)
def test_epsilon_is_above_the_truth_by_one_per_cent_at_most(
    charges: list[Charge], delta: float
) -> None:
    # Google's number is an upper bound, too: a finer interval for what is small.
    ours = epsilon(charges, delta)
    oracle = google(charges, delta, 1e-4 if ours > 0.2 else 5e-5)
    assert oracle <= ours <= oracle + max(0.01 * oracle, 0.002)


def test_nothing_costs_nothing_and_no_noise_has_no_bound() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Charge(1.0, 0.1, 0)], 1e-5) == 0.0
    assert epsilon([Charge(1.0, 0.1, 10), Charge(0.0, 0.1, 1)], 1e-5) == math.inf
    assert epsilon([Charge(0.005, 0.1, 1)], 1e-5) == math.inf


def test_order_and_pieces_do_not_matter() -> None:
    a, b = Charge(2.0, 0.1, 30), Charge(3.0, 0.2, 20)
    pieces = [Charge(2.0, 0.1, 10), b, Charge(2.0, 0.1, 20)]
    assert epsilon([a, b], 1e-5) == epsilon([b, a], 1e-5) == epsilon(iter(pieces), 1e-5)


@pytest.mark.parametrize(("noise", "rate"), [(0.9, 0.01), (0.7, 0.0005)])
def test_epsilon_never_falls_with_steps(noise: float, rate: float) -> None:
    spent = [epsilon([Charge(noise, rate, 20 * k)], 1e-5) for k in range(1, 7)]
    assert all(fewer < more for fewer, more in itertools.pairwise(spent))


@pytest.mark.parametrize(
    ("charge", "delta"),
    [
        (Charge(0.05, 0.3, 1000), 1e-5),  # far above what PRV is used for
        (Charge(0.02, 0.003, 10), 1e-5),
        (Charge(3.0, 0.01, 300), 1e-13),  # too small a delta for PRV
        (Charge(1e4, 0.01, 100), 1e-5),
        (Charge(3.0, 0.99999999, 30), 1e-5),
        (Charge(1.0, 1e-7, 300), 1e-5),
    ],
)
def test_the_far_corners_still_have_a_bound(charge: Charge, delta: float) -> None:
    assert 0.0 <= epsilon([charge], delta) < math.inf


def test_one_gaussian_step_has_its_closed_form() -> None:
    """delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s): Balle and Wang, arXiv 1805.06530."""
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0))  # noqa: E731
    for noise in (0.8, 2.0, 10.0):
        found = epsilon([Charge(noise, 1.0, 1)], 1e-5)
        exact = found - 0.5 * max(0.01 * found, 0.002)
        for value, above in ((found, False), (exact - 0.5 * max(0.01 * found, 0.002), True)):
            half = 0.5 / noise
            delta = phi(half - value * noise) - math.exp(value) * phi(-half - value * noise)
            assert (delta > 1e-5) is above


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "google_noise"),
    [(4.0, 1e-5, 0.02, 600, 0.881), (3.0, 1e-5, 1.0, 1, None)],
)
def test_the_noise_that_fits(
    target: float, delta: float, rate: float, steps: int, google_noise: float | None
) -> None:
    noise = solve_noise(target, delta, rate, steps)
    assert noise == round(noise, 3)
    assert epsilon([Charge(noise, rate, steps)], delta) <= target
    assert epsilon([Charge(round(noise - 0.001, 3), rate, steps)], delta) > target
    if google_noise is not None:
        assert google_noise - 0.0005 <= noise <= 1.01 * google_noise


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"), [(8.0, 1e-5, 0.1, 50), (1.0, 1e-6, 0.01, 200)]
)
def test_the_quick_noise_is_enough_and_not_much_more(
    target: float, delta: float, rate: float, steps: int
) -> None:
    quick = quick_noise(target, delta, rate, steps)
    assert epsilon([Charge(quick, rate, steps)], delta) <= target
    assert 0.99 <= quick / solve_noise(target, delta, rate, steps) <= 1.35


def test_a_generous_epsilon_needs_the_least_noise() -> None:
    assert solve_noise(1e9, 1e-5, 0.5, 10) == 0.01


def test_an_epsilon_out_of_reach_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        solve_noise(1e-6, 1e-5, 1.0, 10)
    assert "privacy.epsilon" in str(caught.value)
    assert "fewer rounds" in str(caught.value)


def test_most_steps_is_the_last_that_fits() -> None:
    spent, charge = [Charge(1.0, 0.01, 100)], Charge(1.0, 0.01, 60)
    fits = most_steps(spent, charge, 1e-5, 0.8)
    assert 0 < fits < 60
    assert epsilon([Charge(1.0, 0.01, 100 + fits)], 1e-5) <= 0.8
    assert epsilon([Charge(1.0, 0.01, 101 + fits)], 1e-5) > 0.8
    assert most_steps(spent, charge, 1e-5, 50.0) == 60
    assert most_steps(spent, charge, 1e-5, 0.01) == 0
    assert most_steps(spent, Charge(0.0, 0.01, 60), 1e-5, 50.0) == 0
    assert most_steps([Charge(0.0, 1.0, 1)], charge, 1e-5, 50.0) == 0


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, -1),
    ],
)
def test_impossible_charges_are_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Charge(noise, rate, steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([Charge(1.0, 0.1, 1)], delta)


def test_the_accountant_is_named() -> None:
    assert accountant().startswith("Opacus 1.")
    assert "RDP and PRV" in accountant()


def test_opacus_is_loaded_only_when_something_is_counted() -> None:
    code = "import sys, client.ledger; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
