"""Proof of payment belongs to the ledger's chain, whatever is restored, replaced or played."""

import os
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.answer import answer, forget
from client.data.cache import Cache
from client.ledger import LedgerError, chain, promised
from client.privacy.accounting import Charge, epsilon
from client.site import Site
from common.errors import DataError, RefusedError
from common.plan import Plan
from simulations.privacy.membership.coordinator import parcel
from tests.conftest import ArchiveFactory
from tests.unit.client.ledger.ledgers import CAP, reservation, started
from tests.unit.client.private_world import change_policy, kinds, private_plan, private_site, start
from tests.unit.client.sites import small_cache

ROUND = Charge(1.0, 0.5, 2)  # of private_plan at these sites: batches of 4 of 8 units, two steps


@pytest.fixture
def cache(nih_archive: ArchiveFactory, tmp_path: Path) -> Cache:
    return small_cache(nih_archive(patients=8, images=1), tmp_path / "cache")


def lungless(name: str = "private", **more: Any) -> Plan:
    return private_plan(name, tasks={"lungs": False}, **more)


def copied(site: Site, to: Path) -> None:
    to.mkdir()
    for file in site.folder.path.glob("ledger.sqlite*"):
        shutil.copy(file, to / file.name)


def restore(site: Site, copy: Path) -> None:
    for file in site.folder.path.glob("ledger.sqlite*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, site.folder.path / file.name)


def test_a_ledger_set_back_is_refused_with_the_way_out(cache: Cache, tmp_path: Path) -> None:
    site, plan = Site.open(private_site(tmp_path / "ward", cache)), lungless()
    site.train(plan, 1, start(plan))
    copied(site, tmp_path / "old")
    site.train(plan, 2, start(plan))
    paid = site.gate.ledger.entries()[-1]
    copied(site, tmp_path / "new")
    restore(site, tmp_path / "old")
    for number in (2, 3):  # what was paid for and what was not
        with pytest.raises(LedgerError, match=f"without number {paid.number}") as caught:
            Site.open(site.folder.path).train(plan, number, start(plan))
        assert "the coordinator was told its number and hash" in str(caught.value)
    assert kinds(site) == ["open", "policy", "reserve"]
    restore(site, tmp_path / "new")
    assert Site.open(site.folder.path).train(plan, 3, start(plan)).spent is not None


def test_a_kept_update_leaves_only_for_the_entry_that_paid(cache: Cache, tmp_path: Path) -> None:
    """Of two simulated sites with one state folder, the second has paid for nothing."""
    site, plan = Site.open(private_site(tmp_path / "ward", cache, simulated=True)), lungless()
    first = site.train(plan, 1, start(plan))
    settings = yaml.safe_load((site.folder.path / "site.yaml").read_text())
    (site.folder.path / "site.yaml").write_text(yaml.safe_dump(settings | {"ledger": "other"}))
    other = Site.open(site.folder.path)
    again = other.train(plan, 1, start(plan))
    assert (first.delta != again.delta).any()
    assert kinds(other) == ["open", "policy", "reserve"]
    entry = other.gate.ledger.entries()[-1]
    assert other.gate.paid(plan, 1, entry.number, entry.sha256)
    for number, sha256 in ((entry.number, "0" * 64), (0, entry.sha256), (9, entry.sha256)):
        assert not other.gate.paid(plan, 1, number, sha256)
    assert not other.gate.paid(plan, 2, entry.number, entry.sha256)
    policy = other.gate.ledger.entries()[1]
    assert not other.gate.paid(plan, 1, policy.number, policy.sha256)


def test_nobody_plays_with_patients_whom_a_ledger_counts(cache: Cache, tmp_path: Path) -> None:
    plan = lungless()
    real = Site.open(private_site(tmp_path / "real", cache))
    real.train(plan, 1, start(plan))
    played = Site.open(private_site(tmp_path / "played", cache, simulated=True))
    with pytest.raises(RefusedError, match="Set `simulated: false` and `ledger: ") as caught:
        played.train(plan, 1, start(plan))
    assert caught.value.code == "patients-accounted-elsewhere"
    assert "reserve" not in kinds(played)


def test_a_simulated_site_says_that_it_plays(cache: Cache, tmp_path: Path) -> None:
    plan = lungless()
    played = Site.open(private_site(tmp_path / "played", cache, simulated=True))
    spent = played.train(plan, 1, start(plan)).spent
    assert spent is not None
    assert spent.simulated
    real = Site.open(private_site(tmp_path / "real", cache)).train(plan, 1, start(plan)).spent
    assert real is not None
    assert not real.simulated


def test_what_a_plan_was_promised_is_not_promised_twice(cache: Cache, tmp_path: Path) -> None:
    """Room for five rounds: two plans of three fit alone, and not both."""
    room = epsilon([Charge(1.0, 0.5, 10)], 1e-5) * 1.001
    site = Site.open(private_site(tmp_path / "ward", cache, policy={"epsilon": room}))
    first, second = lungless(), lungless("second")
    site.train(first, 1, start(first))
    with pytest.raises(RefusedError, match="promised to plans that have begun") as caught:
        site.train(second, 1, start(second))
    assert (caught.value.code, caught.value.fits) == ("budget-spent", 4)  # 10 steps, of which 6
    site.train(first, 2, start(first))
    site.train(first, 3, start(first))
    change_policy(site.folder.path, join="until-spent")
    assert Site.open(site.folder.path).train(second, 1, start(second)).spent is not None


def test_a_promise_is_what_is_left_and_lapses(cache: Cache, tmp_path: Path) -> None:
    policy = {"metrics": "noised", "metrics_noise": 4.0}
    site, plan = Site.open(private_site(tmp_path / "ward", cache, policy=policy)), lungless()
    site.train(plan, 1, start(plan))
    entries = site.gate.ledger.entries()
    # Two of three rounds; of a score each round and one at the finish, three.
    assert promised(entries, "another", 90) == [Charge(1.0, 0.5, 4), Charge(4.0, 1.0, 3)]
    assert promised(entries, plan.sha256, 90) == []
    assert promised(entries, "another", 1e-9) == []


def test_a_flood_of_refusals_does_not_fill_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = started(tmp_path)
    body = {"action": "train", "plan": "a" * 64, "round": 1, "code": "unit"}
    for number in range(1, 30):
        ledger.refused(body | {"round": number})
    assert [entry.kind for entry in ledger.entries()] == ["open", "refused"]
    ledger.refused(body | {"code": "delta"})
    assert ledger.head().entries == 3
    monkeypatch.setattr("client.ledger.ledger.REFUSALS_A_DAY", 10)
    for number in range(30):
        ledger.refused(body | {"plan": f"{number:064x}"})
    assert ledger.head().entries == 1 + 10


def test_a_message_that_is_sent_again_has_one_entry(cache: Cache, tmp_path: Path) -> None:
    """A round that is asked for five times, and a finish; what is told of the ledger may change."""
    folder, plan = private_site(tmp_path / "ward", cache, simulated=True), lungless()
    questions = [("train", 1, start(plan))] * 5 + [("finish", 3, start(plan))] * 5
    replies = [answer(action, parcel(plan, n, shared), folder) for action, n, shared in questions]
    site = Site.open(folder)
    assert kinds(site) == ["open", "policy", "reserve", "sent", "sent"]
    sent = site.gate.ledger.entries()[-2:]
    assert [entry.body["action"] for entry in sent] == ["train", "finish"]
    assert replies[1].config["spent"] != replies[0].config["spent"]
    forget(folder)


def test_answers_that_tell_nothing_do_not_fill_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.ledger.ledger.REFUSALS_A_DAY", 10)
    ledger = started(tmp_path)
    body = {"action": "finish", "round": 1, "sha256": "a" * 64}
    for number in range(30):
        ledger.sent(body | {"plan": f"{number:064x}"}, tells=False)
        ledger.serving({"plan": f"{number:064x}", "round": 1})
    assert ledger.head().entries == 1 + 10 + 10
    for number in range(30):  # what tells something is recorded, however much there is
        ledger.sent(body | {"plan": f"{number:064x}", "sha256": "b" * 64})
    assert ledger.head().entries == 1 + 10 + 10 + 30


def test_a_verified_chain_is_not_walked_again_and_an_edit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = started(tmp_path, rounds=3)
    ledger.entries()
    worked_out: list[int] = []
    digest = chain._digest

    def counting(number: int, *rest: Any) -> str:
        worked_out.append(number)
        return digest(number, *rest)

    monkeypatch.setattr(chain, "_digest", counting)
    ledger.entries()
    assert worked_out == []
    ledger.record("sent", {})
    ledger.entries()
    assert set(worked_out) == {5}


def test_a_delta_of_one_in_the_number_of_units_is_refused(cache: Cache, tmp_path: Path) -> None:
    policy = {"delta": 0.05}
    site = Site.open(private_site(tmp_path / "a", cache, nominal_units=20, policy=policy))
    plan = lungless()
    with pytest.raises(
        RefusedError, match=r"policy\.delta: found 0\.05; allowed: less than 1"
    ) as c:
        site.train(plan, 1, start(plan))
    assert c.value.code == "delta"
    site = Site.open(private_site(tmp_path / "b", cache, nominal_units=19, policy=policy))
    site.gate.admit("train", plan, 1)


def test_a_cap_needs_a_deadline(cache: Cache, tmp_path: Path) -> None:
    folder = private_site(tmp_path / "ward", cache)
    change_policy(folder, deadline=None)
    with pytest.raises(DataError, match=r"key 'policy\.deadline': found nothing; allowed: .*round"):
        Site.open(folder)
    change_policy(folder, deadline=0)
    with pytest.raises(DataError, match=r"policy\.deadline.*greater than 0"):
        Site.open(folder)


def test_a_charge_is_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite syncs every commit (2 is FULL, https://sqlite.org/pragma.html), and the anchor is."""
    levels: list[int] = []
    synced: list[int] = []
    connect, fsync = sqlite3.connect, os.fsync

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                levels.append(super().execute("PRAGMA synchronous").fetchone()[0])
            return super().execute(sql, *values)

    def counting(handle: int) -> None:
        synced.append(handle)
        fsync(handle)

    ledger = started(tmp_path)
    monkeypatch.setattr("client.ledger.store.sqlite3.connect", partial(connect, factory=Watched))
    monkeypatch.setattr(os, "fsync", counting)
    ledger.reserve(reservation(), CAP)
    assert levels == [2, 2]  # the entry's, and the lock under which the anchor is written
    assert len(synced) == 2  # the anchor, and the folder in which it was renamed
