"""The journal of a build: which chunks are finished, so that a killed build goes on there.

JSON lines: the first says what is being built, every other is one finished chunk. A line is
written after the chunk's pixels have reached the disk. A line cut off by a kill is dropped.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import CacheError, Problem


@dataclass(frozen=True)
class BadSource:
    """A source file that could not be decoded. what: "image" or "mask"; problem: its fields;
    sound: whether that is for want of a decoder here, and no fault of the file."""

    row: int
    what: str
    problem: dict[str, str]
    sound: bool


@dataclass(frozen=True)
class Noted:
    """What a person should know of a source file that was decoded: see `notes.Note`."""

    row: int
    what: str
    code: str
    detail: str


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of consecutive rows.

    key: names, sizes and times of its source files; pixels: BLAKE2b hash of what was written;
    digest, mask_digest: of each row's source files; shown: of each row's decoded image, "" when
    it is a single grey level; bad: sources that could not be decoded; notes: of the others.
    """

    number: int
    key: str
    pixels: str
    digest: list[str]
    mask_digest: list[str]
    shown: list[str]
    bad: list[BadSource]
    notes: list[Noted]


class Journal:
    """An open journal, locked against a second build in the same folder."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open or create. Raises CacheError when another build runs here, or when the folder
        holds a half-built cache of something else."""
        self.path = path
        self._stream: BinaryIO = path.open("a+b")
        try:
            self._lock()
            self.chunks = self._resume(header)
        except BaseException:
            self._stream.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            allowed = "one build at a time"
            raise CacheError(
                Problem(str(self.path.parent), "", "another build at work", allowed, "Wait for it.")
            ) from None

    def _resume(self, header: dict[str, Any]) -> dict[int, Chunk]:
        """Read the finished chunks, and cut off what follows the last whole line."""
        self._stream.seek(0)
        lines: list[dict[str, Any]] = []
        whole = 0
        for line in self._stream:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                break
            lines.append(entry)
            whole += len(line)
        self._stream.truncate(whole)
        if not lines:
            self._write([header])
            return {}
        if lines[0] != header:
            allowed = "one of this archive, of this size, with the same rows"
            next_step = "Delete the folder, or choose another."
            found = "a half-built cache of something else"
            raise CacheError(Problem(str(self.path.parent), "", found, allowed, next_step))
        chunks = [_chunk(line) for line in lines[1:]]
        return {chunk.number: chunk for chunk in chunks}  # the last line of a number counts

    def append(self, chunks: list[Chunk]) -> None:
        """Record finished chunks, durably. Their pixels must be on the disk already."""
        self._write([asdict(chunk) for chunk in chunks])
        self.chunks |= {chunk.number: chunk for chunk in chunks}

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._stream.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file and give up the lock."""
        self._stream.close()


def _chunk(line: dict[str, Any]) -> Chunk:
    bad = [BadSource(**source) for source in line["bad"]]
    return Chunk(**{**line, "bad": bad, "notes": [Noted(**note) for note in line["notes"]]})
