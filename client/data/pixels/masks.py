"""Reads one lung mask into a square array, judged by the values that its file holds."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.pixels.content import JPEG
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

_FILES = "a PNG or JPEG mask"
_VALUES = "0 and 1, 0 and 255, or 0 and 65535 of 16 bits, 0 outside the lungs"
_LEAVE_OUT = "or leave it out with --skip-bad: its image stays."
_FULL, _BORDER = 0.95, 0.5  # shares of the picture and of its border that no lungs cover
# Of 200 hand-drawn masks (Montgomery, Shenzhen) the smallest covers 15 %, the largest 46 %.
_USUAL = (0.02, 0.60)


def read_mask(path: Path, size: int, like: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a lung mask: (size, size) uint8, 1 in the lungs and 0 elsewhere.

    The file holds 0 and 1, 0 and 255, or 0 and 65535 (of 2 and 4 bits: or the largest value),
    as grey or as grey colours. It is resized by area and cut at one half. `like`: (width,
    height) in pixels of its image, which the mask must have too. Raises DataError: also for a
    mask without lungs, of nothing but lungs, and with black and white swapped.
    """
    with quietly():
        return decode_mask(read_bytes(path), str(path), size, like).pixels


def decode_mask(data: bytes, file: str, size: int, like: tuple[int, int] | None = None) -> Decoded:
    """As `read_mask`, from the file's content. Its caller enters `quietly`."""
    opened = open_picture(data, file, _FILES)
    extent = opened.picture.size
    if like is not None and extent != like:
        found = f"a mask of {extent[0]} x {extent[1]} pixels"
        allowed = f"{like[0]} x {like[1]}, the size of its image"
        raise DataError(Problem(file, "", found, allowed, f"Export it at that size, {_LEAVE_OUT}"))
    values = _values(opened, file)
    lungs, largest = values > 0, int(values.max())
    tops = {0, 1, 255, (1 << opened.depth) - 1}
    if largest not in tops or np.count_nonzero(values == largest) < np.count_nonzero(lungs):
        blurred = "JPEG blurs a mask. " if data.startswith(JPEG) else ""
        next_step = f"{blurred}Threshold the mask and save it as PNG, {_LEAVE_OUT}"
        found = f"a mask with the values {_listed(np.unique(values).tolist())}"
        raise DataError(Problem(file, "", found, _VALUES, next_step))
    area = _plausible_area(lungs, file)
    whole = square(Image.fromarray(lungs * np.uint8(255)))
    if whole.width != size:
        whole = whole.resize((size, size), Image.Resampling.BOX)
    pixels = (np.asarray(whole) >= 128).astype(np.uint8)
    if not pixels.any():
        raise DataError(_empty(file, f"a mask of {lungs.sum()} pixels, none at {size} px"))
    unusual = () if _USUAL[0] <= area <= _USUAL[1] else (Note("lung-area", f"{area:.1%}"),)
    return Decoded(pixels, extent, (*opened.notes, *unusual))


def _values(opened: Opened, file: str) -> NDArray[np.unsignedinteger]:
    """(height, width) of the file's own grey values, before anything scales or mixes them."""
    picture = opened.picture
    if picture.mode in GREY16:
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA") or opened.depth == 16:
        # Of 16-bit colour Pillow keeps the upper 8 bits: a mask of 0 and 1 would be empty.
        kind = "of 16-bit colour" if opened.depth == 16 else f"of pixel mode {picture.mode}"
        raise DataError(_export(file, f"a mask {kind}"))
    grey = np.asarray(picture) if picture.mode == "L" else _grey_colours(picture, file)
    if picture.has_transparency_data:
        _check_alpha(np.asarray(picture.convert("RGBA"))[..., 3], grey, file)
    if picture.mode == "L" and opened.depth < 8:  # Pillow spreads 2 and 4 bits over 0 to 255
        return grey // (255 // ((1 << opened.depth) - 1))
    return grey


def _grey_colours(picture: Image.Image, file: str) -> NDArray[np.uint8]:
    """(height, width) grey values of a picture in colour, whose colours must all be grey."""
    colours = np.asarray(picture.convert("RGBA").convert("RGB"))
    red, green, blue = np.moveaxis(colours, -1, 0)
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        first = colours[(red != green) | (red != blue)][0]
        raise DataError(_export(file, f"a mask in colour, such as {tuple(first.tolist())}"))
    if picture.mode == "P" and len(np.unique(np.asarray(picture))) > len(np.unique(red)):
        raise DataError(_export(file, "a mask with a palette that shows several values alike"))
    return np.asarray(red)


def _check_alpha(alpha: NDArray[np.uint8], grey: NDArray[np.uint8], file: str) -> None:
    """Refuse an alpha channel that says anything else than the grey values do."""
    if alpha.min() == alpha.max() or np.array_equal(alpha > 0, grey > 0):
        return
    found = "a mask whose alpha channel and grey values show different areas"
    if grey.min() == grey.max():
        found = f"a mask in the alpha channel; its grey values are {grey.flat[0]} everywhere"
    raise DataError(_export(file, found))


def _plausible_area(lungs: NDArray[np.bool_], file: str) -> float:
    """The share of a (height, width) picture that its lungs cover. Raises DataError when they
    cannot be lungs."""
    area = np.count_nonzero(lungs) / lungs.size
    if area == 0:
        raise DataError(_empty(file, "a mask without lungs: 0 everywhere"))
    if area > _FULL:
        found = f"a mask of nothing but lungs: {area:.1%} of the picture"
        next_step = f"Draw the lungs alone, {_LEAVE_OUT}"
        raise DataError(Problem(file, "", found, f"at most {_FULL:.0%}", next_step))
    border = float(np.concatenate([lungs[0], lungs[-1], lungs[:, 0], lungs[:, -1]]).mean())
    if border > _BORDER:
        found = f"lungs along {border:.0%} of the picture's border, as when black and white are"
        next_step = f"Invert the mask, {_LEAVE_OUT}"
        allowed = f"at most {_BORDER:.0%}, the lungs white and the rest black"
        raise DataError(Problem(file, "", f"{found} swapped", allowed, next_step))
    return area


def _empty(file: str, found: str) -> Problem:
    return Problem(file, "", found, "a mask with lungs in it", f"Draw the lungs, {_LEAVE_OUT}")


def _export(file: str, found: str) -> Problem:
    next_step = f"Save it as an 8-bit grey PNG without alpha, {_LEAVE_OUT}"
    return Problem(file, "", found, f"grey values: {_VALUES}", next_step)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
