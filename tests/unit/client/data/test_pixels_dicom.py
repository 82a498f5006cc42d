"""Radiographs as DICOM: the grey values, the compressions, the tags, and every damage."""

import base64
import contextlib
import io
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.data.pixels import read_image
from client.data.pixels.images import decode_image
from client.data.pixels.pictures import MissingDecoderError
from common.errors import DataError
from tests.unit.client.data.pictures import RAMP

ROOT = Path(__file__).resolve().parents[4]
# (200 row + 50 column) mod 4000 of 16 x 16 in 12 bits, compressed by GDCM 3.2, as base 85.
STEPS = ((np.arange(16)[:, None] * 200 + np.arange(16) * 50) % 4000).astype(np.uint16)
LOSSLESS_JPEG = (
    "|JeV-01FTR5C9MX0TBTI!~hlm0RaI30000000000000001_%)U+5iXv0RRC20L+;(WXY2zOqnud$&)J~"
    "lO{}=GGxh<CQO+!Wn?mB$&)5bnKER_lO{~8hD@0<WXY2zOqnud$(4}FlO{}=GGxh<CQO+!vKcaD$&)5b"
    "nKER_lO|R}CQO+!WXY2zOqnud%E)BNlO{}=GGxh<CQO-G44E=y$&)5bnKER_lPe*UCQO+!WXY2zOqnue"
    "WHMyQlO{}=GGxh<CQPh`Oqnud$&)5bnKER_m5|AkCQO+!WXY2zOqnvW88T$alO{}=GGxh<CRRfxOqnud"
    "$&)5bnKER`$YjZrCQO+!WXY2zOqqZG*#H"
)
JPEG_LS = (
    "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6I07C&306_oR00;pA00000qa0(5afV-)V;o_Z<=Wk5uT`np2+0_x"
    "33|C&tW~O&Du#AuRAjOl7}%It7uT0p7S@(l714^vR#j9~Q)bDN7AzPqUYIz`*DhSOYSpV2ELg2tUgE1("
    "tx}~*l`2xDN`(sN5kiFt*IjkjS!I@4TH&m+%BrfWs;a80qOrnJMHEp*6iqbKO*LDBnrm9twW&%{l&WwP"
    "r722Ml%**tRJZ9$Qk11BN>Zw*Z<SS5RaI40S=-fBL_|bHL`G)u5fKq2l1Y@iNhFd<B$)vJ*#H"
)


def message(path: Path, size: int = 32) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, size)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def notes(path: Path) -> dict[str, str]:
    decoded = decode_image(path.read_bytes(), str(path), 64)
    return {note.code: note.detail for note in decoded.notes}


