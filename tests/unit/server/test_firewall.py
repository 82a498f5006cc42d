from dataclasses import replace

import numpy as np
import pytest

from common.errors import UpdateRejectedError
from common.parameters import Layout
from common.update import SCHEMA, Update
from server.firewall import Expected, check_update, norm_limit, screen_norms, update_norm

LAYOUT = Layout(("encoder.a", "encoder.b"), ((2,), (1, 3)))
EXPECTED = Expected("plan", 3, LAYOUT, "labelled", {"ward": 3.0})
GOOD = Update(
    schema=SCHEMA,
    plan_sha256="plan",
    round=3,
    site="ward",
    layout_sha256=LAYOUT.sha256,
    delta=np.arange(5, dtype=np.float32),
    weight=2.0,
    covers=("Effusion", "lungs"),
    metrics={"val_dice": 0.5},
    seconds=1.0,
)
NAN, INF = float("nan"), float("inf")


def with_values(*values: float) -> dict[str, object]:
    return {"delta": np.array(values, dtype=np.float32)}


def test_good_update_passes() -> None:
    check_update(GOOD, EXPECTED)


@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        ({"schema": 2}, "schema", "version 2, not 1"),
        ({"delta": np.zeros(5)}, "schema", "delta is 1-d float64"),
        ({"delta": np.zeros((1, 5), np.float32)}, "schema", "delta is 2-d float32"),
        ({"plan_sha256": "another"}, "stale-plan", "plan another"),
        ({"round": 2}, "stale-round", "round 2, not 3"),
        ({"layout_sha256": "x" * 64}, "layout", "layout xxxxxxxxxxxx, not"),
        # Flower would broadcast one number over all parameters without a word.
        (with_values(1), "layout", "1 parameters, not 5"),
        (with_values(1, NAN, 1, INF, 1), "not-finite", "2 of 5 parameters"),
        ({"metrics": {"val_dice": NAN}}, "not-finite", "metric val_dice is nan"),
        ({"seconds": INF}, "not-finite", "metric seconds is inf"),
        ({"weight": 0.0}, "weight", "weight 0.0"),
        ({"weight": -1.0}, "weight", "weight -1.0"),
        ({"weight": NAN}, "weight", "weight nan"),
        ({"weight": INF}, "weight", "weight inf"),
        ({"weight": 1e12}, "weight", "weight 1e+12 is no count of images up to 1e+08"),
        ({"weight": 2.5}, "weight", "weight 2.5 is no count of images"),
        ({"weight": 1.0}, "weight", "weight 1, but 3 when it was first accepted"),
        ({"weight": 7.0}, "weight", "weight 7, but 3 when it was first accepted"),
    ],
)
def test_bad_update_is_rejected_with_site_code_and_number(
    change: dict[str, object], code: str, detail: str
) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        check_update(replace(GOOD, **change), EXPECTED)
    error = caught.value
    assert (error.site, error.code) == ("ward", code)
    assert detail in error.detail
    assert str(error) == f"update of site 'ward' rejected: {code}: {error.detail}"


@pytest.mark.parametrize("weight", [2.0, 3.0, 6.0])
def test_a_weight_may_change_a_little(weight: float) -> None:
    check_update(replace(GOOD, weight=weight), EXPECTED)


def test_a_site_that_is_new_may_weigh_up_to_the_limit() -> None:
    check_update(replace(GOOD, site="icu", weight=1e8), EXPECTED)


def test_equal_weighting_takes_nothing_but_one() -> None:
    equal = replace(EXPECTED, weighting="equal", weights={})
    check_update(replace(GOOD, weight=1.0), equal)
    with pytest.raises(UpdateRejectedError, match="weight 2, not 1 as under equal") as caught:
        check_update(GOOD, equal)
    assert caught.value.code == "weight"


