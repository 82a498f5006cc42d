"""Reads one radiograph into a square array.

Geometry, the same for image and mask: a picture that is not square is padded with black to a
centred square, which keeps its aspect ratio, and the square is resized with antialiasing.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.pixels.dicom import is_dicom, open_dicom
from client.data.pixels.notes import Note
from client.data.pixels.pictures import (
    GREY16,
    Decoded,
    Opened,
    open_picture,
    quietly,
    read_bytes,
    square,
)
from common.errors import DataError, Problem

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors use
_SHORTEST, _LONGEST = 32, 4  # a side in pixels, and the ratio of the sides


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read a radiograph: (size, size) uint8, 0 black to 255 white.

    PNG and JPEG of any mode become grey (ITU-R 601 luma; alpha is dropped: in the release it
    is constant), upright by their EXIF orientation. 16-bit grey maps 0 and the largest value of
    the bits in use to 0 and 255, linearly. DICOM: see `dicom.open_dicom`. Raises DataError when
    the file is damaged, empty or not a radiograph.
    """
    with quietly():
        return decode_image(read_bytes(path), str(path), size).pixels


def decode_image(data: bytes, file: str, size: int) -> Decoded:
    """As `read_image`, from the file's content. Its caller enters `quietly`."""
    if is_dicom(data):
        picture, notes = open_dicom(data, file)
    else:
        picture, notes = _grey(open_picture(data, file), file)
    whole = square(picture)
    # BILINEAR with a reducing gap first averages whole blocks: antialiased, and for 1024 px
    # to 128 px three times as fast as the plain filter.
    if whole.width != size:
        whole = whole.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    pixels = np.asarray(whole)
    return Decoded(pixels, picture.size, (*notes, *_content(picture, pixels)))


def _content(picture: Image.Image, pixels: NDArray[np.uint8]) -> list[Note]:
    """What a picture, and what was made of it, show of their content."""
    notes = []
    # Of a square picture of one level, one level is left: the large picture need not be searched.
    if picture.width != picture.height or pixels.min() == pixels.max():
        low, high = picture.getextrema()
        if low == high:
            notes.append(Note("one-level"))
    short, long = sorted(picture.size)
    if short < _SHORTEST or long > _LONGEST * short:
        notes.append(Note("shape", f"{picture.width} x {picture.height}"))
    return notes


def _grey(opened: Opened, file: str) -> tuple[Image.Image, tuple[Note, ...]]:
    """A PNG or JPEG as 8-bit grey, and what to know of it."""
    picture = opened.picture
    if picture.mode == "L" and "transparency" not in picture.info:
        return picture, opened.notes
    if picture.mode in GREY16:
        grey, notes = _grey_of_16_bits(picture, opened.significant)
        return grey, (*opened.notes, *notes)
    if picture.mode not in _PLAIN:
        allowed = ", ".join((*_PLAIN, "16-bit grey"))
        found = f"pixel mode {picture.mode}"
        raise DataError(Problem(file, "", found, allowed, "Export it as a grey PNG."))
    if opened.depth == 16 and _upper_half_empty(picture):
        found = "16-bit colour with values below 32,768, of which only the upper 8 bits can be read"
        allowed = "8-bit colour, or 16-bit grey"
        raise DataError(Problem(file, "", found, allowed, "Export it as a 16-bit grey PNG."))
    notes = [Note("alpha")] if _partly_transparent(picture) else []
    picture.info.pop("transparency", None)  # as alpha: dropped
    return picture.convert("L"), (*opened.notes, *notes)


def _grey_of_16_bits(picture: Image.Image, significant: int) -> tuple[Image.Image, list[Note]]:
    """16-bit grey as 8-bit: the bits in use fill 0 to 255.

    They are the fewest of _DEPTHS that hold the largest value, or what the file itself says in
    its sBIT chunk, if its values fit into that. (By the PNG specification a writer scales them
    up to 16 bits, and then they do not fit: all 16 bits are in use.)
    """
    values = np.asarray(picture).astype(np.uint16)
    largest = int(values.max())
    depths = (significant, *_DEPTHS) if significant else _DEPTHS
    bits = next(depth for depth in depths if largest < 1 << depth)
    top = (1 << bits) - 1
    table = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    notes = [Note("few-bits", f"{bits} bits")] if bits < 16 else []
    return Image.fromarray(table[values]), notes


def _upper_half_empty(picture: Image.Image) -> bool:
    """Whether no colour of a 16-bit file, cut to 8 bits by Pillow, uses the highest bit."""
    return bool(np.asarray(picture.convert("RGB")).max() < 128)


def _partly_transparent(picture: Image.Image) -> bool:
    if not picture.has_transparency_data:
        return False
    low, high = picture.convert("RGBA").getchannel("A").getextrema()
    return bool(low != high)
