"""The ledger's file: one SQLite table, written in whole transactions, and the anchor beside it.

Every commit reaches the disk before it counts (WAL, synchronous=FULL; https://sqlite.org/wal.html).
The file must be on a local disk: SQLite cannot lock one on a network share.

The anchor `<ledger>.anchor` is a small JSON file with the number and the hash of the last entry.
It is written after the commit, so a crash between the two leaves it behind the ledger, never ahead
of it. A ledger with fewer entries than its anchor, or with others, was cut or edited.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.ledger.chain import (
    RESTORE,
    Entry,
    Head,
    LedgerError,
    Row,
    canonical,
    damaged,
    head_of,
    must_contain,
    next_entry,
    read_chain,
)
from common.checkpoint import read_json, write_json
from common.errors import InputError, Problem

_PATIENCE = 30.0  # seconds to wait for another process to let go
_TABLE = """CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, at TEXT, kind TEXT,
body TEXT, previous TEXT, sha256 TEXT)"""
_READ = "SELECT number, at, kind, body, previous, sha256 FROM entries ORDER BY number"
_LAST = "SELECT number, sha256 FROM entries ORDER BY number DESC LIMIT 1"

# What this process has verified of each ledger, as it was read: the same rows need no second look,
# and others get one. Else a thousand questions would cost a thousand walks along the whole chain.
_verified_rows: dict[Path, tuple[list[Row], list[Entry]]] = {}


class Draft:
    """The verified entries, and those that a transaction appends to them."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.written = len(entries)

    def add(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Append an entry, written when the transaction ends without an error."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = next_entry(self.entries, at, kind, dict(body))
        self.entries.append(entry)
        return entry


class Store:
    """A ledger's file. Every method opens and closes it, so nothing is held between rounds.

    Both methods raise LedgerError when the file or its anchor is missing, damaged or not
    writable, and with the code "ledger-locked" when another process holds it for 30 s.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.anchor = path.with_name(path.name + ".anchor")

    def read(self) -> list[Entry]:
        """All entries, verified against each other and against the anchor."""
        anchor = self._read_anchor()  # before the entries, which may grow meanwhile
        if not self.path.exists():
            raise damaged(self.path, "", "no file")
        with self._connection("rw") as db:
            return self._verified(db, anchor, empty=False)

    @contextmanager
    def writing(self, create: bool = False) -> Iterator[Draft]:
        """A transaction that no other process can come between.

        What the block adds to the draft is on the disk when it is left; after an error in the
        block nothing is written. create: start the file if neither it nor its anchor exists.
        """
        if not self.path.exists() and (self.anchor.exists() or not create):
            raise damaged(self.path, "", "no file")
        with self._connection("rwc" if create else "rw") as db:
            if create and not self.anchor.exists():
                self._keep_wal(db)
            db.execute("BEGIN IMMEDIATE")
            anchor = self._read_anchor()
            if create and anchor is None:
                db.execute(_TABLE)
            draft = Draft(self._verified(db, anchor, empty=create))
            if anchor is None and draft.entries:
                # A crash came before the first anchor. Only a ledger of one entry may lack it.
                self._write_anchor(head_of(draft.entries))
            yield draft
            for entry in draft.entries[draft.written :]:
                row = (entry.number, entry.at, entry.kind, canonical(entry.body))
                db.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, entry.previous, entry.sha256),
                )
            db.execute("COMMIT")
            # Locked again: of two processes, the one with fewer entries must not write last.
            db.execute("BEGIN IMMEDIATE")
            self._write_anchor(Head(*db.execute(_LAST).fetchone()))
            db.execute("COMMIT")

    def _keep_wal(self, db: sqlite3.Connection) -> None:
        """Set the journal's mode, which the file keeps. SQLite fails where two set it at once."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                db.execute("PRAGMA journal_mode=WAL")
        finally:
            os.close(folder)  # which lets go

    def _verified(self, db: sqlite3.Connection, anchor: Head | None, empty: bool) -> list[Entry]:
        rows = db.execute(_READ).fetchall()
        entries = read_chain(self.path, rows, *_verified_rows.get(self.path, ((), ())))
        _verified_rows[self.path] = rows, list(entries)
        if not (entries or empty):
            raise damaged(self.path, "", "no entries")
        if anchor is not None:
            must_contain(self.path, entries, anchor, "its anchor")
        elif len(entries) > 1:
            raise damaged(self.anchor, "", "no file")
        return entries

    def _read_anchor(self) -> Head | None:
        if not self.anchor.exists():
            return None
        try:
            return _head(read_json(self.anchor))
        except (InputError, TypeError, KeyError):
            raise damaged(self.anchor, "", "not the number and hash of an entry") from None

    def _write_anchor(self, head: Head) -> None:
        if self._read_anchor() == head:
            return
        try:
            write_json(self.anchor, {"entries": head.entries, "sha256": head.sha256})
        except InputError as error:
            raise LedgerError(error.problems) from None

    @contextmanager
    def _connection(self, mode: str) -> Iterator[sqlite3.Connection]:
        """A connection without transactions of its own; what is not committed is dropped."""
        where = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            with closing(
                sqlite3.connect(where, timeout=_PATIENCE, isolation_level=None, uri=True)
            ) as db:
                db.execute("PRAGMA synchronous=FULL")
                yield db
        except sqlite3.Error as error:
            raise _translated(self.path, error) from None


def _head(value: Any) -> Head:
    head = Head(value["entries"], value["sha256"])
    if not (isinstance(head.entries, int) and isinstance(head.sha256, str) and head.entries >= 1):
        raise TypeError
    return head


def _translated(path: Path, error: sqlite3.Error) -> LedgerError:
    """SQLite's error in the words of this package. The code's low byte is its class."""
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        found, next_step = f"locked for {_PATIENCE:g} s", "Wait for the other process, or end it."
        problem = Problem(str(path), "", found, "one process at a time", next_step)
        return LedgerError(problem, "ledger-locked")
    found = " ".join(str(error).split())
    if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return LedgerError(Problem(str(path), "", found, "a ledger in a SQLite file", RESTORE))
    next_step = "Check the folder's rights and its free space."
    return LedgerError(Problem(str(path), "", found, "a readable and writable file", next_step))
