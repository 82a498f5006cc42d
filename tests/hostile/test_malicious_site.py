"""A site that sends anything, in the server's real rounds: what it can do to the model.

Whatever one of three sites sends, attack after attack: the model moves by the honest sites'
updates, and by what the plan's caps give the third. Which share each site had is found from the
numbers alone, as the step is a mix of the three updates.
"""

import copy
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.findings import FINDINGS
from common.parameters import Flat
from common.wire import Parcel
from server import app as server_app
from server.run_folder import RunFolder, State
from server.transport import Reply
from tests.unit.server.federation_world import LocalTransport, World, make_plan, start

NAMES = ("ward", "icu", "rural")  # of 4, 3 and 5 images; the first is malicious
NODE = 11  # of the ward
SIZE, BASE = start("local")[0].size, start("local")[1]
LONGEST, OUTLIER = 3.0, 10.0  # times the start's norm; times the round's median
NAN, INF = float("nan"), float("inf")
Attack = Callable[[Parcel, "Attacker"], list[Parcel]]


class Attacker:
    """Every attack once, in an order drawn by a seed; in the first round the site is good.

    claims: by how much its weight is more than its images.

    honest: the others' updates of this round. old: parcels of earlier rounds.
    """

    def __init__(self, seed: int, claims: float) -> None:
        self.random, self._claims = np.random.default_rng(seed), claims
        self.order = [0, *(1 + self.random.permutation(len(ATTACKS) - 1)).tolist()]
        self.old: list[Parcel] = []
        self.honest: list[Flat] = []
        self.accepted: list[bool] = []  # what has to become of each

    def answers(self, good: Parcel) -> list[Parcel]:
        """What the site sends instead of a good update: any number of answers."""
        accepted, attack = ATTACKS[self.order[len(self.accepted) % len(ATTACKS)]]
        self.accepted.append(accepted)
        sent = attack(good, self)
        return [self._claiming(parcel) for parcel in sent]

    def _claiming(self, parcel: Parcel) -> Parcel:
        weight = parcel.config.get("weight")
        if not isinstance(weight, float):
            return parcel
        return replace(parcel, config=parcel.config | {"weight": self._claims * weight})


def length(values: Flat) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def sized(factor: float) -> Attack:
    """Anywhere, so much of the longest that may pass: by the start, and by the round's median.

    It is the longest of three, so the median is the longer honest one.
    """

    def attack(good: Parcel, attacker: Attacker) -> list[Parcel]:
        most = min(LONGEST * length(BASE), OUTLIER * max(map(length, attacker.honest)))
        along = attacker.random.normal(size=SIZE)
        along *= factor * most / np.linalg.norm(along)
        return [replace(good, arrays={"delta": along.astype(np.float32)})]

    return attack


def said(**config: Any) -> Attack:
    return lambda good, _: [replace(good, config=good.config | config)]


def filled(value: float) -> Attack:
    return held(lambda: np.full(SIZE, value, np.float32))


def held(array: Callable[[], Any], name: str = "delta") -> Attack:
    return lambda good, _: [replace(good, arrays={name: array()})]


def spoilt(good: Parcel, attacker: Attacker) -> list[Parcel]:
    """A good update with one number in it that is none."""
    delta = good.arrays["delta"].copy()
    delta[int(attacker.random.integers(SIZE))] = attacker.random.choice([NAN, INF, -INF])
    return [replace(good, arrays={"delta": delta})]


def replayed(good: Parcel, attacker: Attacker) -> list[Parcel]:
    """What anybody sent in an earlier round."""
    return [attacker.old[int(attacker.random.integers(len(attacker.old)))]]


