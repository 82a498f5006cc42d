"""The decoded cache on disk, and how it is opened and verified.

A cache is a folder of five files:

    images.u8        (N, S, S) uint8, one slot per row of the archive
    masks.u8         (M, S, S) uint8 0/1, one slot per mask
    index.parquet    one row per image that is in the cache
    sources.parquet  size, time and BLAKE2b hash of every source file
    skipped.parquet  what was left out, and why
    manifest.json    written last: a folder without it is not a cache

A source that could not be decoded keeps its slot, filled with zeros, and has no index row.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import CacheError, Problem

SCHEMA = 2
IMAGES, MASKS, MANIFEST = "images.u8", "masks.u8", "manifest.json"
INDEX, SOURCES, SKIPPED = "index.parquet", "sources.parquet", "skipped.parquet"
JOURNAL = "building.jsonl"
CHUNK_ROWS = 16  # rows per unit of work: small enough to share out evenly
_REBUILD = "Delete the folder and build the cache again."
_KEYS = {"schema", "identity", "size", "rows", "masks", "table_hash", "chunk_rows", "chunks"}
_KEYS |= {"files", "problems", "remarks", "skipped", "versions"}


@dataclass(frozen=True)
class Cache:
    """One opened cache. Read-only; several sites may open the same one.

    index: the archive table without path and mask, plus row (int64, position in images) and
    mask_row (int64, position in masks, -1 for none). images: (N, S, S) uint8. masks: (M, S, S)
    uint8, 0 or 1. identity: hash of table, sources and size. skipped: columns image, reason.
    """

    folder: Path
    size: int
    index: pd.DataFrame
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    manifest: dict[str, Any]
    identity: str
    skipped: pd.DataFrame

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of the pixels, one string a kind; it stopped nothing."""
        return tuple(self.manifest["remarks"])

    def verify(self) -> None:
        """Read all pixels and compare them with their BLAKE2b hash.

        Raises CacheError that names the damaged rows.
        """
        step, stop = self.manifest["chunk_rows"], len(self.images)
        mask_slots = mask_numbers(self.sources()["mask"])
        problems = []
        for chunk, start in enumerate(range(0, stop, step)):
            end = min(start + step, stop)
            slots = mask_slots[start:end]
            slots = slots[slots >= 0]
            masks = self.masks[slots[0] : slots[-1] + 1] if len(slots) else self.masks[:0]
            if pixel_digest(self.images[start:end], masks) != self.manifest["chunks"][chunk]:
                at = f"rows {start} to {end - 1}"
                found, allowed = "changed pixels", "the pixels that were written"
                problems.append(Problem(str(self.folder / IMAGES), at, found, allowed, _REBUILD))
        if problems:
            raise CacheError(problems)

    def sources(self) -> pd.DataFrame:
        """One row per archive row: image, mask (file names), and of both files their size in
        bytes, modification time in ns and BLAKE2b hash ("" when the file could not be read);
        pixel_digest: BLAKE2b hash of the decoded image, "" when it is a single grey level."""
        return pd.read_parquet(self.folder / SOURCES)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its folder: a pickled map would carry all its pixels."""
        return open_cache, (self.folder, False)


def open_cache(folder: Path, verify: bool = True) -> Cache:
    """Open a finished cache; the arrays are read-only maps of the files.

    verify: also compare the BLAKE2b hash of the tables (fast; pixels: `Cache.verify`).
    Raises CacheError when the folder holds no finished cache of this schema, when a file is
    missing or has another size, or when a table was changed.
    """
    folder = Path(folder).absolute()
    manifest = _read_manifest(folder)
    size = manifest["size"]
    area = size * size
    expected = manifest["files"] | {
        IMAGES: {"bytes": manifest["rows"] * area},
        MASKS: {"bytes": manifest["masks"] * area},
    }
    for name, facts in expected.items():
        _check_file(folder / name, facts, verify)
    try:
        index = pd.read_parquet(folder / INDEX)
        skipped = pd.read_parquet(folder / SKIPPED)
    except (OSError, ValueError) as error:
        _refuse(folder / INDEX, " ".join(str(error).split()), "a Parquet table", _REBUILD)
    return Cache(
        folder,
        size,
        index,
        _map(folder / IMAGES, (manifest["rows"], size, size)),
        _map(folder / MASKS, (manifest["masks"], size, size)),
        manifest,
        manifest["identity"],
        skipped,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            _refuse(folder, "a half-built cache", "a finished one", "Build it again: it resumes.")
        _refuse(folder, f"no {MANIFEST}", "a finished cache", "Build the cache first.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse(path, f"a damaged file ({error})", "the JSON that was written", _REBUILD)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        _refuse(path, f"cache schema {schema!r}", f"schema {SCHEMA}", _REBUILD)
    absent = ", ".join(sorted(_KEYS - set(manifest)))
    if absent:
        _refuse(path, f"no key {absent}", "a complete manifest", _REBUILD)
    return dict(manifest)


def _check_file(path: Path, facts: dict[str, Any], verify: bool) -> None:
    try:
        found = path.stat().st_size
        digest = file_digest(path.read_bytes()) if verify and "digest" in facts else ""
    except OSError as error:
        _refuse(path, error.strerror or type(error).__name__, "a readable file", _REBUILD)
    if found != facts["bytes"]:
        _refuse(path, f"{found} bytes", f"{facts['bytes']} bytes", _REBUILD)
    if digest and digest != facts["digest"]:
        _refuse(path, "changed content", "the content that was written", _REBUILD)


def _map(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    if shape[0] == 0:  # an empty file cannot be mapped
        return np.zeros(shape, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)


def _refuse(path: Path, found: str, allowed: str, next_step: str) -> NoReturn:
    raise CacheError(Problem(str(path), "", found, allowed, next_step)) from None


def mask_numbers(masks: "pd.Series[str]") -> NDArray[np.int64]:
    """Slot of each row's mask in masks.u8: 0, 1, 2, ... in row order; -1 for rows without."""
    present = masks.ne("").to_numpy(dtype=bool)
    return np.where(present, np.cumsum(present) - 1, -1).astype(np.int64)


def new_hash(data: bytes = b"") -> "hashlib.blake2b":
    """A BLAKE2b hash of 256 bits: as strong as SHA-256, and more than twice as fast in software.

    Every source file passes through it, and processors without SHA instructions would spend
    a tenth of the cache build on SHA-256.
    """
    return hashlib.blake2b(data, digest_size=32)


def pixel_digest(images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> str:
    """BLAKE2b-256 (hex) of one chunk: (n, S, S) images, then their (m, S, S) masks; uint8."""
    digest = new_hash(images.tobytes())
    digest.update(masks.tobytes())
    return digest.hexdigest()


def file_digest(content: bytes) -> str:
    """BLAKE2b-256 (hex) of a file's content."""
    return new_hash(content).hexdigest()


def table_digest(table: pd.DataFrame) -> str:
    """BLAKE2b-256 (hex) of a table's columns, names and values; does not depend on a library."""
    digest = new_hash()
    for name in sorted(table.columns):
        values = table[name]
        digest.update(f"\0{name}\0{len(values)}\0".encode())
        if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
            digest.update(values.to_numpy().tobytes())
        else:
            digest.update("\0".join(values).encode())
    return digest.hexdigest()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as the content of a Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
