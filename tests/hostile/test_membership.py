"""No answer tells whether a patient is there any better than epsilon allows, whatever is asked.

What a new feature of private training has to pass. First without noise: what leaves may move by
one clipping norm, and words may not move at all. Then with it: the membership game.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client import answer as answering
from client.privacy.random import SecureRandom
from common.parameters import Flat
from common.plan import Plan, plan_from_json
from common.wire import Parcel
from simulations.privacy.membership.coordinator import ask, honest
from simulations.privacy.membership.game import play, spent, words
from simulations.privacy.membership.world import (
    SIZE,
    UNITS,
    Target,
    fresh,
    make_world,
    pictures,
)
from tests.hostile.coordinator import aimed, hostile

ENGINES = ("loop", "vmap", "opacus")
STILL = dict.fromkeys(
    ("rotate_degrees", "translate", "scale", "brightness", "contrast", "gamma", "noise"), 0.0
)
# Plans by what could let units meet: a bridge and a teacher look at images once more.
PLANS: dict[str, dict[str, Any]] = {
    "shared heads": {"heads": "shared"},
    "local heads": {},
    "images": {"heads": "shared", "privacy": {"unit": "image", "images_per_unit": 1}},
    "bridge": {"heads": "shared", "model": {"bridge": "all-stages"}},
    "teacher": {
        "heads": "shared",
        "semi_supervision": {
            "mode": "mean-teacher", "start": 0.0, "ramp": 0.0, "weak": STILL,
            "strong": {**STILL, "blur": 0.0},
        },
    },
    "noised scores": {"heads": "shared"},
}  # fmt: skip
TARGETS = {
    "train": Target(),
    "no mask": Target(masks=False),
    "no label": Target(labelled=False),
    "100 images": Target(images=100),
    "val": Target(split="val"),
}
NOISE, ROUNDS, PLAYS = 1.5, 2, 60


@pytest.fixture(autouse=True)
def no_open_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_sites", {})


def private_plan(kind: str) -> Plan:
    """One step a round that takes every unit and adds its clipped gradient to the weights."""
    value: dict[str, Any] = {
        "name": "hostile",
        "seed": 5,
        "model": {"backbone": "tiny", "image_size": SIZE, "decoder_width": 8},
        "training": {
            "local_steps": 1, "batch_size": UNITS, "max_gradient_norm": None, "optimizer": "sgd",
            "learning_rate": 1.0, "schedule": "constant", "warmup_rounds": 0.0,
            "weight_decay": 0.0, "augment": STILL,
        },
        "federation": {"rounds": ROUNDS, "weighting": "equal", "wire": "fp32"},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": NOISE, "images_per_unit": 2},
    }  # fmt: skip
    for section, change in PLANS[kind].items():
        old = value.get(section, {})
        value[section] = {**old, **change} if isinstance(change, dict) else change
    return plan_from_json(json.dumps(value))


def site_settings(kind: str, engine: str) -> dict[str, Any]:
    """A simulated hospital, which answers as soon as it can, with a budget."""
    policy: dict[str, Any] = {"epsilon": 1e5, "min_noise_multiplier": 0.1}
    policy["unit"] = "image" if kind == "images" else "patient"
    policy["metrics"] = "noised" if kind == "noised scores" else "none"
    return {"engine": engine, "simulated": True, "policy": policy}


def questions(plan: Plan, shared: Flat) -> list[tuple[str, int, Flat]]:
    """A round, the same round again, and the end."""
    return [("train", 1, shared), ("train", 1, shared), ("finish", ROUNDS, shared)]


def no_noise(self: SecureRandom, shape: Sequence[int], std: float) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.float64)


def moved(plan: Plan, worlds: dict[bool, Path], place: Path, shared: Flat) -> float:
    """How far the update moves, in clipping norms, when the target is taken out.

    Fails when anything but the numbers of the update (and of noised scores) moves at all.
    """
    seen: dict[bool, list[Parcel]] = {}
    for there in (True, False):
        seen[there] = ask(plan, fresh(worlds[there], place), questions(plan, shared))
    for with_target, without in zip(seen[True], seen[False], strict=True):
        assert words(with_target) == words(without)
    deltas = [seen[there][0].arrays.get("delta") for there in (True, False)]
    if deltas[0] is None or deltas[1] is None:
        return 0.0  # refused, in the same words
    step = deltas[0].astype(np.float64) - deltas[1]
    return float(np.linalg.norm(step)) * UNITS / plan.privacy.clipping_norm


CASES = [
    ("shared heads", "train", "vmap"),
    ("shared heads", "train", "opacus"),
    ("local heads", "train", "vmap"),
    ("bridge", "no mask", "loop"),
    ("noised scores", "val", "loop"),
]
ALL = [
    *[(kind, "train", engine) for kind in PLANS for engine in ENGINES],
    *[("shared heads", who, engine) for who in ("100 images", "val") for engine in ENGINES],
]
STRIDE = 8 * len(ALL)  # two hostile weights a case, spread over the layers


def check_moves(tmp_path: Path, case: tuple[str, str, str], part: tuple[int, None, int]) -> None:
    kind, who, engine = case
    plan = private_plan(kind)
    worlds = make_world(tmp_path, TARGETS[who], site_settings(kind, engine))
    found, tried = {}, [("honest", honest(plan)), *islice(hostile(plan), *part)]
    if plan.heads == "shared":
        tried.append(("aimed at the target", aimed(plan, *pictures(worlds[True]))))
    for name, shared in tried:
        found[name] = moved(plan, worlds, tmp_path / "asked", shared)
    loudest = max(found, key=lambda name: found[name])
    # An image is a unit of its own where images are counted.
    limit = TARGETS[who].images if plan.privacy.unit == "image" else 1
    # In float32 the weights that come back are rounded to their own last bit.
    assert found[loudest] <= 1.01 * limit, f"weights {loudest}: {found[loudest]:.2f} clipping norms"
    if who == "val":  # it is in no private step
        assert found[loudest] == 0.0
    elif who not in ("no label", "no mask") or kind == "teacher":
        assert found["honest"] > 0.01, "the target teaches nothing: this test sees nothing"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_patient_moves_what_leaves_by_one_clipping_norm(
    tmp_path: Path, case: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    check_moves(tmp_path, case, (CASES.index(case), None, 120))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_one_patient_moves_what_leaves_by_one_clipping_norm_in_every_way(
    tmp_path: Path, case: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureRandom, "normal", no_noise)
    check_moves(tmp_path, case, (ALL.index(case), None, STRIDE))


# A game takes half a minute: all of them are in the slow half.
GAMES = [
    ("shared heads", "train", "vmap", "3e+38 in lungs.logit.weight"),
    ("teacher", "100 images", "vmap", "honest"),
    ("noised scores", "val", "opacus", "honest"),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("game", GAMES, ids=str)
def test_nobody_guesses_better_than_epsilon_allows(
    tmp_path: Path, game: tuple[str, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, who, engine, name = game
    plan = private_plan(kind)
    shared = dict([("honest", honest(plan)), *hostile(plan)])[name]
    worlds, place = make_world(tmp_path, TARGETS[who], site_settings(kind, engine)), tmp_path / "at"
    with monkeypatch.context() as still:
        still.setattr(SecureRandom, "normal", no_noise)
        with_target, without = (
            ask(plan, fresh(worlds[there], place), questions(plan, shared))[0].arrays.get("delta")
            for there in (True, False)
        )
    known = with_target is not None and without is not None
    direction = np.nan_to_num(with_target - without) if known else None
    outcome = play(
        worlds, place, lambda site: ask(plan, site, questions(plan, shared)), PLAYS, direction
    )
    mu = spent(place / "ledger.sqlite")
    if who == "val" and kind != "noised scores":
        mu = 0.0  # it is in no private step: nothing may be told of it at all
    allowed = outcome.allowed(mu)
    assert allowed < PLAYS, "a game that nobody can lose"
    assert outcome.right <= allowed, (
        f"{outcome.right} of {PLAYS} guesses are right by {outcome.feature!r}; mu = {mu:.2f} "
        f"allows {allowed}"
    )
