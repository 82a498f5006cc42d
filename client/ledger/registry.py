"""Which ledger accounts for which patients of a cache, so that nobody is accounted for twice.

Several site folders may share a cache. If two of them trained on the same patient with a ledger
each, both would hold and the patient's true epsilon would be their sum. The claims lie in the
cache, `ledgers/<id of the ledger>.json`, and only grow: what a ledger once spent stays spent.
With each claim lies the number and hash of an entry that the ledger has had, as a witness: a ledger
that was set back to an older copy, even together with its anchor, lacks it.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.ledger.chain import Entry, LedgerError
from common.checkpoint import read_json, write_json
from common.errors import InputError, Problem, RefusedError

ELSEWHERE = "patients-accounted-elsewhere"
WITNESS = ("entries", "sha256")
SET_BACK = (
    "This is an older copy, or another chain: charges after it are forgotten. Restore the copy "
    "that has the entry; the coordinator was told its number and hash, too (consilium-site ledger "
    "verify SITE --expect N:HASH). Without that copy the patients' budget counts as spent: let the "
    "privacy officer decide what becomes of them. Nothing private runs until then."
)


def claim(
    cache_folder: Path,
    ledger: Path,
    ledger_id: str,
    patients: Sequence[str | int],
    entries: Sequence[Entry] = (),
) -> None:
    """Note that the ledger accounts for these patients of the cache, besides those noted before.

    entries: the ledger's, which must hold the entry of which the note is the witness.
    Raises RefusedError, code "patients-accounted-elsewhere", when another ledger of this cache
    accounts for one of them already, or when this one is a copy of a ledger that is still there;
    LedgerError when the ledger lacks what the witness saw, or the notes are damaged or cannot be
    written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", ledger_id):
        raise ValueError(f"not the identity of a ledger: {ledger_id!r}")
    folder, wanted = cache_folder / "ledgers", {str(patient) for patient in patients}
    with _locked(folder):
        seen: dict[str, Any] = {}
        for file in sorted(folder.glob("*.json")):
            noted = _noted(file)
            other = Path(noted["ledger"])
            if file.stem == ledger_id:
                if other.exists() and not (ledger.exists() and other.samefile(ledger)):
                    raise _refused(ledger, other, "is a copy of this one, and both are in use")
                wanted |= set(noted["patients"])
                seen = {key: noted[key] for key in WITNESS if key in noted}
                _must_hold(ledger, entries, seen)
            elif not wanted.isdisjoint(noted["patients"]):
                shared = len(wanted.intersection(noted["patients"]))
                raise _refused(ledger, other, f"accounts already for {shared} of these patients")
        if entries:
            seen = {"entries": entries[-1].number, "sha256": entries[-1].sha256}
        value = {"ledger": str(ledger.resolve()), "patients": sorted(wanted)} | seen
        mine = folder / f"{ledger_id}.json"
        try:
            if not mine.exists() or _noted(mine) != value:
                write_json(mine, value)
        except InputError as error:  # of which a LedgerError is one
            raise LedgerError(error.problems) from None


def witness(cache_folder: Path, ledger_id: str, entry: Entry) -> None:
    """Remember an entry that the ledger now has, beside its claim, which must be there.

    Raises LedgerError when the note is damaged or cannot be written.
    """
    folder = cache_folder / "ledgers"
    file = folder / f"{ledger_id}.json"
    with _locked(folder):
        noted = _noted(file)
        if noted.get("entries", 0) >= entry.number:
            return  # another process has gone on from here
        try:
            write_json(file, noted | {"entries": entry.number, "sha256": entry.sha256})
        except InputError as error:
            raise LedgerError(error.problems) from None


def check_unclaimed(cache_folder: Path, ledger: Path, patients: Sequence[str | int]) -> None:
    """Raise RefusedError, code "patients-accounted-elsewhere", for a patient of a real ledger.

    For a simulated site, whose own ledger claims nobody: what it plays must not be played with
    patients whose budget another ledger keeps.
    """
    wanted, folder = {str(patient) for patient in patients}, cache_folder / "ledgers"
    for file in sorted(folder.glob("*.json")):
        noted = _noted(file)
        shared = len(wanted.intersection(noted["patients"]))
        if shared:
            raise RefusedError(
                f"{ledger}: a simulated site, and the real ledger {noted['ledger']} accounts for "
                f"{shared} of these patients. Set `simulated: false` and `ledger: "
                f"{noted['ledger']}` in site.yaml, or play with images of nobody's.",
                ELSEWHERE,
            )


def _must_hold(ledger: Path, entries: Sequence[Entry], seen: Mapping[str, Any]) -> None:
    """Raise LedgerError unless the entries hold the one that was seen, if one was."""
    number, sha256 = seen.get("entries", 0), seen.get("sha256", "")
    if not number or (len(entries) >= number and entries[number - 1].sha256 == sha256):
        return
    found = f"{len(entries)} entries without number {number}, {sha256[:12]}…, seen here before"
    allowed = "a ledger that still has every entry it ever had"
    raise LedgerError(Problem(str(ledger), f"entry {number}", found, allowed, SET_BACK))


def _noted(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
        fits = isinstance(value["ledger"], str)
        fits = fits and all(isinstance(patient, str) for patient in value["patients"])
        if fits and isinstance(value.get("entries", 0), int):
            return dict(value)
        found = json.dumps(value)[:60]
    except (InputError, KeyError, TypeError, AttributeError):
        found = "not JSON, or without its keys"
    next_step = "Restore it from a backup; without it, patients may be accounted for twice."
    allowed = "a ledger's path and its patients"
    raise LedgerError(Problem(str(file), "", found, allowed, next_step))


def _refused(ledger: Path, other: Path, why: str) -> RefusedError:
    way_out = f"Set `ledger: {other}` in site.yaml to share it."
    if not other.exists():
        way_out = "It is missing: restore it, with its anchor, from a backup."
    elif ledger.exists() and other.samefile(ledger):
        why = f"that was here before {why}"
        way_out = "Another one lies in its place: put the right one back, with its anchor."
    return RefusedError(f"{ledger}: the ledger {other} {why}. {way_out}", ELSEWHERE)


def secret_beside(ledger: Path) -> bytes:
    """32 random bytes in `<ledger>.salt`, made once. Raises LedgerError if they cannot be."""
    file = ledger.with_name(ledger.name + ".salt")
    try:
        if not file.exists():
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            draft.write_bytes(os.urandom(32))
            draft.chmod(0o600)
            # Of two processes that come at once, one links its own first, and both read that.
            with suppress(FileExistsError):
                os.link(draft, file)
            draft.unlink()
        secret = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        allowed = "a file that can be read and written"
        step = "Check the folder's rights and its free space."
        raise LedgerError(Problem(str(file), "", reason, allowed, step)) from None
    if len(secret) != 32:  # with an empty one, whom the site has could be tried out
        found, step = f"{len(secret)} bytes", "Delete it: another one is drawn."
        raise LedgerError(Problem(str(file), "", found, "32 random bytes", step))
    return secret


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two sites that claim at the same moment must see each other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("ab")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        next_step = "Change its rights: whom a ledger accounts for is noted there."
        raise LedgerError(
            Problem(str(folder), "", reason, "a writable folder in the cache", next_step)
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
