"""Radiographs as PNG and JPEG: every pixel format that occurs, and every damage."""

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.data.pixels import read_image, read_mask
from client.data.pixels.images import decode_image
from client.data.pixels.notes import Note
from client.data.pixels.pictures import MissingDecoderError
from common.errors import DataError
from tests.unit.client.data.pictures import RAMP, chunk, png, save


def message(path: Path, size: int = 32) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, size)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def notes(path: Path, size: int = 64) -> dict[str, str]:
    """Codes and details of what a person should know of an image."""
    return {
        note.code: note.detail for note in decode_image(path.read_bytes(), str(path), size).notes
    }


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_every_mode_becomes_the_same_grey(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", RAMP, mode)
    pixels = read_image(path, 64)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, RAMP)
    assert notes(path) == {}


def test_one_bit_and_transparent_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP > 100)
    image.save(tmp_path / "bit.png")
    assert np.array_equal(read_image(tmp_path / "bit.png", 64), (RAMP > 100) * np.uint8(255))
    Image.fromarray(RAMP).convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert np.array_equal(read_image(tmp_path / "p.png", 64), RAMP)
    assert notes(tmp_path / "p.png") == {"alpha": ""}


def test_parts_that_are_transparent_are_noted(tmp_path: Path) -> None:
    alpha = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 64), RAMP)
    assert notes(tmp_path / "a.png") == {"alpha": ""}
    path = save(tmp_path / "b.png", RAMP, transparency=100)  # one grey value means nothing
    assert np.array_equal(read_image(path, 64), RAMP)
    assert notes(path) == {"alpha": ""}


def test_16_bit_maps_its_full_range(tmp_path: Path) -> None:
    values = np.zeros((32, 32), dtype=np.uint16)
    values[0, :4] = [65535, 32768, 257, 4095]
    path = save(tmp_path / "a.png", values)
    assert read_image(path, 32)[0, :5].tolist() == [255, 128, 1, 16, 0]
    assert notes(path) == {}


@pytest.mark.parametrize(
    ("largest", "bits", "middle"),
    # 255 * 2048 / 4095 = 127.53; 255 * 100 / 255; 255 * 600 / 1023 = 149.56; 255 * 5000 / 16383
    [(4095, 12, (2048, 128)), (255, 8, (100, 100)), (1000, 10, (600, 150)), (9000, 14, (5000, 78))],
)
def test_16_bit_with_fewer_in_use_is_scaled_by_those(
    tmp_path: Path, largest: int, bits: int, middle: tuple[int, int]
) -> None:
    values = np.zeros((32, 32), dtype=np.uint16)
    values[0, :2] = [largest, middle[0]]
    path = save(tmp_path / "a.png", values)
    pixels = read_image(path, 32)
    assert pixels[0, 0] == round(largest * 255 / (2**bits - 1))
    assert pixels[0, 1] == middle[1]
    assert notes(path) == {"few-bits": f"{bits} bits"}


def test_16_bit_that_says_how_many_are_in_use(tmp_path: Path) -> None:
    rows = [struct.pack(">32H", *range(0, 3200, 100))] * 32
    said = chunk(b"sBIT", b"\x0d")
    (tmp_path / "a.png").write_bytes(png(32, 32, rows, 16, before=said))
    assert read_image(tmp_path / "a.png", 32)[0, 31] == round(3100 * 255 / 8191)
    assert notes(tmp_path / "a.png") == {"few-bits": "13 bits"}
    # Scaled up to 16 bits by its writer, as the specification asks: 65,528 is 13 bits of ones.
    rows = [struct.pack(">32H", *range(0, 63488, 2048), 65528)] * 32
    (tmp_path / "b.png").write_bytes(png(32, 32, [r[:64] for r in rows], 16, before=said))
    assert read_image(tmp_path / "b.png", 32)[0, 16] == round(16 * 2048 * 255 / 65535)
    assert notes(tmp_path / "b.png") == {}


def test_16_bit_colour_needs_its_upper_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(32, 32, [struct.pack(">3H", 40000, 40000, 40000) * 32] * 32, 16, 2))
    assert (read_image(path, 32) == 40000 >> 8).all()
    path.write_bytes(png(32, 32, [struct.pack(">3H", 4000, 4000, 4000) * 32] * 32, 16, 2))
    assert "found 16-bit colour with values below 32,768, of which only the upper" in message(path)
    path.write_bytes(png(32, 32, [struct.pack(">2H", 4000, 65535) * 32] * 32, 16, 4))
    assert "allowed: 8-bit colour, or 16-bit grey. Export it as a 16-bit grey PNG" in message(path)