def dataset(values: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data = FileDataset(
        "", {}, file_meta=meta, preamble=b"\0" * 128,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )  # fmt: skip
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def dicom(path: Path, values: NDArray[Any], **tags: Any) -> Path:
    dataset(values, **tags).save_as(path, enforce_file_format=True)
    return path


def compressed(path: Path, values: NDArray[Any], stream: bytes, syntax: UID, bits: int) -> Path:
    """A file whose pixels are a finished stream."""
    depths = {"BitsStored": bits, "HighBit": bits - 1, "BitsAllocated": 8 * (1 + (bits > 8))}
    data = dataset(values, syntax, **depths)
    data.PixelData = encapsulate([stream])
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


WIDE = np.linspace(0, 4000, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def test_dicom_without_a_window_shows_its_own_range(tmp_path: Path) -> None:
    pixels = read_image(dicom(tmp_path / "a.dcm", WIDE), 64)
    assert np.abs(pixels.astype(float) - WIDE / 4000 * 255).max() <= 0.51


def test_dicom_window_after_rescale(tmp_path: Path) -> None:
    # Rescaled -1000 .. 3000; the window shows 0 .. 2000. DICOM PS3.3 C.11.2.1.2.1, linear.
    tags: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    tags |= {"WindowCenter": 1000, "WindowWidth": 2000}
    pixels = read_image(dicom(tmp_path / "a.dcm", WIDE, **tags), 64).astype(float)
    expected = np.clip((WIDE - 1000.0 - 999.5) / 1999 + 0.5, 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.51
    tags |= {"VOILUTFunction": "SIGMOID", "WindowWidth": [2000], "WindowCenter": [1000]}
    pixels = read_image(dicom(tmp_path / "s.dcm", WIDE, **tags), 64).astype(float)
    expected = 255 / (1 + np.exp(-4 * (WIDE - 1000.0 - 1000) / 2000))
    assert np.abs(pixels - expected).max() <= 0.51


def test_dicom_table_of_gray_values(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 8], [n // 32 for n in range(4096)]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    path = dicom(tmp_path / "a.dcm", WIDE, VOILUTSequence=Sequence([table]))
    assert np.array_equal(read_image(path, 64), WIDE // 32)
    del table.LUTData
    table.add_new("LUTData", "OW", (np.arange(4096) // 32).astype("<u2").tobytes())
    path = dicom(tmp_path / "b.dcm", WIDE, VOILUTSequence=Sequence([table]))
    assert np.array_equal(read_image(path, 64), WIDE // 32)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    light = read_image(dicom(tmp_path / "a.dcm", WIDE), 64).astype(int)
    path = dicom(tmp_path / "b.dcm", WIDE, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(255 - light - read_image(path, 64)).max() <= 1


def test_dicom_of_one_value_and_of_unequal_sides(tmp_path: Path) -> None:
    flat = read_image(dicom(tmp_path / "a.dcm", np.full((40, 20), 7, dtype=np.uint16)), 32)
    assert flat.shape == (32, 32)
    assert not flat.any()


def test_bad_dicom_is_named(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", np.zeros((64, 64), np.uint16), NumberOfFrames=2)
    assert "DICOM with 2 frames of MONOCHROME2; allowed: one picture a file" in message(path)
    path = dicom(tmp_path / "b.dcm", WIDE, PhotometricInterpretation="PALETTE COLOR")
    assert "found DICOM of PALETTE COLOR with 1 sample(s) a pixel" in message(path)
    three = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    path = dicom(tmp_path / "b.dcm", np.stack([WIDE] * 3, axis=2), **three)
    assert "found DICOM of MONOCHROME2 with 3 sample(s) a pixel" in message(path)
    path = dicom(tmp_path / "c.dcm", WIDE)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "found damaged pixels (" in message(path)
    path.write_bytes(path.read_bytes()[:200])
    assert "found DICOM (no known kind) without Rows, Columns, Phot" in message(path)
    for name in ("PixelData", "Rows", "PhotometricInterpretation"):
        data = dataset(WIDE)
        delattr(data, name)
        data.save_as(path, enforce_file_format=True)
        found = "DICOM (Digital X-Ray Image Storage - For Presentation) without"
        assert f"found {found} {name}; allowed: a PNG" in message(path)


def test_a_window_that_the_standard_does_not_allow(tmp_path: Path) -> None:
    tags: dict[str, Any]
    for width, function, allowed in (
        (0, "LINEAR", "1 or more"),
        (0.5, "LINEAR", "1 or more"),
        (0, "SIGMOID", "more than 0"),
        ([0, 400], "LINEAR", "1 or more"),
    ):
        tags = {"WindowCenter": 2000, "WindowWidth": width, "VOILUTFunction": function}
        text = message(dicom(tmp_path / "a.dcm", WIDE, **tags))
        found = width[0] if isinstance(width, list) else width
        assert f"found a DICOM WindowWidth of {found}; allowed: {allowed}. Export it again" in text
    path = dicom(tmp_path / "b.dcm", WIDE, WindowCenter="", WindowWidth="")  # as if absent
    assert np.array_equal(read_image(path, 64), read_image(dicom(tmp_path / "c.dcm", WIDE), 64))
    tags = {"WindowCenter": 2000, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"}
    assert read_image(dicom(tmp_path / "d.dcm", WIDE, **tags), 64).shape == (64, 64)


def test_signed_and_32_bit_values(tmp_path: Path) -> None:
    plain = read_image(dicom(tmp_path / "a.dcm", WIDE), 64)
    signed = (WIDE.astype(np.int32) - 2000).astype(np.int16)
    tags = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}
    assert np.array_equal(read_image(dicom(tmp_path / "b.dcm", signed, **tags), 64), plain)
    wide = WIDE.astype(np.uint32) * 1_000_000
    tags = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    assert np.array_equal(read_image(dicom(tmp_path / "c.dcm", wide, **tags), 64), plain)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_ways_to_write_the_tags(tmp_path: Path, syntax: UID) -> None:
    data = dataset(WIDE, syntax)
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    plain = read_image(dicom(tmp_path / "a.dcm", WIDE), 64)
    assert np.array_equal(read_image(tmp_path / "b.dcm", 64), plain)
    assert notes(tmp_path / "b.dcm") == {}


def test_compressions_that_need_no_further_package(tmp_path: Path) -> None:
    plain = read_image(dicom(tmp_path / "a.dcm", WIDE), 64)
    data = dataset(WIDE)
    data.compress(RLELossless)
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.array_equal(read_image(tmp_path / "b.dcm", 64), plain)
    stream = io.BytesIO()
    Image.fromarray(WIDE).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    path = compressed(tmp_path / "c.dcm", WIDE, stream.getvalue(), JPEG2000Lossless, 16)
    assert np.array_equal(read_image(path, 64), plain)
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "JPEG", quality=95)
    path = compressed(tmp_path / "d.dcm", RAMP, stream.getvalue(), JPEGBaseline8Bit, 8)
    # Without a window 0 .. 252 is spread over 0 .. 255.
    assert np.abs(read_image(path, 64) - RAMP * (255 / 252)).max() <= 4


@pytest.mark.parametrize(
    ("syntax", "stream"), [(JPEGLosslessSV1, LOSSLESS_JPEG), (JPEGLSLossless, JPEG_LS)]
)
def test_compressions_of_the_extra(tmp_path: Path, syntax: UID, stream: str) -> None:
    pytest.importorskip("gdcm", reason="the extra `dicom` is not installed", exc_type=ImportError)
    path = compressed(tmp_path / "a.dcm", STEPS, base64.b85decode(stream), syntax, 12)
    plain = read_image(dicom(tmp_path / "b.dcm", STEPS), 16)
    assert np.array_equal(read_image(path, 16), plain)


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("gdcm", "jpeg_ls", "libjpeg", "openjpeg", "pylibjpeg"))
from pathlib import Path
from client.data.pixels import read_image
from client.data.pixels.pictures import MissingDecoderError
for name in sys.argv[1:]:
    try:
        read_image(Path(name), 16)
    except MissingDecoderError as error:
        print(error)
"""


def test_a_compression_without_its_package_is_named(tmp_path: Path) -> None:
    """In a process of its own, where the packages are not to be had."""
    streams = [
        (JPEGLosslessSV1, base64.b85decode(LOSSLESS_JPEG)),
        (JPEGLSLossless, base64.b85decode(JPEG_LS)),
        (HTJ2KLossless, b"\0" * 40),
        (JPEGExtended12Bit, b"\0" * 40),
    ]
    files = [
        compressed(tmp_path / f"{number}.dcm", STEPS, stream, syntax, 12)
        for number, (syntax, stream) in enumerate(streams)
    ]
    command = [sys.executable, "-c", WITHOUT, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    extra = "Install Consilium with its extra `dicom` (the package python-gdcm), or convert the"
    assert f"{files[0]}: found pixels compressed as JPEG Lossless, Non-Hierarchical" in lines[0]
    assert "(transfer syntax 1.2.840.10008.1.2.4.70); allowed: a compression" in lines[0]
    assert extra in lines[0]
    assert "compressed as JPEG-LS Lossless Image Compression (transfer syntax" in lines[1]
    assert extra in lines[1]
    assert "Install pylibjpeg and pylibjpeg-openjpeg, or convert" in lines[2]
    assert "Install pylibjpeg and pylibjpeg-libjpeg (GPL-3, so not a part of" in lines[3]
    for line in lines:
        assert line.endswith("--skip-bad does not leave it out: it may be sound.")


def test_a_transfer_syntax_that_nobody_knows(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", STEPS, b"\0" * 40, JPEG2000Lossless, 12)
    path.write_bytes(path.read_bytes().replace(b"1.2.4.90", b"1.2.4.99"))
    text = message(path)
    assert "found the unknown transfer syntax 1.2.840.10008.1.2.4.99; allowed: one of" in text
    assert "leave it out with --skip-bad" in text
    with pytest.raises(DataError) as caught:
        read_image(path, 16)
    assert not isinstance(caught.value, MissingDecoderError)


def test_a_file_without_its_beginning(tmp_path: Path) -> None:
    plain = dicom(tmp_path / "a.dcm", WIDE)
    (tmp_path / "b.dcm").write_bytes(plain.read_bytes()[132:])  # the header, no preamble
    for name, implicit in (("c.dcm", True), ("d.dcm", False)):
        data = dataset(WIDE)
        data.file_meta, data.preamble = FileMetaDataset(), None
        data.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
    for name in ("b.dcm", "c.dcm", "d.dcm"):
        assert np.array_equal(read_image(tmp_path / name, 64), read_image(plain, 64)), name
        assert notes(tmp_path / name) == {"no-header": ""}
    data = dataset(WIDE.astype(">u2"), ExplicitVRBigEndian)
    data.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    assert np.array_equal(read_image(tmp_path / "e.dcm", 64), read_image(plain, 64))
    (tmp_path / "f.dcm").write_bytes(b"\x08\0\x05\0" + bytes(range(1, 200)))
    assert "allowed: a PNG, JPEG or DICOM radiograph" in message(tmp_path / "f.dcm")


def test_compressed_pixels_without_the_header_that_says_how(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.dcm", STEPS, b"\0" * 40, JPEG2000Lossless, 12)
    path.write_bytes(path.read_bytes()[data_start(path) :])
    text = message(path)
    assert "found DICOM with compressed pixels, without the header that says how" in text


def data_start(path: Path) -> int:
    """Where the data set begins: after preamble, DICM and header, PS3.10 section 7.1."""
    return 144 + int.from_bytes(path.read_bytes()[140:144], "little")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"Modality": "CT"}, "Modality CT"),
        ({"BodyPartExamined": "HAND"}, "BodyPartExamined HAND"),
        ({"ViewPosition": "LL"}, "ViewPosition LL"),
        ({"ViewPosition": "LATERAL"}, "ViewPosition LATERAL"),
        ({"Modality": "CT", "BodyPartExamined": "HAND", "ViewPosition": "LL"},
         "Modality CT, BodyPartExamined HAND, ViewPosition LL"),
        ({"PatientOrientation": ["A", "F"]}, "PatientOrientation A\\F"),
        ({"PatientOrientation": ["R", "F"]}, "PatientOrientation R\\F"),
        ({"BodyPartExamined": "Pi\x1be"}, "BodyPartExamined PIE"),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "AP",
          "PatientOrientation": ["L", "F"]}, ""),
        ({"Modality": "CR", "BodyPartExamined": "T\u00f3rax AP", "ViewPosition": "PA"}, ""),
        ({"Modality": "", "BodyPartExamined": "PORT CHEST", "ViewPosition": "AP AXIAL"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_the_tags_call_no_frontal_chest_is_noted(
    tmp_path: Path, tags: dict[str, Any], said: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom minds some of these values
        path = dicom(tmp_path / "a.dcm", WIDE, SpecificCharacterSet="ISO_IR 192", **tags)
        assert notes(path) == ({"tags": said} if said else {})


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", WIDE, Rows=60_000, Columns=60_000)
    assert "found a picture of 60,000 x 60,000 pixels" in message(path)
    data = dataset(WIDE, DeflatedExplicitVRLittleEndian)
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    header = (tmp_path / "b.dcm").read_bytes()[: data_start(tmp_path / "b.dcm")]
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(deflate.compress(bytes(2**20)) for _ in range(258)) + deflate.flush()
    (tmp_path / "b.dcm").write_bytes(header + bomb)
    assert "found deflated DICOM that unpacks to more than 256 MiB" in message(tmp_path / "b.dcm")


def test_a_compressed_stream_of_another_size(tmp_path: Path) -> None:
    for kind, syntax in (("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)):
        stream = io.BytesIO()
        Image.fromarray(np.tile(RAMP, (2, 1))).save(stream, kind)
        path = compressed(tmp_path / "a.dcm", RAMP, stream.getvalue(), syntax, 8)
        assert "found compressed pixels of 64 x 128; allowed: 64 x 64, as the tags" in message(path)


def test_no_damage_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes changed and cut at random, with a fixed seed."""
    rng = np.random.default_rng(2)
    wholes = [
        dicom(tmp_path / "a.dcm", WIDE, WindowCenter=2000, WindowWidth=4000).read_bytes(),
        compressed(tmp_path / "b.dcm", STEPS, bytes(64), RLELossless, 12).read_bytes(),
    ]
    wholes.append(wholes[0][132:])
    path = tmp_path / "c.dcm"
    for _ in range(150):
        content = bytearray(wholes[rng.integers(3)])
        for place in rng.integers(0, min(len(content), 900), rng.integers(1, 5)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(2000)] if rng.random() < 0.2 else content)
        with contextlib.suppress(DataError):
            assert read_image(path, 16).shape == (16, 16)
