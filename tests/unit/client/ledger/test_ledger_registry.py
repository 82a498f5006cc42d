"""One set of patients, one ledger: whatever the folder, whatever the job."""

import json
import multiprocessing
import shutil
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from client.ledger import LedgerError, claim, registry, secret_beside
from common.errors import InputError, Problem, RefusedError
from tests.unit.client.ledger.ledgers import started

FORK = multiprocessing.get_context("fork")
A, B = "a" * 32, "b" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def note(cache: Path, ledger: str) -> dict[str, object]:
    value = json.loads((cache / "ledgers" / f"{ledger}.json").read_text())
    assert isinstance(value, dict)
    return value


def test_claims_are_noted_and_only_grow(cache: Path, tmp_path: Path) -> None:
    claim(cache, tmp_path / "l", A, [3, 1, 2])
    claim(cache, tmp_path / "l", A, ["2", 4])
    claim(cache, tmp_path / "l", A, [])
    path = str((tmp_path / "l").resolve())
    assert note(cache, A) == {"ledger": path, "patients": ["1", "2", "3", "4"]}


def test_other_patients_may_have_another_ledger(cache: Path, tmp_path: Path) -> None:
    claim(cache, tmp_path / "l", A, range(10))
    claim(cache, tmp_path / "m", B, range(10, 20))
    assert note(cache, B)["patients"] == sorted(map(str, range(10, 20)))


def test_a_shared_patient_is_refused_with_the_way_out(cache: Path, tmp_path: Path) -> None:
    claim(cache, tmp_path / "l", A, [1, 2, 3])
    with pytest.raises(RefusedError, match="It is missing: restore it"):
        claim(cache, tmp_path / "m", B, [3])
    (tmp_path / "l").touch()
    with pytest.raises(RefusedError) as caught:
        claim(cache, tmp_path / "m", B, ["2", 3, 4])
    assert caught.value.code == "patients-accounted-elsewhere"
    assert "for 2 of these patients" in str(caught.value)
    assert f"Set `ledger: {(tmp_path / 'l').resolve()}` in site.yaml" in str(caught.value)
    assert not (cache / "ledgers" / f"{B}.json").exists()


def test_a_ledger_started_anew_is_refused(cache: Path, tmp_path: Path) -> None:
    """Who deletes a ledger and its anchor gets no fresh budget from the same cache."""
    first = started(tmp_path)
    claim(cache, first.path, first.identity(), [1])
    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    second = started(tmp_path)
    with pytest.raises(RefusedError, match="accounts already"):
        claim(cache, second.path, second.identity(), [1])


def test_a_copied_ledger_is_refused_and_a_moved_one_goes_on(cache: Path, tmp_path: Path) -> None:
    ledger = started(tmp_path)
    identity = ledger.identity()
    claim(cache, ledger.path, identity, [1])
    copy = tmp_path / "copy.sqlite"
    shutil.copy(ledger.path, copy)
    with pytest.raises(RefusedError, match="is a copy of this one"):
        claim(cache, copy, identity, [1])
    ledger.path.unlink()
    claim(cache, copy, identity, [1])
    assert note(cache, identity)["ledger"] == str(copy.resolve())


def test_the_same_ledger_by_another_name_is_the_same(cache: Path, tmp_path: Path) -> None:
    ledger = started(tmp_path)
    (tmp_path / "link").symlink_to(ledger.path)
    claim(cache, ledger.path, ledger.identity(), [1])
    claim(cache, tmp_path / "link", ledger.identity(), [1, 2])
    assert note(cache, ledger.identity())["ledger"] == str(ledger.path.resolve())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ledger": 1, "patients": []}'])
def test_a_damaged_note_stops_everybody(cache: Path, tmp_path: Path, text: str) -> None:
    claim(cache, tmp_path / "l", A, [1])
    (cache / "ledgers" / f"{A}.json").write_text(text)
    for ledger in (A, B):
        with pytest.raises(LedgerError, match=f"{A}.json"):
            claim(cache, tmp_path / "l", ledger, [7])


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(LedgerError, match="writable folder"):
        claim(tmp_path / "cache", tmp_path / "l", A, [1])


def test_a_note_that_cannot_be_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise InputError(Problem(str(path), "", "No space left", "a writable file", "Free space."))

    monkeypatch.setattr(registry, "write_json", full)
    with pytest.raises(LedgerError, match="No space left") as caught:
        claim(cache, tmp_path / "l", A, [1])
    assert caught.value.code == "ledger-damaged"


def test_an_identity_cannot_lead_elsewhere(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the identity"):
        claim(cache, tmp_path / "l", "../x", [1])


def compete(cache: Path, name: str, start: Barrier, results: "Queue[str]") -> None:
    start.wait()
    try:
        claim(cache, cache / name, name * 32, range(1000))
        results.put("won")
    except RefusedError as error:
        results.put(error.code)


def test_of_claims_at_the_same_moment_one_wins(cache: Path) -> None:
    start, results = FORK.Barrier(4), FORK.Queue()
    racers = [FORK.Process(target=compete, args=(cache, n, start, results)) for n in "abcd"]
    for racer in racers:
        racer.start()
    outcome = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert outcome == ["patients-accounted-elsewhere"] * 3 + ["won"]


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    first = secret_beside(tmp_path / "l")
    assert len(first) == 32
    assert secret_beside(tmp_path / "l") == first
    assert secret_beside(tmp_path / "m") != first
    assert (tmp_path / "l.salt").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.salt", "m.salt"]
    with pytest.raises(LedgerError, match="Check the folder's rights"):
        secret_beside(tmp_path / "nowhere" / "l")


def test_a_secret_that_is_cut_is_refused(tmp_path: Path) -> None:
    secret_beside(tmp_path / "l")
    (tmp_path / "l.salt").write_bytes(b"")
    with pytest.raises(LedgerError, match=r"l\.salt: found 0 bytes; .* Delete it"):
        secret_beside(tmp_path / "l")
    (tmp_path / "l.salt").unlink()
    assert len(secret_beside(tmp_path / "l")) == 32


def test_another_ledger_in_the_place_of_this_one_is_named(cache: Path, tmp_path: Path) -> None:
    first = started(tmp_path)
    claim(cache, first.path, first.identity(), [1])
    (tmp_path / "other").mkdir()
    other = started(tmp_path / "other")
    for file in (other.path, other._store.anchor):
        shutil.copy(file, tmp_path / file.name)
    with pytest.raises(RefusedError, match="put the right one back") as caught:
        claim(cache, first.path, other.identity(), [1])
    assert "Set `ledger:" not in str(caught.value)
