"""The audit of a site: it accuses nobody of nothing, and finds what is broken in the answer path.

The mutations change the product's own functions, so that what is caught is what a site would run.
The noise is the kernel's, and so every run differs; the margins are wide.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.border.deadline import Due
from client.privacy import engines
from client.privacy.accounting import Charge, epsilon
from client.privacy.budget import Asked
from client.privacy.random import SecureRandom
from client.report.collect import read_audit
from client.site import Site
from common.errors import FailedError, InputError
from common.privacy_words import epsilon_text
from common.wire import Parcel
from simulations.cli import app
from simulations.privacy.bound import Guesses, at_least, limits
from simulations.privacy.cli import AuditFailedError
from simulations.privacy.membership.attack import BlindError, Opening
from simulations.privacy.membership.audit import Effort, audit_mechanism, bounds, timing
from simulations.privacy.membership.page import render, verdict
from simulations.privacy.membership.plays import different, watch_clock, watch_updates
from simulations.privacy.membership.world import TARGET
from tests.html_page import Page
from tests.unit.client.ledger.ledger_world import PLAN_A, Book, make_site
from tests.unit.simulations.privacy.membership.test_attack import POLICY, mechanism, no_noise

# No bound of a sound site is too high more often than in one of a million runs.
SURE = Effort(plays=20, confidence=1 - 1e-6)
WEAK = mechanism(noise=4.0)  # mu = 1/4: guesses are right in Phi(1/8) = 55 % of the plays


def audited(effort: Effort, noise: float = 4.0, **more: Any) -> dict[str, Any]:
    return audit_mechanism(mechanism(noise=noise, **more), Opening(POLICY), effort)


def test_limits_by_hand() -> None:
    """10 of 10 hits: p^10 = 0.025 at the least rate, and the same for 0 of 10 alarms."""
    least, most = limits(Guesses(10, 10, 0, 10), 0.95)
    assert least == pytest.approx(0.025**0.1)
    assert most == pytest.approx(1 - 0.025**0.1)
    assert limits(Guesses(0, 10, 10, 10), 0.95) == (0.0, 1.0)
    # P(9 or more of 10 hits) = 10 p^9 (1 - p) + p^10 = 0.025 at p = 0.5550 (tables: 55.5 %).
    assert limits(Guesses(9, 10, 1, 10), 0.95)[0] == pytest.approx(0.5550, abs=5e-5)


def test_the_least_epsilon_by_hand() -> None:
    """Rates of 0.6915 and 0.3085: ln(0.6915 / 0.3085), less delta above the line."""
    guesses = Guesses(10, 10, 0, 10)
    most = 1 - 0.025**0.1
    assert at_least(guesses, 0.0, 0.95) == pytest.approx(math.log((1 - most) / most))
    assert at_least(guesses, 0.1, 0.95) == pytest.approx(math.log((0.9 - most) / most))
    assert at_least(guesses, 0.7, 0.95) == 0.0
    assert at_least(Guesses(5, 10, 5, 10), 1e-5, 0.95) == 0.0
    # All is said to be there: the other line bounds it, and says nothing either.
    assert at_least(Guesses(10, 10, 10, 10), 1e-5, 0.95) == 0.0
    # 100 of 100 hits and 50 of 100 alarms: what is seldom is that it is there and not found.
    seldom = 1 - 0.025**0.01
    least = limits(Guesses(50, 100, 0, 1), 0.95)[0]  # of not being accused where it is not there
    found = at_least(Guesses(100, 100, 50, 100), 0.0, 0.95)
    assert found == pytest.approx(math.log(least / seldom))


def test_a_gaussian_mechanism_is_refuted_no_more_often_than_the_confidence_allows() -> None:
    """mu = 1, guesses at the best line, 200 games of 200 plays: at every delta of the curve."""
    random, over, near = np.random.default_rng(0), 0, []
    for _ in range(200):
        coins = np.arange(200) % 2 == 0
        shown = random.normal(0.0, 1.0, 200) + coins
        curve = bounds([Guesses.of(shown > 0.5, coins)], [Charge(1.0, 1.0, 1)], 1e-5, 0.95)
        over += any(point["lower"] > point["accounted"] for point in curve)
        near.append(curve[0]["lower"])
    assert over <= 10 + 3 * math.sqrt(10)
    assert np.median(near) > 0.3  # and it says something


def test_several_ways_to_guess_share_the_error() -> None:
    one, none = Guesses(10, 10, 0, 10), Guesses(5, 10, 5, 10)
    [first, *_] = bounds([one, none], [Charge(4.0, 1.0, 1)], 1e-5, 0.95)
    assert first["lower"] == pytest.approx(at_least(one, 1e-5, 0.975))
    assert first["accounted"] == epsilon([Charge(4.0, 1.0, 1)], 1e-5)


@pytest.mark.slow
def test_a_sound_site_holds() -> None:
    found = audited(SURE, noise=1.5, rate=512 / 820, steps=2)
    assert found["leaks"] == []
    assert found["holds"]
    assert found["words"] == {"plays": 20, "differ": []}
    assert found["times"] is None
    assert found["accounted"] == pytest.approx(epsilon([Charge(1.5, 512 / 820, 2)], 1e-5))
    assert 0 <= found["epsilon_lower"] <= found["accounted"]
    assert len(found["scores"]["with"]) == len(found["scores"]["without"]) == 10
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sound_site_holds_with_many_plays_and_its_times() -> None:
    found = audit_mechanism(mechanism(noise=1.0), Opening(POLICY), replace(SURE, plays=140))
    assert found["leaks"] == []
    assert found["words"] == {"plays": 168, "differ": []}
    assert found["times"]["plays"] == 14
    assert found["times"]["earliest"] >= 0.0
    # mu = 1: right in Phi(1/2) = 69 % of the plays, so 97 of 140, give or take 5.5: it is seen.
    assert 75 <= found["guesses"][0]["right"] <= 119


@pytest.mark.slow
def test_missing_clipping_is_found_by_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "scales", lambda squares, _: torch.ones_like(squares))
    found = audited(Effort(plays=20))
    assert [leak[:10] for leak in found["leaks"]] == ["the update"]


@pytest.mark.slow
def test_a_charge_of_too_little_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the played site's own ledger charged counts, not what it should have charged."""
    monkeypatch.setattr(Asked, "charge", lambda self, rounds=1: Charge(1e4, 1.0, 1))
    found = audited(Effort(plays=20), noise=0.2)  # mu = 5: right in 99.4 % of the plays
    assert found["accounted"] < 0.01
    assert [leak[:10] for leak in found["leaks"]] == ["the update"]


def test_a_score_without_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    found = audited(Effort(plays=20), purpose="metrics", noise=10.0)
    assert [leak[:16] for leak in found["leaks"]] == ["the noised score"]


def has_target(site: Site) -> bool:
    return TARGET in site.patients()


def told_apart(place: Path) -> list[str]:
    """What keys, codes and sizes tell in two plays with and two without the target."""
    return different(watch_updates(place, WEAK, Opening(POLICY), 4, lambda: None))


def test_another_code_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Site.update

    def fails(self: Site, *words: Any) -> Any:
        if has_target(self):
            raise FailedError("of a patient")
        return true(self, *words)

    monkeypatch.setattr(Site, "update", fails)
    [found] = told_apart(tmp_path)
    assert found.startswith(
        "codes, keys or sizes of the answer to train (with the patient: code failed; without: "
    )


def test_a_key_more_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(site: Site, *_: object) -> Parcel:
        return Parcel({}, {"site": "ward"}, {"val_noised_loss": 1.0} if has_target(site) else {})

    monkeypatch.setattr("client.answer._told", told)
    [found] = told_apart(tmp_path)
    assert "of the answer to finish (with the patient: 2 keys and 0 bytes; without: 1" in found


@pytest.mark.slow
def test_an_answer_before_its_deadline_is_found_by_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient whose work takes 0.6 s longer, whatever else the machine does: all is guessed."""
    true = Site.update

    def takes_long(self: Site, *words: Any) -> Any:
        if has_target(self):
            time.sleep(0.6)
        return true(self, *words)

    monkeypatch.setattr(Site, "update", takes_long)
    monkeypatch.setattr(Due, "wait", lambda self: None)
    found = timing(*watch_clock(tmp_path, WEAK, Opening(POLICY), 6, lambda: None))
    assert found["plays"] == found["right"] == 6
    assert found["earliest"] < 0


def test_an_answer_at_its_deadline_comes_then(tmp_path: Path) -> None:
    found = timing(*watch_clock(tmp_path, WEAK, Opening(POLICY), 1, lambda: None))
    assert found["earliest"] >= 0.0
    assert found["deadline"] >= 0.25


def test_sites_that_never_answer_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("no such engine")

    monkeypatch.setattr("client.site.train_private_round", breaks)
    with pytest.raises(BlindError, match=r"the played sites answer 'failed'.*no such engine"):
        told_apart(tmp_path)


def test_effort_out_of_range_is_refused_together() -> None:
    with pytest.raises(InputError) as caught:
        Effort(plays=3, steps=0).checked(6, 5)
    assert len(caught.value.problems) == 3
    assert "audit: --plays: found 3; allowed: 20 to 100000" in str(caught.value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_site(tmp_path_factory.mktemp("run") / "north", engine="loop")
    Book(made).reserve(PLAN_A, 1, Charge(4.0, 1.0, 3))
    return made.path


def test_the_command_writes_a_page_and_what_a_report_reads(site: Path) -> None:
    file = site / "reports" / "audit.json"
    done = CliRunner().invoke(
        app, ["audit", "--site", str(site), "--plays", "20", "--steps", "1", "--out", str(file)]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    spent = epsilon_text(epsilon([Charge(4.0, 1.0, 3)], 1e-5))
    assert f"site north: epsilon {spent} at delta 1e-05 charged in all" in done.output
    assert "1. training: noise multiplier 4, sampling rate 1, 3 steps a round" in done.output
    assert "engine loop, heads shared; 20 plays on made-up patients" in done.output
    assert "keys, codes, sizes: the same in 20 plays" in done.output
    assert "times: not tried: that takes 140 plays or more" in done.output
    assert "No leak was found" in done.output
    result = json.loads(file.read_text())
    # One step of the three that were charged.
    assert result["accounted"] == pytest.approx(epsilon([Charge(4.0, 1.0, 1)], 1e-5))
    page = Page(file.with_suffix(".html").read_text())
    assert "one play is 1 of 1 charge, with 1 of its 3 steps" in page.text
    assert len(page.all("img")) == 2
    assert all(image["alt"] for image in page.all("img"))
    noted = read_audit(file)
    assert noted is not None
    assert (noted.plays, noted.accounted) == (20, result["accounted"])
    assert not noted.contradicts
    worse = result | {"holds": False, "leaks": ["times of answers tell"]}
    assert verdict(worse) == "A leak was found: times of answers tell."
    assert 'class="alert"' in render(worse)
    assert 'class="alert"' not in render(result)


@pytest.mark.slow
def test_a_leak_fails_the_command_after_writing_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    file = tmp_path / "found.json"
    words = ["audit", "--site", str(site), "--plays", "20", "--steps", "1", "--json"]
    done = CliRunner().invoke(app, [*words, "--out", str(file)])
    assert isinstance(done.exception, AuditFailedError)
    assert done.exception.exit_code == 1
    assert "Let no plan with patients run before it is found out why" in str(done.exception)
    assert json.loads(done.stdout) == json.loads(file.read_text())
    noted = read_audit(file)
    assert noted is not None
    assert noted.contradicts
    result = json.loads(done.stdout)
    # 10 of 10 at 97.5 %, for three ways: 1 - (0.025 / 3)^(1/10) = 0.3804 false alarms at most.
    assert result["epsilon_lower"] == pytest.approx(math.log(0.6196 / 0.3804), abs=1e-3)
    [found] = result["mechanisms"]
    assert found["guesses"][0]["right"] == 20
    # At delta 0.1 so weak a mechanism promises nearly nothing, and that is what is refuted.
    at = {point["delta"]: point for point in found["curve"]}
    assert at[0.1]["accounted"] < 0.01 < at[0.1]["lower"]
    assert result["leaks"][0].startswith("the update shows epsilon of at least ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plays", "30"], "found --plays; allowed: these with --site only. Add --site"),
        (["--plan", "p.yaml", "--rounds", "2"], "found --plan --rounds; allowed: these with"),
        (["--site", "x", "--noise", "1", "--clip", "2"], "found --noise --clip; allowed: these w"),
    ],
)
def test_options_of_the_other_audit_are_refused(words: Sequence[str], said: str) -> None:
    done = CliRunner().invoke(app, ["audit", *words])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
