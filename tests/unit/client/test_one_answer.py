"""One shape of answer: whatever becomes of a private question, it tells nothing of the data."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.answer import answer, forget, open_once
from client.border.deadline import in_time
from client.data.cache import Cache
from client.ledger import Ledger
from client.site import Site
from common.checkpoint import array_sha256
from common.errors import FailedError
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan
from common.update import Broadcast
from common.wire import Parcel, pack_broadcast
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import private_plan, private_site, start
from tests.unit.client.sites import small_cache

SLOT = 4.0  # seconds: a round of these sites takes one
FAILED = {"site": "ward", "error": "failed"}


@pytest.fixture
def cache(nih_archive: ArchiveFactory, tmp_path: Path) -> Cache:
    return small_cache(nih_archive(patients=10, images=2, masks=True), tmp_path / "cache")


def played(cache: Cache, tmp_path: Path, **settings: Any) -> Path:
    """A simulated site, which does not wait."""
    return private_site(tmp_path / "ward", cache, simulated=True, **settings)


def question(plan: Plan, number: int, shared: Flat) -> Parcel:
    received = array_sha256(shared)
    sent = Broadcast(plan.to_json(), number, received, np.zeros_like(shared), base=shared)
    return pack_broadcast(sent, "bf16")


def overflowing(plan: Plan) -> Flat:
    """Finite weights of which every score of a finding is infinite or not a number."""
    model = build_model(plan)
    assert model.findings is not None
    for parameter in model.findings.parameters():
        parameter.data.fill_(3e38)
    return flatten(model, shared_layout(model, plan.heads))


def entries(folder: Path) -> list[str]:
    return [entry.kind for entry in Ledger(folder / "ledger.sqlite").entries()]


def test_a_finish_is_one_constant_whatever_the_weights_do(cache: Cache, tmp_path: Path) -> None:
    folder, plan = played(cache, tmp_path), private_plan(heads="shared")
    for shared in (start(plan), overflowing(plan)):
        assert answer("finish", question(plan, 3, shared), folder) == Parcel(
            {}, {"site": "ward"}, {}
        )


@pytest.mark.parametrize("spoilt", ["rows", "cache", "state"])
def test_a_finish_says_the_same_without_any_data(cache: Cache, tmp_path: Path, spoilt: str) -> None:
    folder, plan = played(cache, tmp_path), private_plan()
    if spoilt == "rows":
        (folder / "rows.parquet").write_text("no")
    elif spoilt == "cache":
        (cache.folder / "index.parquet").unlink()
    else:
        states = folder / "state" / plan.sha256[:16]
        states.mkdir(parents=True)
        (states / "round-00001.safetensors").write_text("no")
    reply = answer("finish", question(plan, 3, start(plan)), folder)
    assert reply == Parcel({}, {"site": "ward"}, {})
    assert "finish of private: not done" in (folder / "reports" / "site.log").read_text()


def test_scoring_cannot_stop_an_update(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure of a score may depend on one validation image; the update has left by then."""
    folder, plan = played(cache, tmp_path), private_plan()

    def fails(*_: object) -> None:
        raise MemoryError("of a patient")

    monkeypatch.setattr("client.ward.predict", fails)
    reply = answer("train", question(plan, 1, start(plan)), folder)
    assert "error" not in reply.config
    assert "of a patient" in (folder / "reports" / "site.log").read_text()


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit])
def test_whatever_breaks_in_a_round_has_one_code_and_is_charged(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folder, plan = private_site(tmp_path / "ward", cache, policy={"deadline": 2.0}), private_plan()

    def breaks(*_: object) -> None:
        raise error("of a patient")

    monkeypatch.setattr("client.site.train_private_round", breaks)
    begun = time.monotonic()
    reply = answer("train", question(plan, 1, start(plan)), folder)
    assert 2.0 <= time.monotonic() - begun < 2.3
    assert (dict(reply.config), reply.arrays, reply.metrics) == (FAILED, {}, {})
    assert entries(folder) == ["open", "policy", "reserve"]
    assert "of a patient" in (folder / "reports" / "site.log").read_text()


@pytest.mark.parametrize("spoilt", ["rows", "absent", "manifest"])
def test_data_that_is_not_in_order_has_the_same_code(
    cache: Cache, tmp_path: Path, spoilt: str
) -> None:
    folder, plan = played(cache, tmp_path), private_plan()
    rows = folder / "rows.parquet"
    if spoilt == "rows":
        rows.write_text("no")
    elif spoilt == "absent":
        pd.read_parquet(rows).assign(image=lambda table: "x" + table["image"]).to_parquet(rows)
    else:
        (cache.folder / "manifest.json").unlink()
    assert dict(answer("train", question(plan, 1, start(plan)), folder).config) == FAILED


def test_an_early_answer_waits_and_a_kept_one_too(cache: Cache, tmp_path: Path) -> None:
    folder = private_site(tmp_path / "ward", cache, policy={"deadline": SLOT})
    plan = private_plan()
    for action in ("train", "train", "finish"):  # the second is sent again without any training
        begun = time.monotonic()
        reply = answer(action, question(plan, 1, start(plan)), folder)
        assert SLOT <= time.monotonic() - begun < SLOT + 0.3
        assert "error" not in reply.config


def test_a_late_answer_never_leaves_and_is_not_kept(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = private_site(tmp_path / "ward", cache, policy={"deadline": 2.0}), private_plan()
    go_on, trained = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        go_on.wait(60)
        trained.set()

    monkeypatch.setattr("client.site.train_private_round", slow)
    asked = question(plan, 1, start(plan))
    begun = time.monotonic()
    assert dict(answer("train", asked, folder).config) == FAILED
    assert 2.0 <= time.monotonic() - begun < 2.3
    charged = entries(folder).count("reserve")
    # The next question waits behind it, and does not begin: nothing is charged for it.
    assert dict(answer("train", asked, folder).config) == FAILED
    assert answer("finish", asked, folder).config == {"site": "ward"}
    assert entries(folder).count("reserve") == charged == 1
    go_on.set()
    assert trained.wait(60)
    in_time(folder / "state", time.monotonic() + 60, lambda: None, lambda: None)  # all is done
    assert not list((folder / "state").rglob("sent-*"))
    assert [kind for kind in entries(folder) if kind == "sent"] == ["sent"]  # the finish


def test_greetings_and_refusals_look_at_no_data(cache: Cache, tmp_path: Path) -> None:
    folder = private_site(tmp_path / "ward", cache, policy={"epsilon": 0.5, "deadline": 60.0})
    plan = private_plan()
    (folder / "rows.parquet").unlink()
    (cache.folder / "manifest.json").unlink()
    greeting = Parcel({}, {"base_sha256": "0" * 64}, {})
    begun = time.monotonic()
    assert answer("hello", greeting, folder).config == {"site": "ward", "holds_base": False}
    reply = answer("train", question(plan, 1, start(plan)), folder)
    assert reply.config == {"site": "ward", "error": "budget-spent", "fits": 0}
    assert time.monotonic() - begun < 30.0  # a refusal leaves at once
    assert not list((folder / "state").glob("base-*"))  # and nothing of it is kept


def test_a_patient_who_is_taken_out_is_not_used_any_more(cache: Cache, tmp_path: Path) -> None:
    folder, plan = played(cache, tmp_path), private_plan()
    answer("train", question(plan, 1, start(plan)), folder)
    site = open_once(folder)
    before = set(site.data.table["patient"])
    rows = pd.read_parquet(folder / "rows.parquet")
    table = site.data.table
    gone = table["patient"].iloc[0]
    kept = table.loc[table["patient"] != gone, "image"]
    rows[rows["image"].isin(kept)].to_parquet(folder / "rows.parquet")
    answer("train", question(plan, 2, start(plan)), folder)
    assert open_once(folder) is site
    assert set(site.data.table["patient"]) == before - {gone}
    # Whom the ledger was charged for is in the charge: the ledger is no longer for the change.
    assert entries(folder).count("data") == 0
    forget(folder)


def test_serving_heads_end_with_the_time_for_them(cache: Cache, tmp_path: Path) -> None:
    folder, plan = played(cache, tmp_path, serving_head_epochs=1000), private_plan()
    site = Site.open(folder)
    site.train(plan, 1, start(plan))
    begun = time.monotonic()
    site.settle(plan, 1, start(plan), begun + 0.1)
    assert time.monotonic() - begun < 5.0
    assert not site.serving_model(plan).exists()
    assert "not done in time" in (folder / "reports" / "site.log").read_text()


def test_work_that_is_late_says_so(tmp_path: Path) -> None:
    until = time.monotonic() + 0.2
    with pytest.raises(FailedError, match="is too short for it"):
        in_time(tmp_path, until, lambda: time.sleep(1.0), lambda: None)
    with pytest.raises(KeyError):
        in_time(tmp_path, None, lambda: {}["x"], lambda: None)
