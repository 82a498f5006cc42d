"""The attack sees as much as clipping lets it: worked out by hand, without noise."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.ledger import Ledger
from client.policy import Policy
from client.privacy.accounting import Charge
from client.privacy.random import SecureRandom
from common.plan import Plan, plan_from_json
from simulations.privacy.membership.attack import (
    Attack,
    BlindError,
    Opening,
    nominal,
    prepare,
    pushed,
)
from simulations.privacy.membership.coordinator import timed
from simulations.privacy.membership.mechanism import Mechanism
from simulations.privacy.membership.world import fresh

POLICY = Policy(epsilon=8.0, deadline=900.0)


def mechanism(**more: Any) -> Mechanism:
    given = {"noise": 1.5, "rate": 1.0, "steps": 1, "clip": 1.0, "charges": 5} | more
    return Mechanism(
        more.get("purpose", "training"), more.get("unit", "patient"), given["noise"],
        given["rate"], given["steps"], given["clip"], given["charges"],
    )  # fmt: skip


def like(**more: Any) -> Plan:
    value = {
        "name": "like",
        "training": {"local_steps": 1, "max_gradient_norm": None},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": 1.0},
        "federation": {"weighting": "equal"},
    }
    return plan_from_json(json.dumps(value | more))


def no_noise(self: SecureRandom, shape: Sequence[int], std: float) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.float64)


def scores(attack: Attack, place: Path) -> dict[bool, float]:
    found = {}
    for there in (True, False):
        replies = timed(attack.plan, fresh(attack.worlds[there], place), attack.questions)
        assert [r.answer.config.get("error") for r in replies] == [None] * len(replies)
        found[there] = attack.score([reply.answer for reply in replies])
    return found


@pytest.mark.parametrize(
    ("rate", "pair"), [(1.0, (1, 1)), (512 / 820, (128, 205)), (0.01, (1, 100)), (3 / 7, (3, 7))]
)
def test_a_sampling_rate_is_a_batch_over_units(rate: float, pair: tuple[int, int]) -> None:
    assert nominal(rate) == pair
    assert pair[0] / pair[1] == rate


def test_steps_add_up_with_momentum_by_hand() -> None:
    """The last step counts 1, the one before 1 + 0.9, the one before that 1 + 0.9 + 0.81."""
    assert pushed(3) == pytest.approx([1.0, 1.9, 2.71])


@pytest.mark.parametrize(
    ("engine", "plan", "clip"),
    [
        ("loop", like(), 0.25),  # local heads: only the encoder travels
        ("vmap", None, 3.0),
        ("opacus", like(heads="shared", model={"bridge": "all-stages"}), 1.0),
    ],
)
def test_the_target_is_seen_with_one_clipping_norm_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any, plan: Plan | None, clip: float
) -> None:
    """Two rounds of one step, whose momentum goes on: 1 + 1.9."""
    opening = Opening(POLICY, engine, "cpu", 32, 2, plan)
    attack = prepare(tmp_path / "worlds", mechanism(clip=clip), opening)
    assert 0.98 < attack.length <= 1.0
    assert attack.expected == pytest.approx(attack.length * (1 + 1.9))
    assert attack.noise == pytest.approx(1.5 * math.sqrt(1 + 1.9**2))
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    found = scores(attack, tmp_path / "site")
    assert found[True] == pytest.approx(attack.expected, rel=2e-3)
    assert found[False] == pytest.approx(0.0, abs=5e-3)


def test_a_teacher_may_speak_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = like(heads="shared", semi_supervision={"mode": "mean-teacher", "start": 0.5})
    attack = prepare(tmp_path / "worlds", mechanism(), Opening(POLICY, "vmap", like=plan))
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    found = scores(attack, tmp_path / "site")
    assert found[True] - found[False] == pytest.approx(attack.expected, rel=0.05)


def test_the_played_site_charges_the_mechanism(tmp_path: Path) -> None:
    attack = prepare(
        tmp_path / "worlds", mechanism(rate=512 / 820, steps=2, unit="image"), Opening(POLICY)
    )
    scores(attack, tmp_path / "site")
    charges = Ledger(tmp_path / "site" / "ledger.sqlite").charges()
    assert charges == [Charge(1.5, 512 / 820, 2)]


def test_a_noised_score_moves_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient's loss counts 1 at most, and the attacker makes it more. Two charges: 2."""
    one = mechanism(purpose="metrics", noise=10.0, charges=2)
    attack = prepare(tmp_path / "worlds", one, Opening(POLICY, rounds=2))
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    found = scores(attack, tmp_path / "site")
    assert found[True] - found[False] == pytest.approx(2.0, abs=0.05)
    assert (attack.expected, attack.noise) == (2.0, pytest.approx(10.0 * math.sqrt(2)))
    assert Ledger(tmp_path / "site" / "ledger.sqlite").charges() == [Charge(10.0, 1.0, 1)] * 2


def test_an_attack_that_sees_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.privacy.membership.attack.LOUD", 1e-9)
    with pytest.raises(BlindError, match="such an attack sees nothing"):
        prepare(tmp_path / "worlds", mechanism(), Opening(POLICY))
