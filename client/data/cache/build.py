"""Builds a cache: every image of an archive decoded once, resumable, visible only when whole."""

import json
import os
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from client.data.cache.decode import Pixels, Work, decode_all, prepare
from client.data.cache.journal import BadSource, Chunk, Journal
from client.data.cache.remarks import identical_images, pixel_remarks
from client.data.cache.store import (
    CHUNK_ROWS,
    IMAGES,
    INDEX,
    JOURNAL,
    MANIFEST,
    MASKS,
    SCHEMA,
    SKIPPED,
    SOURCES,
    Cache,
    file_digest,
    mask_numbers,
    open_cache,
    parquet_bytes,
    table_digest,
)
from client.data.nih.archive import Archive
from common.checkpoint import write_bytes
from common.errors import CacheError, DataError, InputError, Problem

_OTHER = "Choose another folder, or delete this one."
_LIBRARIES = ("numpy", "pandas", "pillow", "pyarrow", "pydicom")


@dataclass(frozen=True)
class _Request:
    """What a cache is asked to hold. sources: see `Cache.sources`, hashes still blank."""

    archive: Archive
    table: pd.DataFrame
    table_hash: str
    sources: pd.DataFrame
    size: int


def build_cache(
    archive: Archive,
    folder: Path,
    size: int,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Cache:
    """Decode an archive into `folder` at size x size pixels, and open the cache.

    workers: threads; default: the cores this process may use. progress: called from this
    thread with the number of images just finished, those of a resumed build included.
    skip_bad: leave out images that cannot be decoded (a bad mask: only the mask), list them in
    `Cache.skipped` and in the manifest; without it they are refused, all at once. Refused in
    any case: an image that needs a decoder which is not installed (it may be sound), and an
    archive of which no image, or no mask of those given, would be left.

    A build that was killed or refused goes on where it stopped. A finished cache of the same
    table, sources and size is returned at once. Raises DataError for bad images and masks,
    CacheError when the folder cannot be used, holds another cache, or the disk is full.
    """
    folder = Path(folder).absolute()
    if size < 1:
        raise CacheError(Problem(str(folder), "size", str(size), "1 or more", "Change the size."))
    request = _request(archive, size)
    if (folder / MANIFEST).is_file():
        return _reuse(open_cache(folder), request, skip_bad, progress)
    header = {"schema": SCHEMA, "size": size, "table_hash": request.table_hash}
    count, mask_count = len(request.table), int(request.sources["mask"].ne("").sum())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            closing(Journal(folder / JOURNAL, header)) as journal,
            closing(Pixels(folder / IMAGES, count, size)) as images,
            closing(Pixels(folder / MASKS, mask_count, size)) as masks,
        ):
            work = prepare(archive.table, request.sources, size, images, masks)
            chunks = decode_all(work, journal, workers or _cores(), progress)
            _finish(folder, request, work, chunks, skip_bad)
            (folder / JOURNAL).unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        needed = (count + mask_count) * size * size / 2**20
        allowed = f"a writable folder with {needed:.0f} MiB free"
        next_step = "Make room or change the folder, then build again: it resumes."
        raise CacheError(Problem(str(folder), "", reason, allowed, next_step)) from None
    return open_cache(folder)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _request(archive: Archive, size: int) -> _Request:
    table = archive.table.drop(columns=["path", "mask"])
    has_mask = archive.table["mask"].ne("").rename("has_mask")
    digest = table_digest(pd.concat([table, has_mask], axis=1))
    sources = pd.DataFrame({"image": archive.table["image"]})
    sources["mask"] = archive.table["mask"].map(os.path.basename).astype("str")
    for name, column in (("", "path"), ("mask_", "mask")):
        facts = [_stat(path) for path in archive.table[column]]
        sources[f"{name}bytes"] = pd.Series([size for size, _ in facts], dtype="int64")
        sources[f"{name}mtime_ns"] = pd.Series([time for _, time in facts], dtype="int64")
    return _Request(archive, table, digest, sources, size)


def _stat(path: str) -> tuple[int, int]:
    """Size and modification time; (-1, -1) without a file: decoding will say why."""
    try:
        facts = os.stat(path)
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _reuse(
    cache: Cache, request: _Request, skip_bad: bool, progress: Callable[[int], None] | None
) -> Cache:
    """The finished cache, if it is the one that is asked for."""
    if cache.size != request.size:
        found, allowed = f"a cache of {cache.size} px", f"one of {request.size} px"
        raise CacheError(Problem(str(cache.folder), "", found, allowed, _OTHER))
    if cache.manifest["table_hash"] != request.table_hash:
        found, allowed = "a cache of another table", "one of this archive's rows and labels"
        raise CacheError(Problem(str(cache.folder), "", found, allowed, _OTHER))
    changed = _changed_sources(cache, request)
    if changed:
        found = f"{len(changed)} source files changed since: {', '.join(changed[:5])}"
        allowed = "the files that the cache was built from"
        raise CacheError(Problem(str(cache.folder), "", found, allowed, _OTHER))
    bad = [Problem(**problem) for problem in cache.manifest["problems"]]
    if bad and not skip_bad:
        raise DataError(bad)
    if progress:
        progress(len(request.table))
    return cache


