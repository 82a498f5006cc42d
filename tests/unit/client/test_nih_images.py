"""Radiographs and masks: every pixel format that occurs, and every damage."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from client.nih import read_image, read_mask
from common.errors import DataError

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))  # 0 .. 252 from left to right


def save(path: Path, pixels: NDArray[Any], mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def message(path: Path, size: int = 32) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, size)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_every_mode_becomes_the_same_grey(tmp_path: Path, mode: str) -> None:
    pixels = read_image(save(tmp_path / "a.png", RAMP, mode), 64)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, RAMP)


def test_one_bit_and_transparent_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP > 100)
    image.save(tmp_path / "bit.png")
    assert np.array_equal(read_image(tmp_path / "bit.png", 64), (RAMP > 100) * np.uint8(255))
    Image.fromarray(RAMP).convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert np.array_equal(read_image(tmp_path / "p.png", 64), RAMP)


def test_16_bit_maps_its_full_range(tmp_path: Path) -> None:
    values = np.zeros((32, 32), dtype=np.uint16)
    values[0, :4] = [65535, 32768, 257, 4095]
    pixels = read_image(save(tmp_path / "a.png", values), 32)
    assert pixels[0, :5].tolist() == [255, 128, 1, 16, 0]


def test_jpeg(tmp_path: Path) -> None:
    assert np.abs(read_image(save(tmp_path / "a.jpg", RAMP), 64).astype(int) - RAMP).max() <= 4


def test_shrinking_averages_and_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((1024, 1024), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = read_image(save(tmp_path / "a.png", stripes), 128)
    assert pixels.shape == (128, 128)
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_a_wide_image_is_padded_with_black_and_keeps_its_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((50, 100), 200, dtype=np.uint8))
    pixels = read_image(path, 100)
    assert (pixels[25:75] == 200).all()
    assert (pixels[:25] == 0).all()
    assert (pixels[75:] == 0).all()
    mask = read_mask(save(tmp_path / "m.png", np.full((50, 100), 255, dtype=np.uint8)), 100)
    assert np.array_equal(mask, pixels > 0)  # the same geometry


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    path = tmp_path / "a.png"
    for kept in (len(whole) // 2, 60, 20):
        path.write_bytes(whole[:kept])
        assert "Copy the file again, or leave it out with --skip-bad." in message(path)
    path.write_bytes(whole[:900] + bytes(200) + whole[1100:])
    assert "found damaged pixels (" in message(path)
    path.write_bytes(b"")
    assert "found an empty file; allowed: a PNG, JPEG or DICOM radiograph" in message(path)
    path.write_text("Image Index,Finding Labels\n")
    assert "found not an image" in message(path)
    assert "No such file" in message(tmp_path / "absent.png")
    assert "found Is a directory" in message(tmp_path)


def test_an_image_without_pixels(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    assert "allowed: a PNG, JPEG or DICOM radiograph" in message(tmp_path / "a.png")


def test_a_colour_space_of_print_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP).convert("CMYK").save(tmp_path / "a.jpg")
    assert "found pixel mode CMYK; allowed: 1, L, LA" in message(tmp_path / "a.jpg")


def dicom(path: Path, values: NDArray[np.uint16], **tags: Any) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
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
    assert "DICOM with 2 frame(s) of MONOCHROME2; allowed: one frame" in message(path)
    path = dicom(tmp_path / "b.dcm", WIDE, PhotometricInterpretation="PALETTE COLOR")
    assert "found DICOM with 1 frame(s) of PALETTE COLOR" in message(path)
    path = dicom(tmp_path / "c.dcm", WIDE)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "found damaged pixels (" in message(path)
    path.write_bytes(path.read_bytes()[:200])
    assert "found damaged pixels (" in message(path)


@pytest.mark.parametrize("white", [255, 1])
def test_a_mask_of_either_kind(tmp_path: Path, white: int) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:, 16:] = white
    path = save(tmp_path / "m.png", values)
    mask = read_mask(path, 32, like=(64, 64))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.tile(np.arange(32) >= 8, (32, 1)))
    assert np.array_equal(read_mask(save(tmp_path / "b.png", values > 0), 32), mask)  # 1 bit


def test_a_mask_is_cut_at_half_of_the_area(tmp_path: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[0, 0] = values[0, 2] = values[1, 2] = 255
    assert read_mask(save(tmp_path / "m.png", values), 32)[0, :3].tolist() == [0, 1, 0]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.zeros((64, 48), dtype=np.uint8))
    with pytest.raises(DataError, match="a mask of 48 x 64 pixels; allowed: 64 x 64, the size of"):
        read_mask(path, 32, like=(64, 64))


@pytest.mark.parametrize(
    ("values", "found"), [([0, 128, 255], "0, 128, 255"), ([0, 1, 255], "0, 1, 255")]
)
def test_a_mask_that_is_not_binary(tmp_path: Path, values: list[int], found: str) -> None:
    path = save(tmp_path / "m.png", np.resize(np.array(values, dtype=np.uint8), (64, 64)))
    with pytest.raises(DataError, match=f"the values {found}; allowed: 0 and 255, or 0 and 1"):
        read_mask(path, 32)
    with pytest.raises(DataError, match=r"the values 0, 4, 8, 12, 16, 20, 24, 28 \.\.\."):
        read_mask(save(path, RAMP), 32)