def updates(*norms: float) -> list[Update]:
    return [
        replace(GOOD, site=f"s{number}", delta=np.array([norm, 0, 0, 0, 0], np.float32))
        for number, norm in enumerate(norms)
    ]


@pytest.mark.parametrize(
    ("norms", "limit", "rejected"),
    [
        ((1, 1, 10.0), None, []),  # exactly ten times the median
        ((1, 1, 10.1), None, ["s2"]),
        ((1, 50, 1, 60, 1), None, ["s1", "s3"]),
        ((1, 1000), None, []),  # two can't outvote each other
        ((1, 1.1e6), None, ["s1"]),  # but no network is as long as this
        ((0, 0, 5), None, []),  # most did not move: no scale to judge by
        ((1, 3), 2.0, ["s1"]),
        ((3,), 2.0, ["s0"]),
        ((), None, []),
    ],
)
def test_norm_outliers(norms: tuple[float, ...], limit: float | None, rejected: list[str]) -> None:
    accepted, out = screen_norms(updates(*norms), limit)
    assert [error.site for error in out] == rejected
    assert len(accepted) + len(out) == len(norms)
    assert all(error.code == "norm" and "L2 norm" in error.detail for error in out)


def test_norm_of_a_huge_update_does_not_overflow() -> None:
    assert update_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize(
    ("norms", "earlier", "rejected"),
    [
        ((1, 50), (1, 1, 1), ["s1"]),  # too few to judge by each other: the run's own past
        ((10,), (1, 1, 1), []),  # exactly ten times
        ((1, 50), (1, 1), []),  # too little past
        ((1, 50), (0, 0, 0), []),  # nobody moved: no scale
        ((50, 50, 50), (1, 1, 1), []),  # three judge each other
    ],
)
def test_few_updates_are_held_to_earlier_rounds(
    norms: tuple[float, ...], earlier: tuple[float, ...], rejected: list[str]
) -> None:
    _, out = screen_norms(updates(*norms), None, earlier)
    assert [error.site for error in out] == rejected


@pytest.mark.parametrize(
    ("weights", "norms", "limit", "rejected"),
    [
        # A university hospital beside clinics: 1,000 times the images and a long step.
        ((1e5, 100, 100, 100), (5, 1, 1, 1), None, []),
        ((1e8, 4000, 4000, 4000), (1, 1, 1, 1), None, ["s0"]),  # 25,000 times
        ((1e6, 100, 100), (1, 1, 1), None, []),  # exactly 10,000 times
        ((1.1e6, 100, 100), (1, 1, 1), None, ["s0"]),
        ((1e8, 100, 100), (1, 1, 1), 5.0, ["s0"]),  # the plan's own norm says nothing of weight
        ((1e8, 1), (1, 1), None, []),  # two can't outvote each other; the cap holds
    ],
)
def test_weight_times_norm(
    weights: tuple[float, ...], norms: tuple[float, ...], limit: float | None, rejected: list[str]
) -> None:
    pairs = zip(updates(*norms), weights, strict=True)
    sent = [replace(update, weight=weight) for update, weight in pairs]
    _, out = screen_norms(sent, limit)
    assert [error.site for error in out] == rejected
    assert all("weight x L2 norm" in error.detail for error in out)


def test_an_update_is_held_to_the_parameters_that_the_run_began_with() -> None:
    base = np.array([3, 4, 0, 0, 0], np.float32)  # L2 norm 5
    assert norm_limit(base, None) == 15.0
    assert norm_limit(base, 2.0) == 2.0  # the plan's own goes first
    expected = replace(EXPECTED, max_norm=norm_limit(base, None))
    check_update(replace(GOOD, **with_values(15, 0, 0, 0, 0)), expected)
    with pytest.raises(UpdateRejectedError, match=r"L2 norm 15\.01 above 15, the most") as caught:
        check_update(replace(GOOD, **with_values(15.01, 0, 0, 0, 0)), expected)
    assert caught.value.code == "norm"
