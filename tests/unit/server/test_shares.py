"""No site has more of an average than the plan's cap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.shares import capped_shares


@pytest.mark.parametrize(
    ("weights", "most", "shares"),
    [
        ((1, 1, 2), 1.0, (0.25, 0.25, 0.5)),  # no cap: in proportion
        ((1, 1, 2), 0.5, (0.25, 0.25, 0.5)),  # at the cap
        ((1, 1, 8), 0.5, (0.25, 0.25, 0.5)),  # one gives up, the others share it equally
        ((1, 3, 96), 0.5, (0.125, 0.375, 0.5)),  # ... in proportion to their weights
        ((1, 9, 990), 0.4, (0.2, 0.4, 0.4)),  # a second one comes above the cap so
        ((5, 1), 0.5, (0.5, 0.5)),  # two sites: only equal shares meet it
        ((5, 1), 0.3, (0.5, 0.5)),  # it can't be met
        ((7,), 0.5, (1.0,)),
        ((4000,) * 5 + (1e8,), 0.5, (0.1,) * 5 + (0.5,)),
    ],
)
def test_shares(weights: tuple[float, ...], most: float, shares: tuple[float, ...]) -> None:
    np.testing.assert_allclose(capped_shares(weights, most), shares, rtol=1e-12)


@given(
    st.lists(st.floats(1.0, 1e8), min_size=1, max_size=12), st.floats(0.01, 1.0, exclude_min=True)
)
def test_the_cap_holds_and_nothing_is_lost(weights: list[float], most: float) -> None:
    shares = capped_shares(weights, most)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.max() <= max(most, 1 / len(weights)) * (1 + 1e-9)
    assert (shares > 0).all()
    order = np.argsort(weights)  # who weighs more has no less
    assert (np.diff(shares[order]) >= -1e-9).all()
