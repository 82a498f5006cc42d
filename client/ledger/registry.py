"""Which ledger accounts for which patients of a cache, so that nobody is accounted for twice.

Several site folders may share a cache. If two of them trained on the same patient with a ledger
each, both would hold and the patient's true epsilon would be their sum. The claims lie in the
cache, `ledgers/<id of the ledger>.json`, and only grow: what a ledger once spent stays spent.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.ledger.chain import LedgerError
from common.checkpoint import read_json, write_json
from common.errors import InputError, Problem, RefusedError

ELSEWHERE = "patients-accounted-elsewhere"


def claim(cache_folder: Path, ledger: Path, ledger_id: str, patients: Sequence[str | int]) -> None:
    """Note that the ledger accounts for these patients of the cache, besides those noted before.

    Raises RefusedError, code "patients-accounted-elsewhere", when another ledger of this cache
    accounts for one of them already, or when this one is a copy of a ledger that is still there;
    LedgerError when the notes are damaged or cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", ledger_id):
        raise ValueError(f"not the identity of a ledger: {ledger_id!r}")
    folder, wanted = cache_folder / "ledgers", {str(patient) for patient in patients}
    with _locked(folder):
        for file in sorted(folder.glob("*.json")):
            noted = _noted(file)
            other = Path(noted["ledger"])
            if file.stem == ledger_id:
                if other.exists() and not (ledger.exists() and other.samefile(ledger)):
                    raise _refused(ledger, other, "is a copy of this one, and both are in use")
                wanted |= set(noted["patients"])
            elif not wanted.isdisjoint(noted["patients"]):
                shared = len(wanted.intersection(noted["patients"]))
                raise _refused(ledger, other, f"accounts already for {shared} of these patients")
        value = {"ledger": str(ledger.resolve()), "patients": sorted(wanted)}
        mine = folder / f"{ledger_id}.json"
        try:
            if not mine.exists() or _noted(mine) != value:
                write_json(mine, value)
        except InputError as error:  # of which a LedgerError is one
            raise LedgerError(error.problems) from None


def _noted(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
        if isinstance(value["ledger"], str) and all(isinstance(p, str) for p in value["patients"]):
            return dict(value)
        found = json.dumps(value)[:60]
    except (InputError, KeyError, TypeError):
        found = "not JSON, or without its keys"
    next_step = "Restore it from a backup; without it, patients may be accounted for twice."
    allowed = "a ledger's path and its patients"
    raise LedgerError(Problem(str(file), "", found, allowed, next_step))


def _refused(ledger: Path, other: Path, why: str) -> RefusedError:
    way_out = f"Set `ledger: {other}` in site.yaml to share it."
    if not other.exists():
        way_out = "It is missing: restore it, with its anchor, from a backup."
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
        return file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        allowed = "a file that can be read and written"
        step = "Check the folder's rights and its free space."
        raise LedgerError(Problem(str(file), "", reason, allowed, step)) from None


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
