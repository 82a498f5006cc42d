"""The ledger: what it holds, what it refuses, and that no change of it goes unseen."""

import hashlib
import json
import math
import pickle
import re
import shutil
import sqlite3
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ledger import Cap, Head, Ledger, LedgerError, chain, store, verify
from client.privacy.accounting import Charge, epsilon
from common.errors import InputError, RefusedError
from tests.unit.client.ledger.ledgers import CAP, DELTA, STEP, reservation, started, tamper


def test_the_first_entry_says_whose_ledger_it_is(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    (first,) = ledger.entries()
    assert (first.number, first.kind, first.previous) == (1, "open", "0" * 64)
    assert first.body == {
        "schema": 1,
        "ledger": ledger.identity(),
        "unit": "patient",
        "simulated": False,
    }
    assert len(ledger.identity()) == 32
    assert first.at.endswith("+00:00")
    ledger.open("patient")
    assert ledger.entries() == [first]


def test_nothing_is_written_before_open(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for use in (ledger.entries, ledger.head, lambda: ledger.record("sent", {})):
        with pytest.raises(LedgerError, match="no file"):
            use()
    with pytest.raises(LedgerError, match="no file"):
        ledger.reserve(reservation(), CAP)
    assert list(tmp_path.iterdir()) == []


def test_another_unit_is_refused(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.open("patient")
    with pytest.raises(RefusedError) as caught:
        ledger.open("image")
    assert caught.value.code == "unit"
    with pytest.raises(RefusedError, match="not by image"):
        ledger.reserve(reservation(unit="image"), CAP)
    assert ledger.head().entries == 1


def test_the_same_charge_on_a_ledger_set_back_is_another_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that holds the forgotten one tells them apart, be it in the same second."""
    ledger = started(tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("client.ledger.store.datetime", AlwaysNow)
    heads = []
    for _ in range(2):
        for file in tmp_path.iterdir():
            file.unlink()
        for file, content in kept.items():
            file.write_bytes(content)
        ledger.reserve(reservation(), CAP)
        heads.append(ledger.head())
    assert heads[0].entries == heads[1].entries
    assert heads[0].sha256 != heads[1].sha256


class AlwaysNow(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "AlwaysNow":
        return cls(2026, 11, 29, tzinfo=tz)


def test_a_reservation_is_charged_and_composed(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    receipt = ledger.reserve(reservation(), CAP)
    assert receipt.epsilon_before == 0.0
    assert receipt.epsilon_after == epsilon([STEP], DELTA) == ledger.epsilon(DELTA)
    assert receipt.entry == ledger.entries()[-1]
    nonce = receipt.entry.body["nonce"]
    assert re.fullmatch(r"[0-9a-f]{16}", nonce)
    assert receipt.entry.body == {
        "nonce": nonce,
        "purpose": "training",
        "plan_name": "a plan",
        "plan": "f" * 64,
        "round": 1,
        "unit": "patient",
        "noise_multiplier": 2.0,
        "sampling_rate": 0.1,
        "steps": 5,
        "clipping_norm": 1.0,
        "dataset": "",
        "rounds": 0,
        "scores": 0,
        "score_noise": 0.0,
        "accountant": receipt.entry.body["accountant"],
    }
    projected = ledger.project(STEP, DELTA)
    again = Ledger(ledger.path).reserve(reservation(number=2), CAP)
    assert again.epsilon_before == receipt.epsilon_after
    assert again.epsilon_after == projected == epsilon([STEP, STEP], DELTA)
    assert ledger.charges() == [STEP, STEP]


def test_the_cap_stops_with_what_still_fits(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=2)
    cap = Cap(ledger.project(Charge(2.0, 0.1, 3), DELTA), DELTA)
    before = ledger.entries()
    with pytest.raises(RefusedError) as caught:
        ledger.reserve(reservation(), cap)
    assert (caught.value.code, caught.value.fits, caught.value.exit_code) == ("budget-spent", 3, 3)
    assert "3 steps fit" in str(caught.value)
    assert ledger.entries() == before
    ledger.reserve(reservation(Charge(2.0, 0.1, 3)), cap)
    with pytest.raises(RefusedError) as caught:
        ledger.reserve(reservation(Charge(2.0, 0.1, 1)), cap)
    assert caught.value.fits == 0


def test_many_rounds_end_just_below_the_cap(tmp_path: Path) -> None:
    ledger, charge = started(tmp_path), Charge(1.5, 0.1, 20)
    rounds = 0
    while ledger.project(charge, DELTA) <= 3.0:
        ledger.reserve(reservation(charge, rounds + 1), CAP)
        rounds += 1
    with pytest.raises(RefusedError, match="the cap is 3"):
        ledger.reserve(reservation(charge, rounds + 1), CAP)
    assert rounds == len(ledger.charges()) > 2
    assert 2.5 < ledger.epsilon(DELTA) <= 3.0


@pytest.mark.parametrize("limit", [3.0, math.nan])
def test_a_plan_without_noise_needs_a_policy_without_cap(tmp_path: Path, limit: float) -> None:
    ledger, plain = started(tmp_path), reservation(Charge(0.0, 1.0, 10))
    with pytest.raises(RefusedError) as caught:
        ledger.reserve(plain, Cap(limit, DELTA))
    assert caught.value.fits == 0
    assert ledger.head().entries == 1
    assert ledger.reserve(plain, Cap(None, DELTA)).epsilon_after == math.inf
    with pytest.raises(RefusedError):  # nothing private can follow: the past has no bound
        ledger.reserve(reservation(), CAP)


def test_what_left_is_recorded(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    body = {"action": "train", "plan": "f" * 64, "round": 1, "bytes": 12, "keys": ("a", "b")}
    entry = ledger.record("sent", body)
    assert entry.body == {**body, "keys": ["a", "b"]}
    assert ledger.entries()[-1] == entry
    for kind in ("open", "reserve"):
        with pytest.raises(ValueError, match="own method"):
            ledger.record(kind, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.record("sent", {"loss": math.nan})
    assert ledger.head().entries == 2


def test_the_policy_is_recorded_when_it_changes(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    for cap in (3.0, 3.0, 4.0, 4.0, 3.0):
        ledger.policy({"epsilon": cap, "metrics": "none"})
    kept = [entry.body["policy"]["epsilon"] for entry in ledger.entries() if entry.kind == "policy"]
    assert kept == [3.0, 4.0, 3.0]


def test_export_can_be_checked_by_anybody(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=3)
    head = ledger.export(tmp_path / "out" / "ledger.jsonl")
    lines = (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()
    previous = "0" * 64
    for line in lines:
        e = json.loads(line)
        fields = [e["number"], e["at"], e["kind"], e["body"], previous]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert e["sha256"] == previous
    assert Head(len(lines), previous) == head == ledger.head()
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        ledger.export(tmp_path / "file" / "ledger.jsonl")


def test_export_overwrites_nothing(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    for name in (ledger.path, ledger.path.with_name(ledger.path.name + ".anchor")):
        with pytest.raises(InputError, match="a file that exists; allowed: a new file"):
            ledger.export(name)
    assert verify(ledger.path).entries == 1


def test_what_a_ledger_is_for_life_cannot_be_changed(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with pytest.raises(RefusedError, match=r"`simulated` in site\.yaml was changed") as caught:
        ledger.open("patient", simulated=True)
    assert caught.value.code == "simulated"


def test_verify_returns_the_head_and_knows_earlier_ones(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=1)
    early = ledger.head()
    ledger.reserve(reservation(number=2), CAP)
    assert verify(ledger.path) == verify(ledger.path, early) == ledger.head()
    with pytest.raises(LedgerError, match="entry 2: found another hash"):
        verify(ledger.path, Head(2, "a" * 64))
    with pytest.raises(LedgerError, match="3 entries where the mirror remembers 4"):
        verify(ledger.path, Head(4, "a" * 64))


FEWER = """UPDATE entries SET body = replace(body, '"steps":5', '"steps":1') WHERE number = """
EDITS: dict[str, str] = {
    "body": FEWER + "3",
    "last body": FEWER + "5",
    "spelling": "UPDATE entries SET body = replace(body, '\"steps\":5', '\"steps\": 5')",
    "twice": 'UPDATE entries SET body = replace(body, \'"steps":5\', \'"steps":1,"steps":5\')',
    "at": "UPDATE entries SET at = '2020-01-01T00:00:00+00:00' WHERE number = 2",
    "kind": "UPDATE entries SET kind = 'sent' WHERE number = 4",
    "null": "UPDATE entries SET body = NULL WHERE number = 4",
    "blob": "UPDATE entries SET at = x'00' WHERE number = 4",
    "not JSON": "UPDATE entries SET body = '{' WHERE number = 4",
    "hash": "UPDATE entries SET sha256 = 'a' WHERE number = 3",
    "previous": "UPDATE entries SET previous = 'a' WHERE number = 3",
    "middle": "DELETE FROM entries WHERE number = 3",
    "first": "DELETE FROM entries WHERE number = 1",
    "tail": "DELETE FROM entries WHERE number = 5",
    "all": "DELETE FROM entries",
    "table": "DROP TABLE entries",
    "moved": "UPDATE entries SET number = number + 1 WHERE number = 5",
    "swapped": "UPDATE entries SET number = CASE number WHEN 3 THEN -3 ELSE number END",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_an_edit_is_found_and_nothing_is_repaired(tmp_path: Path, edit: str) -> None:
    ledger = started(tmp_path, rounds=4)
    tamper(ledger, edit)
    bytes_before = (ledger.path.read_bytes(), ledger._store.anchor.read_bytes())
    uses: list[Callable[[], object]] = [
        ledger.entries,
        lambda: verify(ledger.path),
        lambda: ledger.reserve(reservation(), CAP),
        lambda: ledger.record("sent", {}),
        lambda: ledger.open("patient"),
    ]
    for use in uses:
        with pytest.raises(LedgerError) as caught:
            use()
        assert caught.value.code == "ledger-damaged"
        assert "newest copy" in str(caught.value)
    assert (ledger.path.read_bytes(), ledger._store.anchor.read_bytes()) == bytes_before


def test_a_chain_made_anew_is_found_by_the_anchor_and_the_mirror(tmp_path: Path) -> None:
    """Who may write the file can mend all its hashes; what is kept elsewhere remains."""
    (tmp_path / "other").mkdir()
    ledger, other = started(tmp_path, rounds=3), started(tmp_path / "other", rounds=3)
    mirrored = ledger.head()
    shutil.copy(other.path, ledger.path)
    with pytest.raises(LedgerError, match="another hash than the one that its anchor"):
        verify(ledger.path)
    shutil.copy(other._store.anchor, ledger._store.anchor)
    verify(ledger.path)
    with pytest.raises(LedgerError, match="another hash than the one that the mirror"):
        verify(ledger.path, mirrored)


def test_a_ledger_set_back_is_found(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=1)
    backup = tmp_path / "backup"
    shutil.copy(ledger.path, backup)
    ledger.reserve(reservation(number=2), CAP)
    shutil.copy(backup, ledger.path)
    with pytest.raises(LedgerError, match="2 entries where its anchor remembers 3"):
        ledger.reserve(reservation(number=2), CAP)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=1)
    kept = ledger._store.anchor.read_bytes()
    ledger._store.anchor.unlink()
    with pytest.raises(LedgerError, match="anchor: found no file"):
        ledger.entries()
    ledger._store.anchor.write_bytes(kept)
    ledger.path.unlink()
    for use in (ledger.entries, lambda: ledger.open("patient")):
        with pytest.raises(LedgerError, match="found no file"):
            use()
    assert not ledger.path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"entries": 1}', '{"entries":0,"sha256":""}']
)
def test_a_broken_anchor_is_found(tmp_path: Path, text: str) -> None:
    ledger = started(tmp_path, rounds=1)
    ledger._store.anchor.write_text(text)
    with pytest.raises(LedgerError, match="anchor: found not the number and hash"):
        ledger.entries()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"", b"SQLite format 3\x00" * 40])
def test_what_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    ledger = started(tmp_path)
    ledger.path.write_bytes(content)
    for use in (ledger.entries, lambda: ledger.open("patient")):
        with pytest.raises(LedgerError) as caught:
            use()
        assert str(ledger.path) in str(caught.value)
    assert ledger.path.read_bytes() == content


def test_a_start_cut_short_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    assert started(tmp_path).head().entries == 1


def test_a_crash_between_commit_and_anchor_is_no_damage(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=1)
    early = ledger._store.anchor.read_bytes()
    ledger.reserve(reservation(number=2), CAP)
    ledger._store.anchor.write_bytes(early)
    assert verify(ledger.path).entries == 3
    ledger.open("patient")
    assert json.loads(ledger._store.anchor.read_text())["entries"] == 3


def test_a_locked_ledger_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = started(tmp_path)
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    holder = sqlite3.connect(ledger.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError) as caught:
        ledger.reserve(reservation(), CAP)
    assert caught.value.code == "ledger-locked"
    assert str(ledger.path) in str(caught.value)
    assert "Wait for the other process" in str(caught.value)
    assert ledger.head().entries == 1  # reading goes on
    holder.close()
    ledger.reserve(reservation(), CAP)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "l", tmp_path / "folder", tmp_path / "none" / "l"):
        with pytest.raises(LedgerError):
            Ledger(path).open("patient")


def test_an_anchor_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charge stays, for it is on the disk already; the round does not run."""
    ledger = started(tmp_path)

    def full(path: Path, value: object) -> None:
        raise InputError([])

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", full)
        with pytest.raises(LedgerError):
            ledger.reserve(reservation(), CAP)
    assert ledger.charges() == [STEP]


def test_a_charge_that_no_step_can_have_is_damage(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger._store.writing() as draft:
        draft.add("reserve", {"noise_multiplier": -1.0, "sampling_rate": 0.1, "steps": 1})
    with pytest.raises(LedgerError, match="entry 2: found a charge"):
        ledger.epsilon(DELTA)


def test_odd_paths_work(tmp_path: Path) -> None:
    folder = tmp_path / "St. Elsewhere? 100% #1"
    folder.mkdir()
    assert started(folder, rounds=1).head().entries == 2
    assert sorted(p.name for p in folder.iterdir()) == ["ledger.sqlite", "ledger.sqlite.anchor"]


def test_the_error_travels_between_processes() -> None:
    error = LedgerError(chain.damaged(Path("l"), "", "x").problems, "ledger-locked")
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, str(again), again.exit_code) == ("ledger-locked", str(error), 2)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
bodies = st.lists(
    st.dictionaries(st.text(max_size=5), json_values, max_size=3), min_size=2, max_size=6
)


def rows_of(bodies: list[dict[str, object]]) -> list[list[object]]:
    entries: list[chain.Entry] = []
    for number, body in enumerate(bodies):
        kind = "sent" if number else "open"
        entries.append(chain.next_entry(entries, "2026-01-01T00:00:00+00:00", kind, body))
    return [
        [e.number, e.at, e.kind, chain.canonical(e.body), e.previous, e.sha256] for e in entries
    ]


@given(bodies)
def test_what_was_written_is_read(bodies: list[dict[str, object]]) -> None:
    entries = chain.read_chain(Path("l"), rows_of(bodies))
    assert [entry.body for entry in entries] == bodies


@given(bodies, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_single_change_breaks_the_chain(
    bodies: list[dict[str, object]], data: st.DataObject
) -> None:
    rows = rows_of(bodies)
    place = data.draw(st.integers(0, len(rows) - 1), "row")
    change = data.draw(st.sampled_from(["edit", "delete", "repeat", "swap"]), "change")
    if change == "edit":
        column = data.draw(st.integers(0, 5), "column")
        value = data.draw(st.none() | st.integers() | st.text() | st.binary(), "value")
        if rows[place][column] == value:
            return
        rows[place][column] = value
    elif change == "delete":
        if place == len(rows) - 1:
            return  # a tail cut off is a whole chain: the anchor tells, not the hashes
        del rows[place]
    elif change == "repeat":
        rows.insert(place, rows[place])
    else:
        rows[place], rows[place - 1] = rows[place - 1], rows[place]
    with pytest.raises(LedgerError):
        chain.read_chain(Path("l"), rows)