def _changed_sources(cache: Cache, request: _Request) -> list[str]:
    """Source files whose content differs. Only those with another size or time are read."""
    old, changed = cache.sources(), []
    for name, column in (("", "path"), ("mask_", "mask")):
        facts = [f"{name}bytes", f"{name}mtime_ns"]
        for row in old.index[(old[facts] != request.sources[facts]).any(axis=1)]:
            path = Path(request.archive.table[column].loc[row])
            same = path.is_file() and file_digest(path.read_bytes()) == old[f"{name}digest"][row]
            if not same:
                changed.append(path.name)
    return changed


def _finish(
    folder: Path, request: _Request, work: Work, chunks: list[Chunk], skip_bad: bool
) -> None:
    """Write the tables, and last the manifest, which makes the folder a cache.

    Raises DataError with all bad sources, under skip_bad with those alone that may be sound."""
    bad = [source for chunk in chunks for source in chunk.bad]
    refused = [source for source in bad if source.sound or not skip_bad]
    if refused:
        raise DataError([Problem(**source.problem) for source in refused])
    problems = [Problem(**source.problem) for source in bad]
    sources = request.sources.assign(
        digest=pd.Series([sha for chunk in chunks for sha in chunk.digest], dtype="str"),
        mask_digest=pd.Series([sha for chunk in chunks for sha in chunk.mask_digest], dtype="str"),
        pixel_digest=pd.Series([sha for chunk in chunks for sha in chunk.shown], dtype="str"),
    )
    tables = {
        INDEX: _index(request, work, bad),
        SOURCES: sources,
        SKIPPED: _skipped(request, bad, problems),
    }
    index, masks = tables[INDEX], work.mask_pixels.shape[0]
    if not len(index):
        raise DataError(_nothing_left(f"none of {len(request.table)} images", problems))
    if masks and not index["mask_row"].ge(0).any():
        raise DataError(_nothing_left(f"none of {masks} masks", problems))
    contents = {name: parquet_bytes(table) for name, table in tables.items()}
    content_hash = table_digest(sources[["image", "digest", "mask_digest"]])
    identity = [SCHEMA, request.size, request.table_hash, content_hash]
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "identity": file_digest(json.dumps(identity).encode()),
        "size": request.size,
        "rows": len(request.table),
        "masks": work.mask_pixels.shape[0],
        "table_hash": request.table_hash,
        "chunk_rows": CHUNK_ROWS,
        "chunks": [chunk.pixels for chunk in chunks],
        "files": {
            name: {"bytes": len(content), "digest": file_digest(content)}
            for name, content in contents.items()
        },
        "problems": [source.problem for source in bad],
        "remarks": [
            *pixel_remarks(chunks, request.table["image"]),
            *identical_images(tables[INDEX], sources["pixel_digest"], sources["digest"]),
        ],
        "skipped": len(tables[SKIPPED]),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in _LIBRARIES},
    }
    contents[MANIFEST] = json.dumps(manifest, indent=1).encode()
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
    except InputError as error:
        raise CacheError(error.problems) from None


def _nothing_left(what: str, problems: list[Problem]) -> Problem:
    """What is wrong with files of which, under skip_bad, not one could be used."""
    first = problems[-1]
    found = f"{what} that can be used; {Path(first.file).name}, for one: {first.found}"
    step = "Mend the files, or look whether the folder is the right one."
    return Problem(str(Path(first.file).parent), "", found, first.allowed, step)


def _index(request: _Request, work: Work, bad: list[BadSource]) -> pd.DataFrame:
    """The rows that are in the cache, with their places in the two arrays."""
    index = request.table.assign(
        row=pd.RangeIndex(len(request.table)).to_series().astype("int64"),
        mask_row=mask_numbers(request.sources["mask"]),
    )
    index.loc[[source.row for source in bad if source.what == "mask"], "mask_row"] = -1
    gone = [source.row for source in bad if source.what == "image"]
    return index.drop(index=gone).reset_index(drop=True)


def _skipped(request: _Request, bad: list[BadSource], problems: list[Problem]) -> pd.DataFrame:
    """What opening the archive left out, then what decoding left out."""
    names = [request.table["image"].loc[source.row] for source in bad]
    reasons = [f"{source.what}: {p.found}" for source, p in zip(bad, problems, strict=True)]
    decoded = pd.DataFrame({"image": names, "reason": reasons}, dtype="str")
    earlier = request.archive.skipped
    return pd.concat(
        [part for part in (earlier, decoded) if len(part)] or [decoded], ignore_index=True
    )