def test_jpeg(tmp_path: Path) -> None:
    assert np.abs(read_image(save(tmp_path / "a.jpg", RAMP), 64).astype(int) - RAMP).max() <= 4
    path = save(tmp_path / "b.jpg", RAMP, "RGB", progressive=True)
    assert np.abs(read_image(path, 64).astype(int) - RAMP).max() <= 4


@pytest.mark.parametrize(("code", "back"), [(3, 2), (6, 1), (8, 3)])
def test_exif_turns_it_upright(tmp_path: Path, code: int, back: int) -> None:
    """As a camera writes: 6 is "turn it by 90 degrees clockwise to see it", TIFF 6.0, tag 274."""
    exif = Image.Exif()
    exif[0x0112] = code
    upright = np.repeat(RAMP[:40], 2, axis=0)[:, :60].copy()  # 60 wide, 80 high
    upright[:10, :10] = 255
    lying = np.rot90(upright, back)
    for ending in ("png", "jpg"):
        path = save(tmp_path / f"a.{ending}", np.ascontiguousarray(lying), exif=exif)
        decoded = decode_image(path.read_bytes(), str(path), 80)
        assert decoded.extent == (60, 80)
        assert np.abs(decoded.pixels[:, 10:70].astype(int) - upright).max() <= 40
        assert decoded.pixels[:8, 10:18].min() > 200
        assert decoded.notes == (Note("turned"),)


def test_exif_mirrors_and_can_stand_behind_the_pixels(tmp_path: Path) -> None:
    tiff = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 2, 0, 0)  # 2: mirrored
    content = png(64, 64, [bytes(row) for row in RAMP], after=chunk(b"eXIf", tiff))
    (tmp_path / "a.png").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "a.png", 64), RAMP[:, ::-1])
    assert notes(tmp_path / "a.png") == {"turned": ""}