def bomb() -> bytes:
    """A header that promises 4 TB, and nothing after it."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def packed() -> bytes:
    """4 MB of zeros, compressed to 4 kB."""
    stream = io.BytesIO()
    np.savez_compressed(stream, np.zeros(10**6, np.float32))
    return stream.getvalue()


ATTACKS: list[tuple[bool, Attack]] = [
    (True, lambda good, _: [good]),
    *((factor < 1, sized(factor)) for factor in (0.5, 0.999, 1.001, 1e3, 1e20)),
    *((True, said(weight=weight)) for weight in (2.0, 8.0)),
    *((False, said(weight=w)) for w in (1.0, 9.0, 4.5, 1e8, 1e9, 0.0, -4.0, NAN, INF)),
    *((False, said(site=name)) for name in ("icu", "nobody", "", "../x", 7, None, ["ward"])),
    *((False, said(round=number)) for number in (0, -1, 10**9, 1.5, True, "1", INF)),
    *((False, said(plan=plan)) for plan in ("0" * 64, "", 7)),
    *((False, said(layout=layout)) for layout in ("0" * 64, "x" * 10**6)),
    (True, said(covers=list(FINDINGS))),
    *((False, said(covers=names)) for names in (["Edema"] * 10**5, ["Mass", "Mass"], "all")),
    (False, said(seconds=NAN)),
    *((False, said(spent=text)) for text in ("{}", "x" * 10**6, '{"epsilon": NaN}', 7)),
    *((True, filled(value)) for value in (0.0, 1e-40)),
    *((False, filled(value)) for value in (NAN, INF, 3e38, -3e38)),
    (False, held(lambda: np.zeros(SIZE - 1, np.float32))),
    (False, held(lambda: np.zeros(1, np.float32))),
    (False, held(lambda: np.zeros((1, SIZE), np.float32))),
    (False, held(lambda: np.zeros(SIZE, np.float64))),
    (False, held(lambda: np.zeros(SIZE, np.int16))),
    (False, held(lambda: np.full(SIZE, "x"))),
    (False, held(lambda: np.zeros(SIZE, np.float32), "base")),
    *((False, held(data)) for data in (bomb, packed, lambda: zlib.compress(bytes(10**6)), bytes)),
    (False, spoilt),
    (False, replayed),
    (True, lambda good, _: [good, good, replace(good, arrays={"delta": 9 * good.arrays["delta"]})]),
    (False, lambda good, _: [replace(good, config={"site": "ward", "error": "budget-spent"})]),
    (False, lambda good, _: [replace(good, metrics={f"val_{n}": 0.5 for n in range(10**4)})]),
    (True, lambda good, _: [replace(good, metrics={"val_macro_auroc": 1e6})]),
    (False, lambda good, _: [Parcel({}, {}, {})]),
    (False, lambda good, _: []),
]  # fmt: skip


class Hostile(LocalTransport):
    """Carries parcels as Flower's records do, and lets the ward send what it likes.

    updates: what each site sent first in this round.
    """

    def __init__(self, folders: list[Path], attacker: Attacker) -> None:
        super().__init__(folders)
        self.attacker, self.updates = attacker, dict[str, Flat]()
        self._late: list[Reply] = []

    def ask(self, action: str, parcels: Mapping[int, Parcel], timeout: float) -> Iterator[Reply]:
        """The honest answers, those of the ward between them, and one of the round before."""
        replies = list(super().ask(action, parcels, timeout))
        if action != "train":
            yield from replies
            return
        good = {reply.node: reply.parcel for reply in replies if reply.parcel is not None}
        self.attacker.honest = [p.arrays["delta"] for node, p in good.items() if node != NODE]
        sent = [Reply(node, parcel) for node, parcel in good.items() if node != NODE]
        bad = self.attacker.answers(copy.deepcopy(good[NODE]))
        sent[1:1] = [Reply(NODE, parcel) for parcel in bad]
        self.updates = {}
        for reply in [*sent, *self._late]:
            assert reply.parcel is not None
            carried = through_flower(reply.node, reply.parcel)
            if carried.parcel is not None:
                name, arrays = self.folders[reply.node].name, carried.parcel.arrays
                self.updates.setdefault(name, arrays.get("delta", np.zeros(0, np.float32)))
            yield carried
        self._late = sent[:1]
        self.attacker.old += [sent[0].parcel] if sent[0].parcel is not None else []


class Carried:
    """As much of Flower's message as the server reads."""

    def __init__(self, content: RecordDict) -> None:
        self.content = content

    def has_error(self) -> bool:
        return False


def through_flower(node: int, parcel: Parcel) -> Reply:
    """The reply as it comes out of Flower's records; what they cannot hold is left out."""
    config, metrics = ConfigRecord(), MetricRecord()
    for record, values in ((config, parcel.config), (metrics, parcel.metrics)):
        for key, value in values.items():
            try:
                record[key] = value
            except (TypeError, ValueError):
                continue
    arrays = ArrayRecord(
        {
            name: Array("float32", (SIZE,), "numpy.ndarray", value)
            if isinstance(value, bytes)
            else Array(value)
            for name, value in parcel.arrays.items()
        }
    )
    content = RecordDict({"arrays": arrays, "config": config, "metrics": metrics})
    return server_app._to_reply(Carried(content), node)


