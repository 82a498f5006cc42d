"""A coordinator that asks anything, any number of times: what it gets, and what it can use up.

A seeded program of questions: legal ones, repeated ones, and every kind of wrong one. The site
answers each in the shape that is allowed, never raises, is trained on as often as its ledger says,
and grows neither on the disk nor in memory with what is asked.
"""

import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import answer as answering
from client.answer import answer
from client.border.deadline import Due, in_time
from client.data.cache import Cache
from client.ledger import Ledger, verify
from client.privacy.training import train_private_round
from common.errors import SITE_CODES
from common.plan import Plan
from common.wire import Parcel
from simulations.privacy.membership.coordinator import parcel
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import UNITS, private_plan, private_site, start
from tests.unit.client.sites import small_cache

ROUNDS, CAP = 3, 8.0
KEYS = {"schema", "plan", "round", "site", "layout", "wire", "covers", "weight", "seconds", "spent"}
Question = tuple[str, Parcel]


def plan_of(**more: Any) -> Plan:
    value: dict[str, Any] = {
        "tasks": {"lungs": False},
        "training": {"local_steps": 1},
        "federation": {"rounds": ROUNDS, "wire": "fp32"},
    }
    return private_plan("asked", **(value | more))


# What a plan's JSON may say that this site refuses, and what no plan may say.
REFUSED: list[dict[str, Any]] = [
    {"privacy": {"unit": "image"}},
    {"privacy": {"delta": 0.05}},
    {"privacy": {"clipping_norm": 1e3}},
    {"privacy": {"noise_multiplier": 0.01}},
    {"privacy": {"noise_multiplier": None, "epsilon": 1e6}},
    {"privacy": {"noise_multiplier": None, "epsilon": 1e-6}},
    {"privacy": {"views": 64}},
    {"privacy": {"images_per_unit": 1000}},
    {"privacy": {"mode": "off"}},
    {"training": {"local_steps": 90_000}},
    {"training": {"batch_size": 131_072}},
    {"federation": {"rounds": 10_000}},
]
BROKEN: list[Callable[[str], Any]] = [
    lambda text: text[: len(text) // 2],
    lambda text: text.replace("dp-sgd", "none"),
    lambda text: text.replace('"seed":0', '"seed":0,"more":1'),
    lambda text: text.replace('"clipping_norm":1.0', '"clipping_norm":NaN'),
    lambda text: text.replace('"rounds":3', '"rounds":1e400'),
    lambda text: "[" * 50_000,
    lambda text: text + " " * 70_000,
    lambda text: "\x00\ud800",
    lambda text: 7,
    lambda text: ["plan"],
]
ROUND: list[Any] = [0, -1, 4, 10**9, 2**63, -(2**63), 1.5, math.nan, math.inf, "1", True, None, [1]]
BASE: list[Any] = ["0" * 64, "../../etc/passwd", "A" * 64, "", "x" * 100_000, 7, None, ["a"]]


class Coordinator:
    """A seeded stream of questions; the same seed asks the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._plans = [plan_of(), plan_of(seed=1)]
        self._asked: list[Question] = []
        self._start = start(self._plans[0])
        self._kinds = (self.legal, self.again, self.refused, self.broken, self.numbers, self.odd)

    def next(self) -> Question:
        """The next question."""
        kind = self._kinds[self._random.choice(len(self._kinds), p=(0.1, 0.1, 0.2, 0.2, 0.2, 0.2))]
        question = kind()
        if len(self._asked) < 50:
            self._asked.append(question)
        return question

    def one(self, some: list[Any]) -> Any:
        """One of them."""
        return some[int(self._random.integers(len(some)))]

    def good(self, plan: Plan | None = None) -> Question:
        """A question in order, as far as the plan is."""
        plan = plan or self.one(self._plans)
        shared = self._start * np.float32(self.one([1.0, 1.0, 0.0, 1e30]))
        action = self.one(["train", "train", "train", "finish"])
        return action, parcel(plan, int(self._random.integers(1, ROUNDS + 1)), shared)

    def legal(self) -> Question:
        """A round, its end, or a greeting; now and then of a plan that nobody has seen."""
        if self._random.random() < 0.2:
            return "hello", Parcel({}, {"base_sha256": "0" * 64, "site": "icu"}, {})
        new = self._random.random() < 0.3
        return self.good(plan_of(seed=int(self._random.integers(2**62))) if new else None)

    def again(self) -> Question:
        """A question that was asked before."""
        return self.one(self._asked) if self._asked else self.good()

    def refused(self) -> Question:
        """A plan that is in order and against the policy, of one of many seeds."""
        more = dict(self.one(REFUSED))
        plan = plan_of(seed=int(self._random.integers(2**62)))
        value = json.loads(plan.to_json())
        for section, change in more.items():
            value[section] |= change
        action, asked = self.good()
        return action, with_config(asked, plan=json.dumps(value))

    def broken(self) -> Question:
        """A plan that is none, or a question without a part of it."""
        action, asked = self.good()
        if self._random.random() < 0.3:
            config = dict(asked.config)
            config.pop(self.one(sorted(config)))
            return action, replace(asked, config=config)
        return action, with_config(asked, plan=self.one(BROKEN)(str(asked.config["plan"])))

    def numbers(self) -> Question:
        """A round, or parameters, that the plan does not have."""
        action, asked = self.good()
        what = self._random.integers(3)
        if what == 0:
            return action, with_config(asked, round=self.one(ROUND))
        if what == 1:
            return action, with_config(asked, base_sha256=self.one(BASE))
        base = asked.arrays["base"]
        odd: list[Any] = [
            {},
            {"delta": base},
            {"delta": base[:-1], "base": base},
            {"delta": np.full_like(base, np.nan), "base": base},
            {"delta": np.full_like(base, 3e38), "base": np.full_like(base, 3e38)},
            {"delta": base.astype(np.float64), "base": base},
            {"delta": base.reshape(1, -1), "base": base},
            {"delta": np.zeros(0, np.float32), "base": np.zeros(0, np.float32)},
            {"delta": base, "base": base, "patients": base},
            {"delta": np.array(["Doe"]), "base": base},
        ]
        return action, replace(asked, arrays=self.one(odd))

    def odd(self) -> Question:
        """Random bytes, actions that do not exist, another's name, another wire."""
        action, asked = self.good()
        noise = self._random.bytes(int(self._random.integers(1, 4000)))
        what = self._random.integers(4)
        if what == 0:
            words = np.frombuffer(noise[: len(noise) // 4 * 4], np.float32)
            return action, replace(asked, arrays={"delta": words, "base": words})
        if what == 1:
            return action, with_config(asked, plan=noise.decode("latin-1"))
        if what == 2:
            return self.one(["", "delete", "__init__", "train\n", "evaluate"]), asked
        return action, with_config(asked, site="icu", wire=self.one(["fp8", "bf16", 7]))


def with_config(asked: Parcel, **config: Any) -> Parcel:
    return replace(asked, config=asked.config | config)


@pytest.fixture
def cache(nih_archive: ArchiveFactory, tmp_path: Path) -> Cache:
    return small_cache(nih_archive(patients=10, images=1), tmp_path / "cache")


def check_shape(action: str, reply: Parcel, size: int) -> None:
    """An error is a code; a greeting, an end and an update have their keys, and nothing else."""
    assert reply.config["site"] == "ward"
    if "error" in reply.config:
        assert set(reply.config) <= {"site", "error", "fits"}
        assert reply.config["error"] in SITE_CODES
        assert (reply.arrays, reply.metrics) == ({}, {})
    elif action == "train":
        assert (set(reply.config), set(reply.arrays), reply.metrics) == (KEYS, {"delta"}, {})
        delta = reply.arrays["delta"]
        assert (delta.dtype, delta.shape) == (np.float32, (size,))
        assert np.isfinite(delta).all()
        assert (reply.config["weight"], reply.config["seconds"]) == (float(UNITS), 0.0)
    else:
        more = {"hello": {"holds_base"}, "finish": set[str]()}[action]
        assert (set(reply.config), reply.arrays, reply.metrics) == ({"site"} | more, {}, {})
    assert len(repr(reply.config)) < 3000


def put_all(folder: Path, questions: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Ask so many, and check each answer; returns what it took."""
    trained: list[int] = []

    def counting(*arguments: Any) -> None:
        trained.append(int(arguments[-1]))
        train_private_round(*arguments)

    monkeypatch.setattr(answering, "_sites", {})
    monkeypatch.setattr(Due, "wait", lambda _: None)
    monkeypatch.setattr("client.site.train_private_round", counting)
    coordinator, size = Coordinator(7), start(plan_of()).size
    answered, memory, begun = 0, 0, time.process_time()
    for number in range(questions):
        action, asked = coordinator.next()
        reply = answer(action, asked, folder)
        check_shape(action, reply, size)
        answered += "delta" in reply.arrays
        if number == questions // 4:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    in_time(folder / "state", time.monotonic() + 600, lambda: None, lambda: None)
    ledger = Ledger(folder / "ledger.sqlite")
    entries = verify(ledger.path).entries
    # Nothing was trained for which the ledger holds no charge, and the cap held.
    assert len(trained) == len(ledger.charges()) > 0
    assert ledger.epsilon(1e-5) <= CAP
    assert answered > 0
    # The start, the policy; a charge and a message for each; refusals, ends that tell nothing, and
    # heads that were fitted without noise after an end.
    assert entries <= 2 + 2 * len(trained) + 3 * 100
    files = [file for file in folder.rglob("*") if file.is_file()]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return {
        "trained": len(trained),
        "entries": entries,
        "megabytes on disk": sum(file.stat().st_size for file in files) / 1e6,
        "megabytes of memory after a quarter": grown / 1e3,
        "milliseconds each": 1e3 * (time.process_time() - begun) / questions,
    }


def ward(tmp_path: Path, cache: Cache) -> Path:
    """A real hospital with room for a few rounds."""
    policy = {"epsilon": CAP, "min_noise_multiplier": 0.5, "join": "until-spent"}
    return private_site(tmp_path / "ward", cache, policy=policy, serving_head_epochs=1)


def test_some_hundred_questions(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.notes.MOST_BYTES", 100_000)
    monkeypatch.setattr("client.learning.states.PLANS_KEPT", 3)
    folder = ward(tmp_path, cache)
    found = put_all(folder, 180, monkeypatch)
    print(found)
    assert found["megabytes on disk"] < 40, found
    assert found["megabytes of memory after a quarter"] < 100, found
    for file in (folder / "reports").iterdir():
        assert file.stat().st_size < 150_000, file


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_questions(
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    found = put_all(ward(tmp_path, cache), 10_000, monkeypatch)
    for name, value in found.items():
        record_property(name, value)
    print(found)
    assert found["megabytes on disk"] < 150, found
    assert found["megabytes of memory after a quarter"] < 200, found
    assert found["milliseconds each"] < 150, found
