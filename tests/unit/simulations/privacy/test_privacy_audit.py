"""The audit: a bound that is one, and a step whose known faults it catches.

The mutations change the product's own functions, so that what is caught is what a site would run.
The noise is the kernel's, and so every run differs; the margins are wide.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.privacy import engines
from client.privacy.accounting import Charge, epsilon
from client.privacy.random import SecureRandom
from common.errors import InputError
from simulations.cli import app
from simulations.privacy import audit as module
from simulations.privacy.audit import Audit, audit_model, released, run_audit
from simulations.privacy.bound import chance, lower_bound, refuted
from simulations.privacy.cli import AuditFailedError

QUICK = Audit(canaries=600, steps=10, noise_multiplier=5.6)
KEYS = {"epsilon_lower", "confidence", "canaries", "accounted", "at", "holds"}


def test_without_delta_the_chance_is_a_binomial_tail():
    right = math.exp(0.7) / (1 + math.exp(0.7))
    tail = sum(math.comb(5, v) * right**v * (1 - right) ** (5 - v) for v in (4, 5))
    assert chance(100, 5, 4, 0.7, 0.0) == pytest.approx(tail)
    assert chance(100, 5, 0, 0.7, 0.0) == 1.0


def test_delta_adds_twice_the_canaries_times_the_steepest_mean():
    means = []
    for i in range(1, 5):  # P[4 > correct >= 4 - i] / i, for guesses at random
        below = [math.comb(6, v) / 64 for v in range(4 - i, 4)]
        means.append(sum(below) / i)
    tail = sum(math.comb(6, v) / 64 for v in (4, 5, 6))
    assert chance(10, 6, 4, 0.0, 1e-3) == pytest.approx(tail + 2 * 10 * 1e-3 * max(means))


def test_the_refuted_epsilon_is_where_the_chance_meets_the_error():
    found = refuted(1000, 200, 180, 1e-5, 0.05)
    assert chance(1000, 200, 180, found, 1e-5) == pytest.approx(0.05, abs=1e-6)
    assert refuted(1000, 200, 100, 1e-5, 0.05) == 0.0
    bounds = [refuted(1000, 200, correct, 1e-5, 0.05) for correct in range(120, 201, 20)]
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_randomised_response_is_refuted_no_more_often_than_the_confidence_allows():
    """Coins told truly with probability e / (1 + e) have epsilon 1 exactly."""
    random = np.random.default_rng(0)
    bounds = []
    for _ in range(50):
        coins = random.random(400) < 0.5
        told = np.where(random.random(400) < math.e / (1 + math.e), coins, ~coins)
        scores = told + random.random(400) * 1e-3  # ties in no order
        bounds.append(lower_bound(scores, coins, 0.0, 0.95).epsilon)
    assert np.mean(np.array(bounds) > 1.0) <= 0.05
    assert np.median(bounds) > 0.5  # and it says something


def test_scores_that_say_nothing_prove_nothing_and_true_ones_much():
    random = np.random.default_rng(1)
    coins = random.random(1000) < 0.5
    assert lower_bound(random.random(1000), coins, 1e-5, 0.95).epsilon < 0.1
    sure = lower_bound(coins.astype(float), coins, 1e-5, 0.95)
    assert sure.epsilon > 4
    assert sure.correct == sure.guesses


@pytest.mark.parametrize("engine", ["loop", "opacus", "vmap"])
def test_a_canary_shows_as_much_as_the_step_lets_it(engine):
    """Nearly without noise: the clipping norm over the batch along its own weight, or nothing."""
    audit = Audit(40, 1e-6, 1.0, 3, clipping_norm=0.25, engine=engine)
    included = np.arange(40) % 3 == 0
    scores, name = released(audit, included)
    assert name == engine
    expected = np.where(included, 3 * 0.25 / 40, 0.0)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-3, atol=1e-6)


def test_the_model_under_audit_is_the_products_with_all_of_its_head_trained():
    model = audit_model(7)
    assert model.findings is not None
    assert model.lungs is None
    shapes = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    assert shapes == [(14, 7), (14,)]


def test_the_correct_step_stays_below_what_is_accounted():
    result = run_audit(QUICK)
    assert result["holds"]
    assert 0 <= result["epsilon_lower"] <= result["accounted"]
    assert result["accounted"] == epsilon([Charge(5.6, 0.5, 10)], 1e-5)
    assert result["engine"] in ("loop", "vmap")  # what auto chose
    assert set(result) >= KEYS
    json.dumps(result, allow_nan=False)


def test_a_tenth_of_the_noise_is_caught(monkeypatch):
    true = SecureRandom.normal
    monkeypatch.setattr(
        SecureRandom, "normal", lambda self, shape, std: true(self, shape, std / 10)
    )
    result = run_audit(QUICK)
    assert not result["holds"]
    assert result["epsilon_lower"] > 2 * result["accounted"]


def test_missing_clipping_is_caught(monkeypatch):
    monkeypatch.setattr(engines, "scales", lambda squares, _: torch.ones_like(squares))
    result = run_audit(QUICK)
    assert not result["holds"]
    assert result["epsilon_lower"] > 2 * result["accounted"]


def test_settings_out_of_range_are_refused_together():
    wild = Audit(canaries=3, noise_multiplier=0.0, sampling_rate=2.0, steps=0, delta=math.nan)
    with pytest.raises(InputError) as caught:
        run_audit(wild)
    assert len(caught.value.problems) == 5
    assert "audit: --canaries: found 3; allowed: 10 to 20000" in str(caught.value)


def test_the_command_writes_its_result_and_says_it(tmp_path):
    file = tmp_path / "audit.json"
    done = CliRunner().invoke(
        app,
        ["audit", "--canaries", "60", "--steps", "2", "--out", str(file)],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0, done.output
    assert "60 canaries, 2 steps with noise multiplier 8" in done.output
    result = json.loads(file.read_text())
    assert set(result) >= KEYS
    assert f"accounted {result['accounted']:.2f}" in done.output


def test_json_is_one_object_and_nothing_else():
    done = CliRunner().invoke(app, ["audit", "--canaries", "60", "--steps", "1", "--json"])
    assert json.loads(done.output)["canaries"] == 60


def test_a_step_that_shows_too_much_fails_the_command_after_writing_it(monkeypatch, tmp_path):
    found = {"epsilon_lower": 3.5, "accounted": 1.1, "holds": False, "engine": "loop"}
    found |= {"canaries": 10, "guesses": 10, "correct": 10, "steps": 20, "delta": 1e-5}
    found |= {"noise_multiplier": 8.0, "sampling_rate": 0.5}
    monkeypatch.setattr(module, "run_audit", lambda _: found)
    done = CliRunner().invoke(app, ["audit", "--out", str(tmp_path / "audit.json")])
    assert isinstance(done.exception, AuditFailedError)
    assert done.exception.exit_code == 1
    assert "3.50" in str(done.exception)
    assert "1.10" in str(done.exception)
    assert json.loads((tmp_path / "audit.json").read_text()) == found


def test_an_unknown_engine_is_refused():
    assert CliRunner().invoke(app, ["audit", "--engine", "fast"]).exit_code == 2