def test_exif_that_is_upright_or_unreadable(tmp_path: Path) -> None:
    upright = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 1, 0, 0)
    for data, noted in ((upright, {}), (b"no TIFF header", {"exif": ""})):
        content = png(64, 64, [bytes(row) for row in RAMP], before=chunk(b"eXIf", data))
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(read_image(tmp_path / "a.png", 64), RAMP)
        assert notes(tmp_path / "a.png") == noted


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
    lungs = np.zeros((50, 100), dtype=np.uint8)
    lungs[:, 20:40] = 255
    mask = read_mask(save(tmp_path / "m.png", lungs), 100)
    assert np.array_equal(mask[25:75], lungs // 255)  # the same geometry
    assert mask.sum() == 1000


def test_images_that_show_nothing_are_noted(tmp_path: Path) -> None:
    black, one = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    one[3, 3] = 1  # not to be seen at 16 pixels, but it is there
    assert notes(save(tmp_path / "a.png", black)) == {"one-level": ""}
    assert notes(save(tmp_path / "b.png", black + 7), 16) == {"one-level": ""}
    assert notes(save(tmp_path / "c.png", black[:40] + 7), 16) == {"one-level": ""}  # padded
    assert notes(save(tmp_path / "d.png", one), 16) == {}
    assert notes(save(tmp_path / "e.png", black.astype(np.uint16))) == {
        "one-level": "",
        "few-bits": "8 bits",
    }


def test_odd_shapes_are_noted(tmp_path: Path) -> None:
    assert notes(save(tmp_path / "a.png", RAMP[:31])) == {"shape": "64 x 31"}
    assert notes(save(tmp_path / "b.png", np.tile(RAMP, (5, 1)))) == {"shape": "64 x 320"}
    assert notes(save(tmp_path / "c.png", np.tile(RAMP, (4, 1)))) == {}
    assert notes(save(tmp_path / "d.png", RAMP[:1, :1])) == {"one-level": "", "shape": "1 x 1"}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    path = tmp_path / "a.png"
    for kept in (len(whole) // 2, 60, 20):
        path.write_bytes(whole[:kept])
        assert "Copy the file again, or leave it out with --skip-bad." in message(path)
    path.write_bytes(whole[:900] + bytes(200) + whole[1100:])
    assert "found damaged pixels (" in message(path)
    assert "No such file" in message(tmp_path / "absent.png")
    assert "found Is a directory" in message(tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 16, 20, 100])
def test_a_file_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    """Also where all pixels are there: what else was lost nobody knows."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for ending in ("png", "jpg"):
        path = save(tmp_path / f"a.{ending}", noise)
        path.write_bytes(path.read_bytes()[:-cut])
        assert "found damaged pixels (" in message(path)
        path.write_bytes(save(path, noise).read_bytes() + bytes(cut))  # more is no harm
        assert read_image(path, 32).shape == (32, 32)


def test_an_image_without_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0, 0, []))
    assert "allowed: a PNG, JPEG or DICOM radiograph" in message(tmp_path / "a.png")


def test_a_colour_space_of_print_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", RAMP, "CMYK")
    assert "found pixel mode CMYK; allowed: 1, L, LA" in message(tmp_path / "a.jpg")


def test_a_moving_picture_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert "found an animated PNG; allowed: one picture a file" in message(tmp_path / "a.png")
    one_frame = chunk(b"acTL", struct.pack(">II", 1, 0))
    content = png(64, 64, [bytes(row) for row in RAMP], before=one_frame)
    (tmp_path / "b.png").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "b.png", 64), RAMP)


@pytest.mark.parametrize(
    ("width", "height"), [(9600, 9600), (20_000, 20_000), (1, 10_001), (2**31 - 1, 2**31 - 1)]
)
def test_more_pixels_than_any_radiograph(tmp_path: Path, width: int, height: int) -> None:
    """Said from the header alone, without a warning of Pillow's; with a line of pixels or none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "a.png").write_bytes(png(width, height, [bytes(9600)]))
        text = message(tmp_path / "a.png")
    assert f"found a picture of {width:,} x {height:,} pixels; allowed: 40 million" in text
    assert "no side above 10,000. Export it smaller, or leave it out with --skip-bad." in text


def test_a_jpeg_of_too_many_pixels(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.jpg", RAMP).read_bytes())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", 9000, 9001)
    (tmp_path / "a.jpg").write_bytes(content)
    assert "found a picture of 9,001 x 9,000 pixels" in message(tmp_path / "a.jpg")


def test_a_large_picture_takes_bounded_memory(tmp_path: Path) -> None:
    """NumPy: twice two bytes a 16-bit pixel, and one its shade; no wider type on the way."""
    rows = [struct.pack(">3000H", *range(0, 60000, 20))] * 3000
    content = png(3000, 3000, rows, 16)
    del rows
    tracemalloc.start()
    decode_image(content, "a.png", 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 7


@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC3, 8), (0xC3, 16), (0xF7, 12)])
def test_a_jpeg_that_pillow_cannot_read_is_not_called_damaged(
    tmp_path: Path, marker: int, bits: int
) -> None:
    frame = struct.pack(">BBHBHHBBBB", 0xFF, marker, 11, bits, 64, 64, 1, 1, 0x11, 0)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + frame + bytes(40) + b"\xff\xd9")
    text = message(tmp_path / "a.jpg")
    assert f"found a JPEG of {bits} bits a sample, process SOF{marker - 0xC0}; allowed:" in text
    assert "Convert it to PNG. --skip-bad does not leave it out" in text
    with pytest.raises(MissingDecoderError):
        read_image(tmp_path / "a.jpg", 32)


def test_more_text_than_picture(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    content = png(64, 64, [bytes(row) for row in RAMP], before=text)
    (tmp_path / "a.png").write_bytes(content)
    assert "found more than 1 MiB of text in the file" in message(tmp_path / "a.png")


def test_warnings_of_the_libraries_are_kept_back(tmp_path: Path) -> None:
    """A damaged EXIF block, of which Pillow warns; here a warning is an error."""
    exif = b"II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\x01"
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "JPEG", exif=b"Exif\0\0" + exif)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "a.jpg", 64).shape == (64, 64)


def arrays(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8)


def test_no_damage_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes changed, cut and put in at random, with a fixed seed."""
    rng = np.random.default_rng(1)
    wholes = [save(tmp_path / f"a.{e}", arrays(0)).read_bytes() for e in ("png", "jpg")]
    for _ in range(150):
        content = bytearray(wholes[rng.integers(2)])
        for place in rng.integers(0, min(len(content), 400), rng.integers(1, 5)):
            content[place] = rng.integers(256)
        cut = bytes(content[: rng.integers(len(content))]) if rng.random() < 0.3 else bytes(content)
        (tmp_path / "b.png").write_bytes(cut)
        for reader in (read_image, read_mask):
            with contextlib.suppress(DataError):
                assert reader(tmp_path / "b.png", 16).shape == (16, 16)
