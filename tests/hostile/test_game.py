"""The game itself: it finds what leaks, and does not accuse what is sound."""

from pathlib import Path

import numpy as np
import pytest

from common.wire import Parcel
from simulations.privacy.membership.game import Outcome, play

LENGTH = 200


@pytest.fixture
def worlds(tmp_path: Path) -> dict[bool, Path]:
    """Two folders that answer for themselves: a file says which world it is."""
    for there in (True, False):
        (tmp_path / str(there)).mkdir()
        (tmp_path / str(there) / "there").write_text("1" if there else "")
    return {there: tmp_path / str(there) for there in (True, False)}


def gaussian(site: Path, noise: float, moved: float = 1.0) -> Parcel:
    """A vector that the target moves along the first axis, and noise."""
    vector = np.random.default_rng().normal(0.0, noise, LENGTH).astype(np.float32)
    vector[0] += moved * bool((site / "there").read_text())
    return Parcel({"delta": vector}, {"site": "ward"}, {})


AXIS = np.eye(1, LENGTH, dtype=np.float32)[0]


def test_what_is_sound_passes(worlds: dict[bool, Path], tmp_path: Path) -> None:
    """Sensitivity 1 and noise 1.5: mu = 2 / 3, right in Phi(1 / 3) = 63 % of the plays."""
    found = play(worlds, tmp_path / "at", lambda site: [gaussian(site, 1.5)], 400, AXIS)
    assert found.right <= found.allowed(1 / 1.5)
    assert 0.54 < found.right / 400 < 0.72  # it does see the target
    assert found.feature == "0 delta along the target"


def test_what_moves_too_far_is_found(worlds: dict[bool, Path], tmp_path: Path) -> None:
    found = play(worlds, tmp_path / "at", lambda site: [gaussian(site, 1.5, 8.0)], 80, AXIS)
    assert found.right > found.allowed(1 / 1.5)


@pytest.mark.parametrize("leak", ["code", "key", "metric", "length"])
def test_a_word_too_much_is_found(worlds: dict[bool, Path], tmp_path: Path, leak: str) -> None:
    def ask(site: Path) -> list[Parcel]:
        there, sound = bool((site / "there").read_text()), gaussian(site, 100.0)
        arrays, config, metrics = dict(sound.arrays), dict(sound.config), {"val_noised_loss": 0.1}
        if leak == "code" and there:
            config["error"] = "internal"
        if leak == "key" and there:
            arrays["more"] = np.zeros(1, np.float32)
        if leak == "metric":
            metrics["val_noised_loss"] += 1e-9 * there
        if leak == "length" and there:
            arrays["delta"] = arrays["delta"][1:]
        return [Parcel(arrays, config, metrics)]

    found = play(worlds, tmp_path / "at", ask, 24)
    assert found.right > found.allowed(0.1), found


def test_the_bound_by_hand() -> None:
    """mu = 2: Phi(1) = 0.8413. Of 40 plays P(40 right) = 0.8413^40 = 1.0e-3, so all may be right.

    mu = 0: coins. P(37 or more of 40) = 10701 / 2^40 = 9.7e-9; P(35 or more) = 6.9e-7 < 1e-6 <
    P(34 or more) = 4.2e-6: more than 34 is too many.
    """
    outcome = Outcome(0, 40, "")
    assert outcome.allowed(2.0) == 40
    assert outcome.allowed(0.0) == 34
