"""Entries of a ledger, and the chain of hashes that binds each to all before it.

The hash of an entry is the SHA-256 of the canonical JSON of [number, at, kind, body, previous],
where `previous` is the hash of the entry before. So an entry cannot be edited, moved or taken out
without changing every hash after it. The chain has no key: whoever may write the file can write
another chain. What shows that is a hash kept elsewhere: the anchor beside the ledger, and the
mirror that the coordinator keeps.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, Problem

FIRST = "0" * 64  # what the first entry has for the hash of the one before
RESTORE = (
    "Restore the newest copy of the ledger with its anchor, and compare it with the head that the "
    "coordinator was told last: consilium-site ledger verify SITE --expect N:HASH. An older copy "
    "has forgotten charges. Nothing private runs until then."
)
Row = tuple[int, str, str, str, str, str]  # number, at, kind, body as JSON, previous, sha256


class LedgerError(InputError):
    """A ledger that is edited, cut, missing, locked or not readable. Nothing was repaired."""

    code = "ledger-damaged"

    def __init__(self, problems: Problem | Iterable[Problem], code: str = "ledger-damaged") -> None:
        """code: ledger-damaged or ledger-locked."""
        super().__init__(problems)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the code, too."""
        return type(self), (self.problems, self.code)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    number: 1, 2, 3, ...; at: UTC, ISO 8601; kind: open, data, policy, reserve, sent, refused, ...;
    body: what the kind says; previous: hash of the entry before; sha256: hash of this one.
    """

    number: int
    at: str
    kind: str
    body: dict[str, Any]
    previous: str
    sha256: str


@dataclass(frozen=True)
class Head:
    """The end of a chain: how many entries it has, and the hash of the last one."""

    entries: int
    sha256: str


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values are equal strings.

    Raises ValueError for NaN and infinity, TypeError for what JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def next_entry(entries: Sequence[Entry], at: str, kind: str, body: dict[str, Any]) -> Entry:
    """The entry that follows the given ones. The body becomes what JSON makes of it."""
    number, previous = len(entries) + 1, entries[-1].sha256 if entries else FIRST
    body = json.loads(canonical(body))
    return Entry(number, at, kind, body, previous, _digest(number, at, kind, body, previous))


def head_of(entries: Sequence[Entry]) -> Head:
    """The end of a chain of verified entries."""
    return Head(len(entries), entries[-1].sha256) if entries else Head(0, FIRST)


def read_chain(
    path: Path, rows: Sequence[Row], begun: Sequence[Row] = (), known: Sequence[Entry] = ()
) -> list[Entry]:
    """Entries of rows (number, at, kind, body as canonical JSON, previous, sha256), verified.

    begun, known: rows that were verified before, and their entries. They are not worked out again
    if the rows begin with the very same ones. Raises LedgerError, naming the first entry that
    does not fit those before it.
    """
    entries = list(known) if begun and rows[: len(begun)] == begun else []
    for row in rows[len(entries) :]:
        place = len(entries) + 1
        try:
            number, at, kind, text, previous, sha256 = row
            entry = Entry(number, at, kind, json.loads(text), previous, sha256)
            fits = entry == next_entry(entries, at, kind, entry.body)
            # Two texts may mean the same JSON; only one of them was written here.
            fits = fits and canonical(entry.body) == text and isinstance(entry.body, dict)
            fits = fits and (kind == "open") == (place == 1)
        except (TypeError, ValueError, RecursionError):
            fits = False
        if not fits:
            raise damaged(path, f"entry {place}", "an entry that does not fit its hash")
        entries.append(entry)
    return entries


def must_contain(path: Path, entries: Sequence[Entry], head: Head, keeper: str) -> None:
    """Raise LedgerError unless the chain once ended with `head`, as its keeper remembers."""
    if len(entries) < head.entries:
        found = f"{len(entries)} entries where {keeper} remembers {head.entries}"
        raise damaged(path, "", found)
    if head_of(entries[: head.entries]) != head:
        found = f"another hash than the one that {keeper} remembers"
        raise damaged(path, f"entry {head.entries}", found)


def damaged(path: Path, at: str, found: str) -> LedgerError:
    """The error of a ledger that is not what was written."""
    return LedgerError(Problem(str(path), at, found, "an unbroken chain of entries", RESTORE))


def _digest(number: int, at: str, kind: str, body: dict[str, Any], previous: str) -> str:
    return hashlib.sha256(canonical([number, at, kind, body, previous]).encode()).hexdigest()
