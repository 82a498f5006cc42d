"""Reads one radiograph or one lung mask into a square array.

Geometry, the same for image and mask: a picture that is not square is padded with black to a
centred square, which keeps its aspect ratio, and the square is resized with antialiasing.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import DataError, Problem

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_GREY16 = ("I;16", "I;16B", "I;16L", "I")  # Pillow's names for a 16-bit PNG
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ALLOWED = "a PNG, JPEG or DICOM radiograph"
_DAMAGED = "Copy the file again, or leave it out with --skip-bad."
# What Pillow and pydicom raise on damaged files, besides OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read a radiograph: (size, size) uint8, 0 black to 255 white.

    PNG and JPEG of any mode become grey (ITU-R 601 luma; alpha is dropped: in the release it
    is constant). 16-bit grey maps its full range linearly, 65535 to 255. DICOM: see
    `_dicom_pixels`. Raises DataError when the file is damaged, empty or not a radiograph.
    """
    return decode_image(read_bytes(path), str(path), size)[0]


def read_mask(path: Path, size: int, like: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a lung mask: (size, size) uint8, 1 in the lungs and 0 elsewhere.

    The file holds 0 and 255, or 0 and 1. It is resized by area and cut at one half. `like`:
    (width, height) in pixels of its image, which the mask must have too. Raises DataError.
    """
    return decode_mask(read_bytes(path), str(path), size, like)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(Problem(str(path), "", reason, "a readable file", _DAMAGED)) from None


def decode_image(data: bytes, file: str, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, from the file's content; also its own (width, height) in pixels."""
    picture = _dicom(data, file) if data[128:132] == b"DICM" else _grey(data, file)
    # BILINEAR with a reducing gap first averages whole blocks: antialiased, and for 1024 px
    # to 128 px three times as fast as the plain filter.
    square = _square(picture)
    if square.width != size:
        square = square.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(square), picture.size


def decode_mask(
    data: bytes, file: str, size: int, like: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """As `read_mask`, from the file's content."""
    picture = _grey(data, file)
    if like is not None and picture.size != like:
        found = f"a mask of {picture.width} x {picture.height} pixels"
        allowed = f"{like[0]} x {like[1]}, the size of its image"
        raise DataError(Problem(file, "", found, allowed, "Export the mask at the image's size."))
    values = [value for value, count in enumerate(picture.histogram()) if count]
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        found = f"a mask with the values {', '.join(map(str, values[:8]))}"
        found += " ..." if len(values) > 8 else ""
        raise DataError(
            Problem(file, "", found, "0 and 255, or 0 and 1", "Threshold the mask and save as PNG.")
        )
    square = _square(picture.point(lambda value: 255 if value else 0))
    if square.width != size:
        square = square.resize((size, size), Image.Resampling.BOX)
    return (np.asarray(square) >= 128).astype(np.uint8)


def _square(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    if picture.width == picture.height:
        return picture
    canvas = Image.new("L", (side, side), 0)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


def _grey(data: bytes, file: str) -> Image.Image:
    """A PNG or JPEG as 8-bit grey."""
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        picture.load()
    except UnidentifiedImageError:
        found = "an empty file" if not data else "not an image"
        raise DataError(Problem(file, "", found, _ALLOWED, _DAMAGED)) from None
    except _DECODE_ERRORS as error:
        raise DataError(_damaged(file, error)) from None
    if picture.mode == "L":
        return picture
    if picture.mode in _GREY16:
        values = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode not in _PLAIN:
        allowed = ", ".join((*_PLAIN, "16-bit grey"))
        found = f"pixel mode {picture.mode}"
        raise DataError(Problem(file, "", found, allowed, "Export it as a grey PNG."))
    picture.info.pop("transparency", None)  # as alpha: dropped
    return picture.convert("L")


def _dicom(data: bytes, file: str) -> Image.Image:
    """A DICOM radiograph as 8-bit grey."""
    import pydicom  # slow to import, and most archives hold no DICOM

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        frames = int(dataset.get("NumberOfFrames") or 1)
        kind = str(dataset.PhotometricInterpretation)
        if frames != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
            found = f"DICOM with {frames} frame(s) of {kind}"
            allowed = "one frame of MONOCHROME1 or MONOCHROME2"
            raise DataError(Problem(file, "", found, allowed, "Export the frontal view alone."))
        return Image.fromarray(_dicom_pixels(dataset))
    except _DECODE_ERRORS as error:
        raise DataError(_damaged(file, error)) from None


def _dicom_pixels(dataset: Any) -> NDArray[np.uint8]:
    """(height, width) uint8 of a one-frame grey DICOM data set.

    DICOM PS3.3 C.11.1 and C.11.2: rescale, then the first VOI window or table, then the window's
    output range to 0..255; without a VOI the image's own minimum and maximum take that place.
    MONOCHROME1 (low values are white) is inverted.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    values = apply_modality_lut(dataset.pixel_array, dataset)
    if dataset.get("VOILUTSequence"):
        values, high = _look_up(values, dataset.VOILUTSequence[0])
        low = 0.0
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # What lies far outside the window shows the ends of its output range.
        with np.errstate(over="ignore"):
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            values = apply_windowing(values, dataset)
    else:
        low, high = float(values.min()), float(values.max())
    share = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    share = np.clip(share, 0.0, 1.0)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1.0 - share
    return np.rint(share * 255.0).astype(np.uint8)


def _look_up(values: NDArray[Any], item: Any) -> tuple[NDArray[Any], float]:
    """DICOM PS3.3 C.11.2.1.1: values through a VOI table, and the largest output it can have.

    Not pydicom's apply_voi: in 3.0 its index wraps at 256 when the entries have 8 bits.
    """
    _, first, bits = item.LUTDescriptor
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], float(2**bits - 1)


def _damaged(file: str, error: Exception) -> Problem:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem(file, "", f"damaged pixels ({reason[:200]})", _ALLOWED, _DAMAGED)
