"""Decodes the chunks of a build in threads: Pillow releases the interpreter lock as it works."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.data.cache.journal import BadSource, Chunk, Journal, Noted
from client.data.cache.store import CHUNK_ROWS, file_digest, mask_numbers, pixel_digest
from client.data.pixels.images import decode_image
from client.data.pixels.masks import decode_mask
from client.data.pixels.notes import Note
from client.data.pixels.pictures import Decoded, MissingDecoderError, quietly, read_bytes
from common.errors import DataError

COMMIT_SECONDS = 0.5  # work that a kill may cost, besides the chunks at work


class Pixels:
    """One file of (count, size, size) uint8, written slot by slot, from any thread."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        """Create or reopen the file at its full length. Raises OSError, so that a disk that
        is too small says so before the work, not after hours of it."""
        self.shape = (count, size, size)
        self._area = size * size
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(self._file).st_size > count * self._area:
                os.ftruncate(self._file, count * self._area)
            if count and hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(self._file, 0, count * self._area)
            os.ftruncate(self._file, count * self._area)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, slot: int, pixels: NDArray[np.uint8]) -> None:
        """Write (n, size, size) from a slot on. Not through a map: a full disk would then
        kill the process instead of raising OSError."""
        rest, place = memoryview(pixels.tobytes()), slot * self._area
        while rest:
            written = os.pwrite(self._file, rest, place)
            rest, place = rest[written:], place + written

    def read(self, slots: range) -> NDArray[np.uint8]:
        """(len(slots), size, size) uint8."""
        data = os.pread(self._file, len(slots) * self._area, slots.start * self._area)
        return np.frombuffer(data, dtype=np.uint8).reshape(len(slots), *self.shape[1:])

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(frozen=True)
class Work:
    """What there is to decode, and where the pixels go.

    images, masks: paths, one of each per row, "" for no mask; mask_slots: see `mask_numbers`;
    keys: one per chunk, changes when a source file of the chunk changes.
    """

    images: list[str]
    masks: list[str]
    mask_slots: NDArray[np.int64]
    keys: list[str]
    size: int
    image_pixels: Pixels
    mask_pixels: Pixels

    def rows(self, number: int) -> range:
        """The rows of a chunk."""
        start = number * CHUNK_ROWS
        return range(start, min(start + CHUNK_ROWS, len(self.images)))

    def slots(self, number: int) -> range:
        """The mask slots of a chunk: consecutive, because they are numbered in row order."""
        rows = self.rows(number)
        slots = self.mask_slots[rows.start : rows.stop]
        slots = slots[slots >= 0]
        return range(int(slots[0]), int(slots[-1]) + 1) if len(slots) else range(0)

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk of the journal is still what its sources and the files say.

        One with a bad source is tried again: a permission given or a decoder installed since
        does not show in a file's size and time.
        """
        if chunk.number >= len(self.keys) or chunk.key != self.keys[chunk.number] or chunk.bad:
            return False
        images = self.image_pixels.read(self.rows(chunk.number))
        masks = self.mask_pixels.read(self.slots(chunk.number))
        return pixel_digest(images, masks) == chunk.pixels


def prepare(
    table: pd.DataFrame, sources: pd.DataFrame, size: int, images: Pixels, masks: Pixels
) -> Work:
    """The work of an archive table; sources: names, sizes and times of its files."""
    facts = ["image", "bytes", "mtime_ns", "mask", "mask_bytes", "mask_mtime_ns"]
    rows = list(sources[facts].itertuples(index=False, name=None))
    keys = [
        file_digest(repr(rows[start : start + CHUNK_ROWS]).encode())
        for start in range(0, len(rows), CHUNK_ROWS)
    ]
    paths, mask_paths = table["path"].tolist(), table["mask"].tolist()
    return Work(paths, mask_paths, mask_numbers(table["mask"]), keys, size, images, masks)


def decode_chunk(work: Work, number: int) -> Chunk:
    """Decode one chunk and write its pixels. A bad source is noted, and its slot stays zero."""
    rows, slots = work.rows(number), work.slots(number)
    images = np.zeros((len(rows), work.size, work.size), dtype=np.uint8)
    masks = np.zeros((len(slots), work.size, work.size), dtype=np.uint8)
    hashes, mask_hashes, shown = ([""] * len(rows) for _ in range(3))
    bad: list[BadSource] = []
    notes: list[Noted] = []
    for place, row in enumerate(rows):
        what = "image"
        try:
            data = read_bytes(Path(work.images[row]))
            hashes[place] = file_digest(data)
            image = decode_image(data, work.images[row], work.size)
            images[place], shown[place] = image.pixels, _shown(image)
            notes += _noted(row, what, image.notes)
            if work.masks[row]:
                what = "mask"
                data = read_bytes(Path(work.masks[row]))
                mask_hashes[place] = file_digest(data)
                mask = decode_mask(data, work.masks[row], work.size, image.extent)
                masks[work.mask_slots[row] - slots.start] = mask.pixels
                notes += _noted(row, what, mask.notes)
        except DataError as error:
            sound = isinstance(error, MissingDecoderError)
            bad.append(BadSource(row, what, asdict(error.problems[0]), sound))
    work.image_pixels.write(rows.start, images)
    work.mask_pixels.write(slots.start, masks)
    pixels = pixel_digest(images, masks)
    return Chunk(number, work.keys[number], pixels, hashes, mask_hashes, shown, bad, notes)


def _noted(row: int, what: str, notes: tuple[Note, ...]) -> list[Noted]:
    return [Noted(row, what, note.code, note.detail) for note in notes]


def _shown(image: Decoded) -> str:
    """The hash of what an image shows, "" when it shows nothing."""
    blank = any(note.code == "one-level" for note in image.notes)
    return "" if blank else file_digest(image.pixels.tobytes())


def decode_all(
    work: Work, journal: Journal, workers: int, progress: Callable[[int], None] | None
) -> list[Chunk]:
    """Decode what the journal does not hold yet; all chunks in order. Raises OSError."""
    with quietly():
        return _decode_all(work, journal, workers, progress)


def _decode_all(
    work: Work, journal: Journal, workers: int, progress: Callable[[int], None] | None
) -> list[Chunk]:
    kept = {number: chunk for number, chunk in journal.chunks.items() if work.holds(chunk)}
    advance = progress or (lambda count: None)
    advance(sum(len(work.rows(number)) for number in kept))
    missing = [number for number in range(len(work.keys)) if number not in kept]
    ready: list[Chunk] = []

    def commit() -> None:
        work.image_pixels.sync()
        work.mask_pixels.sync()
        journal.append(ready)
        ready.clear()

    last = time.monotonic()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cache")
    try:
        for future in as_completed([pool.submit(decode_chunk, work, n) for n in missing]):
            chunk = future.result()
            ready.append(chunk)
            kept[chunk.number] = chunk
            advance(len(work.rows(chunk.number)))
            if time.monotonic() - last >= COMMIT_SECONDS:
                commit()
                last = time.monotonic()
    finally:  # also after an interrupt: what is decoded need not be decoded again
        pool.shutdown(cancel_futures=True)
        commit()
    return [kept[number] for number in sorted(kept)]
