"""One site sends anything; the run goes on with the others, and what is written stays plain."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.checkpoint import read_json
from common.wire import Parcel
from tests.unit.server.federation_world import World, make_plan, start

NAMES = ("ward", "icu", "rural")
SIZE = start("local")[0].size
LINE = 20_000  # characters of a line of rounds.jsonl: three sites and one rejection

ODD = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=200),
    st.lists(st.text(max_size=5), max_size=20),
    st.just(["Edema"] * 100_000),
    st.just("\x1b[2J" * 100_000),
)
KNOWN = "site plan round schema layout wire covers weight seconds spent error fits holds_base"
KEYS = st.one_of(st.sampled_from(KNOWN.split()), st.text(max_size=100))
ARRAY = st.builds(
    np.full,
    st.sampled_from([(SIZE,), (SIZE - 1,), (1,), (0,), (SIZE, 1)]),
    st.sampled_from([0, 1, 0x7FC0, 0x7F7F, 0x4900]),
    st.sampled_from(["int16", "float32", "int64"]),
)


@st.composite
def attacks(draw: st.DrawFn) -> dict[str, Parcel]:
    """For each question, what is put over the good answer's parts."""
    return {
        action: Parcel(
            draw(st.dictionaries(st.sampled_from(["delta", "base"]), ARRAY, max_size=2)),
            draw(st.dictionaries(KEYS, ODD, max_size=4)),
            draw(st.dictionaries(st.sampled_from(["val_dice", "x\n", "a" * 99]), ODD, max_size=3)),
        )
        for action in ("query.hello", "train", "query.finish")
    }


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Grows by one folder an example."""
    return [tmp_path]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(attack=attacks())
def test_nothing_that_one_site_sends_ends_the_run(
    attack: dict[str, Parcel], places: list[Path]
) -> None:
    places.append(places[0] / str(len(places)))
    with pytest.MonkeyPatch.context() as patch:
        world = World(places[-1], patch, NAMES)

        def hostile(action: str, good: Parcel) -> Parcel:
            over = attack[action]
            return Parcel(
                good.arrays | over.arrays, good.config | over.config, good.metrics | over.metrics
            )

        world.transport.faults["ward"] = hostile
        world.run(make_plan(rounds=2))
    state = read_json(world.run_path / "state.json")
    assert state["status"] == "completed"
    assert {"icu", "rural"} <= set(state["finish"]["sites"])
    for line in (world.run_path / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert len(line) < LINE
        for rejected in record["rejected"]:
            assert rejected["detail"].isprintable()
            assert len(rejected["detail"]) <= 200
    assert all(said.isprintable() and len(said) < 400 for said in world.lines)
    assert {path.name for path in places[-1].iterdir()} == {*NAMES, "run"}
