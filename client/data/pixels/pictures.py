"""Opens one PNG or JPEG file: within bounds, whole, upright, with the values that it holds."""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from client.data.pixels.content import (
    ALLOWED,
    COPY_AGAIN,
    JPEG,
    PNG,
    jpeg_frame,
    not_a_picture,
    png_chunks,
)
from client.data.pixels.notes import Note
from common.errors import DataError, Problem

# The largest radiographs have 20 million pixels. The square canvas of a strip counts its side.
MAX_PIXELS, MAX_SIDE = 40_000_000, 10_000
MAX_BYTES = 256 * 2**20
GREY16 = ("I;16", "I;16B", "I;16L", "I")  # Pillow's names for a 16-bit grey PNG
# Process and bits a sample of the JPEG files that every reader knows.
_PLAIN_JPEG = ((0xC0, 8), (0xC1, 8), (0xC2, 8))
# What Pillow and pydicom raise on damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class MissingDecoderError(DataError):
    """A sound file that this installation cannot read, so that --skip-bad must not drop it."""


@dataclass(frozen=True)
class Opened:
    """One PNG or JPEG. picture: upright, in the file's own mode and values, except that grey of
    2 and 4 bits and colour of 16 bits have been brought to 8; depth: bits a sample in the file;
    significant: what a PNG's sBIT says of them, 0 without; notes: what a person should know."""

    picture: Image.Image
    depth: int
    significant: int
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Decoded:
    """pixels: (size, size) uint8; extent: the file's own upright (width, height) in pixels;
    notes: what a person should know."""

    pixels: NDArray[np.uint8]
    extent: tuple[int, int]
    notes: tuple[Note, ...]


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of Pillow and pydicom: what is wrong is judged and said here.

    The filters belong to the process: enter it in one thread, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError when it cannot be read or is larger than any
    radiograph."""
    try:
        facts = os.stat(path)
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            raise OSError(0, "not a file (a device, pipe or socket)")  # reading might never end
        if facts.st_size > MAX_BYTES:
            found, allowed = f"{facts.st_size / 2**20:,.0f} MiB", f"{MAX_BYTES // 2**20} MiB"
            raise DataError(Problem(str(path), "", found, f"at most {allowed}", COPY_AGAIN))
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(Problem(str(path), "", reason, "a readable file", COPY_AGAIN)) from None


def open_picture(data: bytes, file: str, allowed: str = ALLOWED) -> Opened:
    """Open a PNG or JPEG from its content. allowed: what the message says may be here.

    Raises DataError when it is something else, too large, cut off, damaged, or a moving picture;
    MissingDecoderError for a JPEG of a kind that Pillow does not decode.
    """
    if data.startswith(PNG):
        return _png(data, file)
    if data.startswith(JPEG):
        return _jpeg(data, file)
    raise DataError(not_a_picture(data, file, allowed))


def _png(data: bytes, file: str) -> Opened:
    chunks = png_chunks(data)
    try:
        picture: Image.Image = PngImageFile(io.BytesIO(data))
        check_extent(*picture.size, file)
        if b"IEND" not in chunks:
            raise EOFError("the file is cut off: its end is missing")
        if int.from_bytes(chunks.get(b"acTL", b"")[:4]) > 1:
            raise DataError(moving(file, "an animated PNG"))
        picture.load()
        depth, significant = chunks[b"IHDR"][8], max(chunks.get(b"sBIT", b"\0"))
    except DECODE_ERRORS as error:
        raise DataError(damaged(file, error)) from None
    upright, notes = _upright(picture)
    return Opened(upright, depth, significant, notes)


def _jpeg(data: bytes, file: str) -> Opened:
    try:
        picture: Image.Image = JpegImageFile(io.BytesIO(data))
        check_extent(*picture.size, file)
        picture.load()
    except DECODE_ERRORS as error:
        frame = jpeg_frame(data)
        if frame is not None and 2 <= frame[1] <= 16 and (frame[0], frame[1]) not in _PLAIN_JPEG:
            found = f"a JPEG of {frame[1]} bits a sample, process SOF{frame[0] - 0xC0}"
            next_step = "Convert it to PNG. --skip-bad does not leave it out: it may be sound."
            allowed = "baseline or progressive JPEG of 8 bits"
            raise MissingDecoderError(Problem(file, "", found, allowed, next_step)) from None
        raise DataError(damaged(file, error)) from None
    upright, notes = _upright(picture)
    return Opened(upright, 8, 0, notes)


def _upright(picture: Image.Image) -> tuple[Image.Image, tuple[Note, ...]]:
    """Turned and mirrored as the EXIF data, of a JPEG or of a PNG, say that it is to be seen."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in range(2, 9):
            return picture, ()
        ImageOps.exif_transpose(picture, in_place=True)
        return picture, (Note("turned"),)
    except DECODE_ERRORS:
        return picture, (Note("exif"),)


def check_extent(width: int, height: int, file: str) -> None:
    """Raises DataError for more pixels than a radiograph has, before they take memory."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        found = f"a picture of {width:,} x {height:,} pixels"
        allowed = f"{MAX_PIXELS // 10**6} million pixels, no side above {MAX_SIDE:,}"
        next_step = "Export it smaller, or leave it out with --skip-bad."
        raise DataError(Problem(file, "", found, allowed, next_step))


def moving(file: str, found: str) -> Problem:
    """The Problem of several pictures in one file."""
    return Problem(file, "", found, "one picture a file", "Export the frontal view alone.")


def damaged(file: str, error: Exception) -> Problem:
    """The Problem of a file that a library could not decode."""
    if "MAX_TEXT" in str(error):  # Pillow's own limits
        next_step = "Save it again without the text, or leave it out with --skip-bad."
        return Problem(file, "", "more than 1 MiB of text in the file", ALLOWED, next_step)
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem(file, "", f"damaged pixels ({reason[:200]})", ALLOWED, COPY_AGAIN)


def square(picture: Image.Image) -> Image.Image:
    """An 8-bit grey picture on a black square, centred."""
    if picture.width == picture.height:
        return picture
    side = max(picture.size)
    canvas = Image.new("L", (side, side), 0)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas
