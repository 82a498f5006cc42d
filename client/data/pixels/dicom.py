"""Reads one DICOM radiograph as 8-bit grey, and says what its tags say of it."""

import io
import re
import unicodedata
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.pixels.content import ALLOWED, COPY_AGAIN, jpeg2000_size, jpeg_frame
from client.data.pixels.notes import Note
from client.data.pixels.pictures import (
    DECODE_ERRORS,
    MAX_BYTES,
    MissingDecoderError,
    check_extent,
    damaged,
    moving,
)
from client.data.pixels.unheard import UNHEARD
from common.errors import DataError, Problem

_NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "PixelData")
_MODALITIES = ("CR", "DX", "RG", "OT")  # OT, "other", is what converted films often carry
_CHEST = ("CHEST", "THORA", "TORAX", "LUNG")
# Group and element of what a DICOM file without its first 132 bytes begins with.
_FIRST_TAGS = re.compile(rb"\x02\x00[\x00-\x10]\x00|\x08\x00[\x00-\x70]\x00")
_EXTRA = "Install Consilium with its extra `dicom` (the package python-gdcm)"
_PACKAGES = {
    "JPEG Lossless": _EXTRA,
    "JPEG-LS": _EXTRA,
    "High-Throughput JPEG 2000": "Install pylibjpeg and pylibjpeg-openjpeg",
    "JPEG Extended": "Install pylibjpeg and pylibjpeg-libjpeg (GPL-3, so not a part of Consilium)",
}
_CONVERT = "convert the file to uncompressed DICOM. --skip-bad does not leave it out: it may be"


def is_dicom(data: bytes) -> bool:
    """Whether a file's content is DICOM, also without the preamble that a file should have."""
    return data[128:132] == b"DICM" or _FIRST_TAGS.match(data) is not None


def open_dicom(data: bytes, file: str) -> tuple[Image.Image, tuple[Note, ...]]:
    """One frame of grey as an 8-bit picture (mode L), see `_shades`; and what to know of it.

    Raises DataError when it is something else, too large or damaged; MissingDecoderError when
    no installed package decodes its transfer syntax.
    """
    import pydicom  # slow to import, and most archives hold no DICOM
    from pydicom.errors import BytesLengthException

    try:
        _check_inflated(data, file)
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        notes = _complete_header(dataset, data, file)
        _check_kind(dataset, file)
        _check_window(dataset, file)
        _check_decoder(dataset, file)
        return _shades(_pixels(dataset, file), dataset), (*notes, *_tags(dataset))
    except (*DECODE_ERRORS, BytesLengthException) as error:
        raise DataError(damaged(file, error)) from None


def _check_inflated(data: bytes, file: str) -> None:
    """Raises DataError for a deflated file that unpacks to more than a radiograph takes."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    header = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if header.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), data[stream.tell() :], 0
    while rest and size <= MAX_BYTES:
        size += len(inflater.decompress(rest, 2**20))
        rest = inflater.unconsumed_tail
    if size > MAX_BYTES:
        found = f"deflated DICOM that unpacks to more than {MAX_BYTES // 2**20} MiB"
        raise DataError(Problem(file, "", found, "what a radiograph takes", COPY_AGAIN))


def _complete_header(dataset: Any, data: bytes, file: str) -> tuple[Note, ...]:
    """Give a data set without a header the syntax that it was read in."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    missing = [name for name in _NEEDED if name not in dataset]
    if missing:
        kind = getattr(dataset.get("SOPClassUID"), "name", "") or "no known kind"
        found = f"DICOM ({kind}) without {', '.join(missing)}"
        raise DataError(Problem(file, "", found, ALLOWED, COPY_AGAIN))
    if dataset.file_meta.get("TransferSyntaxUID"):
        return () if data[128:132] == b"DICM" else (Note("no-header"),)
    if dataset["PixelData"].is_undefined_length:
        found = "DICOM with compressed pixels, without the header that says how"
        raise DataError(Problem(file, "", found, "a transfer syntax (0002,0010)", COPY_AGAIN))
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return (Note("no-header"),)


def _check_kind(dataset: Any, file: str) -> None:
    """Raises DataError for anything but one grey picture of a size that a radiograph has."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    kind = str(dataset.PhotometricInterpretation)
    if frames > 1:
        raise DataError(moving(file, f"DICOM with {frames} frames of {kind}"))
    if samples != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"DICOM of {kind} with {samples} sample(s) a pixel"
        allowed = "MONOCHROME1 or MONOCHROME2 with one"
        raise DataError(Problem(file, "", found, allowed, "Export the frontal view as grey."))
    check_extent(int(dataset.Columns), int(dataset.Rows), file)


def _check_window(dataset: Any, file: str) -> None:
    """Raises DataError for a window that PS3.3 C.11.2.1.2 and C.11.2.1.3 do not allow."""
    widths = dataset.get("WindowWidth")
    if widths is None or dataset.get("WindowCenter") is None or dataset.get("VOILUTSequence"):
        return
    width = float(widths if isinstance(widths, float) else widths[0])
    linear = str(dataset.get("VOILUTFunction") or "LINEAR") == "LINEAR"
    if width < 1 if linear else width <= 0:
        allowed = "1 or more" if linear else "more than 0"
        next_step = "Export it again with its window, or leave it out with --skip-bad."
        raise DataError(Problem(file, "", f"a DICOM WindowWidth of {width:g}", allowed, next_step))


def _check_decoder(dataset: Any, file: str) -> None:
    """Raises MissingDecoderError when nothing here decodes the pixels, and DataError when the
    compressed stream is of another size than the tags say."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.type != "Transfer Syntax":
        found, allowed = f"the unknown transfer syntax {syntax}", "one of the DICOM standard"
        raise DataError(Problem(file, "", found, allowed, COPY_AGAIN))
    if not _can_decode(syntax, int(dataset.BitsStored)):
        install = [step for name, step in _PACKAGES.items() if syntax.name.startswith(name)]
        found = f"pixels compressed as {syntax.name} (transfer syntax {syntax})"
        allowed = "a compression that an installed package decodes"
        step = f"{install[0]}, or {_CONVERT}" if install else _CONVERT.capitalize()
        raise MissingDecoderError(Problem(file, "", found, allowed, f"{step} sound."))
    if not syntax.is_encapsulated or syntax == RLELossless:
        return
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    frame = jpeg_frame(stream)
    extent = jpeg2000_size(stream) if syntax in JPEG2000TransferSyntaxes else frame and frame[2:]
    if extent is not None and extent != (dataset.Columns, dataset.Rows):
        found = f"compressed pixels of {extent[0]} x {extent[1]}"
        allowed = f"{dataset.Columns} x {dataset.Rows}, as the tags say"
        raise DataError(Problem(file, "", found, allowed, COPY_AGAIN))


def _pixels(dataset: Any, file: str) -> NDArray[Any]:
    """(height, width) stored values. Raises DataError, naming the compression of a bad stream."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return np.asarray(dataset.pixel_array)
    try:
        with UNHEARD:
            return np.asarray(dataset.pixel_array)
    except DECODE_ERRORS:  # in the words of up to three libraries
        found = f"damaged pixels, compressed as {syntax.name}"
        raise DataError(Problem(file, "", found, ALLOWED, COPY_AGAIN)) from None


def _can_decode(syntax: Any, bits: int) -> bool:
    """Whether an installed package decodes this transfer syntax, at so many bits a pixel."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:  # pydicom knows no package for it
        return False
    if syntax == JPEGExtended12Bit and bits > 8:  # Pillow and GDCM decode its 8-bit form alone
        return bool(set(decoder.available_plugins) - {"pillow", "gdcm"})
    return decoder.is_available


def _tags(dataset: Any) -> tuple[Note, ...]:
    """A note when the tags say that this is not a chest, not frontal, or not upright.

    Row and column of a frontal film run to the patient's left and feet: PatientOrientation L\\F.
    """
    said = []
    modality, part, view = (
        _word(dataset.get(name)) for name in ("Modality", "BodyPartExamined", "ViewPosition")
    )
    if modality and modality not in _MODALITIES:
        said.append(f"Modality {modality}")
    if part and not any(chest in part for chest in _CHEST):
        said.append(f"BodyPartExamined {part}")
    if view and not {"AP", "PA"} & set(re.findall(r"[A-Z]+", view)):
        said.append(f"ViewPosition {view}")
    axes = dataset.get("PatientOrientation") or []
    directions = [_word(axis) for axis in ([axes] if isinstance(axes, str) else axes)]
    if len(directions) == 2 and [axis[:1] for axis in directions] != ["L", "F"]:
        said.append(f"PatientOrientation {directions[0]}\\{directions[1]}")
    return (Note("tags", ", ".join(said)),) if said else ()


def _word(value: Any) -> str:
    """A tag's value as a short printable word in capitals without accents, "" without."""
    plain = unicodedata.normalize("NFKD", str(value or "")).upper()
    return " ".join("".join(c for c in plain if c.isascii() and c.isprintable()).split())[:32]


def _shades(pixels: NDArray[Any], dataset: Any) -> Image.Image:
    """(height, width) stored values -> the picture of their shades of grey.

    Of the values that occur, each is worked out once: a radiograph has at most 65,536.
    """
    if pixels.ndim != 2:
        raise ValueError(f"pixels of shape {pixels.shape}")
    levels = np.unique(pixels)
    span = int(levels[-1]) - int(levels[0])
    if span >= 2**16:  # 32 bits a pixel
        return Image.fromarray(_shade(pixels, dataset))
    table = np.zeros(span + 1, dtype=np.uint8)
    table[levels.astype(np.int64) - int(levels[0])] = _shade(levels, dataset)
    return Image.fromarray(table[(pixels - levels[0]).astype(np.uint16)])


def _shade(values: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """The uint8 shades of stored values, of any shape.

    DICOM PS3.3 C.11.1 and C.11.2: rescale, then the first VOI window or table, then the window's
    output range to 0..255; without a VOI the image's own minimum and maximum take that place.
    MONOCHROME1 (low values are white) is inverted.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    values = apply_modality_lut(values, dataset)
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