def shares_of(step: Flat, updates: list[Flat]) -> list[float]:
    """Of what share of each update the step is made, by least squares."""
    columns = np.array([update.astype(np.float64) for update in updates]).T
    lengths = np.linalg.norm(columns, axis=0)
    columns /= lengths
    wanted = step.astype(np.float64)
    found = np.linalg.solve(columns.T @ columns, columns.T @ wanted)
    rest = np.linalg.norm(wanted - columns @ found)
    assert rest < 1e-3 * np.linalg.norm(wanted), "a step that is no mix of what the sites sent"
    return list(found / lengths)


def attacked(
    place: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, claims: float, **federation: Any
) -> Iterator[tuple[Hostile, Flat, dict[str, Any]]]:
    """The transport, the step and the record of each round of a run, once it is done."""
    world = World(place, monkeypatch, NAMES)
    hostile = Hostile([world.transport.folders[n] for n in sorted(world.transport.folders)],
                      Attacker(3, claims))  # fmt: skip
    world.transport = hostile
    found: list[tuple[Hostile, Flat, dict[str, Any]]] = []
    commit = RunFolder.commit

    def watched(self: RunFolder, state: State, record: dict[str, Any]) -> None:
        seen = copy.copy(hostile)
        found.append((seen, state.shared - self.state.shared, dict(record)))
        commit(self, state, record)

    monkeypatch.setattr(RunFolder, "commit", watched)
    world.run(make_plan(rounds=rounds, wire="fp32", **federation))
    assert len(found) == rounds
    assert all(said.isprintable() and len(said) < 400 for said in world.lines)
    lines = (world.run_path / "rounds.jsonl").read_text().splitlines()
    assert max(map(len, lines)) < 20_000
    yield from found


@pytest.mark.parametrize(("claims", "rounds"), [(1.0, len(ATTACKS)), (2000.0, 12)])
def test_whatever_a_site_sends_its_share_is_what_the_plan_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: float, rounds: int
) -> None:
    """In proportion to 3 and 5 images, and what the site claims: at most half for anybody."""
    run = attacked(tmp_path, monkeypatch, rounds, claims)
    for number, (hostile, step, record) in enumerate(run):
        expected = hostile.attacker.accepted[number]
        sites = record["sites"]
        assert set(sites) == ({"ward", "icu", "rural"} if expected else {"icu", "rural"}), record
        left_out = [r["site"] for r in (*record["rejected"], *record["failed"])]
        assert expected or "ward" in (*left_out, *record["missing"]), record
        assert not {"icu", "rural"} & {*left_out, *record["missing"]}, record
        updates = {site: hostile.updates[site] for site in sites}
        heard = {site: delta for site, delta in updates.items() if length(delta) > 1e-6}
        shares = dict(zip(heard, shares_of(step, list(heard.values())), strict=True))
        own = 0.0
        if expected:
            images = sites["ward"]["weight"]
            own = min(0.5, images / (images + 3 + 5))
            assert length(updates["ward"]) <= LONGEST * length(BASE)
        # Two of equal power where the third is out, else in proportion.
        others = {"icu": 3 / 8, "rural": 5 / 8} if expected else {"icu": 0.5, "rural": 0.5}
        for site, share in others.items():
            assert shares[site] == pytest.approx((1 - own) * share, abs=2e-3), (number, shares)
        if "ward" in shares:
            assert shares["ward"] == pytest.approx(own, abs=2e-3), (number, shares)


@pytest.mark.parametrize("name", ["fedmedian", "fedadam", "fedavgm"])
def test_other_strategies_stay_within_what_the_honest_sites_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A median of three lies between the two honest ones, number by number; all stay finite."""
    for hostile, step, record in attacked(tmp_path, monkeypatch, 10, 1.0, strategy={"name": name}):
        assert np.isfinite(step).all()
        assert record["not_applied"] is None
        assert json.dumps(record, allow_nan=False)
        if name == "fedmedian":
            honest = [hostile.updates[site] for site in ("icu", "rural")]
            low, high = (edge(honest, axis=0) for edge in (np.min, np.max))
            room = 1e-5 * np.abs(step).max()
            assert ((step >= low - room) & (step <= high + room)).all()
