"""Lung masks: judged by the file's own values, and by whether they can be lungs."""

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.data.pixels import read_mask
from client.data.pixels.masks import decode_mask
from client.data.pixels.notes import Note
from common.errors import DataError
from tests.unit.client.data.pictures import RAMP, png, save

LUNGS = np.zeros((64, 64), dtype=np.uint8)
LUNGS[16:48, 8:24] = LUNGS[16:48, 36:56] = 1  # 28 % of the picture


def message(path: Path, like: tuple[int, int] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_mask(path, 32, like)
    assert str(caught.value).startswith(f"{path}: found ")
    return str(caught.value)


def packed(bits: int, white: int) -> bytes:
    """A grey PNG of 2 or 4 bits a pixel."""
    each = (LUNGS * white).reshape(64, -1, 8 // bits)
    rows = (each << np.arange(8 - bits, -1, -bits)).sum(axis=2).astype(np.uint8)
    return png(64, 64, [bytes(row) for row in rows], bits)


def colour16(*top: int) -> bytes:
    """A PNG with 16 bits a colour."""
    values = LUNGS[:, :, None].astype(">u2") * np.array(top, dtype=">u2")
    return png(64, 64, [row.astype(">u2").tobytes() for row in values], 16, 2)


def test_every_way_to_write_two_values(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    for white in (1, 255):
        for mode in ("L", "LA", "RGB", "RGBA", "P"):
            save(path, LUNGS * np.uint8(white), mode)
            assert np.array_equal(read_mask(path, 64), LUNGS), (white, mode)
    for white in (1, 255, 65535):
        save(path, LUNGS.astype(np.uint16) * np.uint16(white))
        assert np.array_equal(read_mask(path, 64), LUNGS), white
    for bits, white in ((2, 1), (2, 3), (4, 1), (4, 15)):
        path.write_bytes(packed(bits, white))
        assert np.array_equal(read_mask(path, 64), LUNGS), (bits, white)
    save(path, LUNGS > 0)
    assert np.array_equal(read_mask(path, 64), LUNGS)
    assert read_mask(path, 32, like=(64, 64)).dtype == np.uint8
    assert np.array_equal(read_mask(path, 32), LUNGS[::2, ::2])


def test_a_palette_counts_by_its_colours(tmp_path: Path) -> None:
    def palette(*colours: int) -> Path:
        picture = Image.fromarray(LUNGS).convert("P")
        picture.putpalette([*colours, *[0] * (768 - len(colours))])
        picture.save(tmp_path / "m.png")
        return tmp_path / "m.png"

    assert np.array_equal(read_mask(palette(0, 0, 0, 255, 255, 255), 64), LUNGS)
    assert "lungs along 100% of the picture's border" in message(palette(255, 255, 255, 0, 0, 0))
    assert "a mask in colour, such as (128, 0, 0)" in message(palette(0, 0, 0, 128, 0, 0))
    assert "a mask with the values 0, 9; allowed" in message(palette(0, 0, 0, 9, 9, 9))
    assert "a palette that shows several values alike" in message(palette(0, 0, 0, 0, 0, 0))


def test_a_mask_is_cut_at_half_of_the_area(tmp_path: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[0, 0] = values[0, 2] = values[1, 2] = 255
    assert read_mask(save(tmp_path / "m.png", values), 32)[0, :3].tolist() == [0, 1, 0]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", LUNGS[:, :48])
    text = message(path, like=(64, 64))
    assert "found a mask of 48 x 64 pixels; allowed: 64 x 64, the size of its image." in text
    assert "or leave it out with --skip-bad: its image stays." in text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 128, 255], "0, 128, 255"),
        ([0, 1, 255], "0, 1, 255"),
        ([0, 1, 2], "0, 1, 2"),
        ([0, 2], "0, 2"),
        ([1, 255], "1, 255"),
        ([254, 254, 255], "254, 255"),
    ],
)
def test_a_mask_that_is_not_of_two_values(
    tmp_path: Path, values: list[int], found: str, dtype: type[np.generic]
) -> None:
    path = save(tmp_path / "m.png", np.resize(np.array(values, dtype=dtype), (64, 64)))
    text = message(path)
    assert f"found a mask with the values {found}; allowed: 0 and 1, 0 and 255, or 0 and" in text
    assert "Threshold the mask and save it as PNG, or leave it out with --skip-bad" in text


def test_the_values_are_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    assert "the values 0, 4, 8, 12, 16, 20, 24, 28 ...;" in message(save(path, RAMP))
    save(path, LUNGS.astype(np.uint16) * np.uint16(4095))
    assert "the values 0, 4095; allowed" in message(path)
    path.write_bytes(packed(4, 7))
    assert "the values 0, 7; allowed" in message(path)  # of 15
    soft = save(tmp_path / "m.jpg", LUNGS * np.uint8(255), quality=70)
    assert "JPEG blurs a mask. Threshold the mask" in message(soft)


def test_colours_are_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    for colour in ([255, 0, 0], [1, 0, 0], [0, 0, 1], [0, 255, 255]):
        save(path, LUNGS[:, :, None] * np.array(colour, dtype=np.uint8))
        named = ", ".join(map(str, colour))
        assert f"found a mask in colour, such as ({named}); allowed: grey" in message(path)
    path.write_bytes(colour16(1, 1, 1))  # its upper 8 bits are all 0
    assert "found a mask of 16-bit colour" in message(path)
    save(tmp_path / "m.jpg", LUNGS * np.uint8(255), "CMYK")
    assert "found a mask of pixel mode CMYK" in message(tmp_path / "m.jpg")


def test_alpha_has_to_agree_or_to_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.png"

    def both(grey: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Path:
        Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(path)
        return path

    white, everywhere = LUNGS * np.uint8(255), np.full((64, 64), 255, dtype=np.uint8)
    for alpha in (everywhere, everywhere * np.uint8(0), white, LUNGS * np.uint8(128)):
        assert np.array_equal(read_mask(both(white, alpha), 64), LUNGS)
    for constant in (0, 255):
        text = message(both(np.full((64, 64), constant, dtype=np.uint8), white))
        assert f"a mask in the alpha channel; its grey values are {constant} everywhere" in text
        assert "Save it as an 8-bit grey PNG without alpha" in text
    assert "alpha channel and grey values show different" in message(both(white, 255 - white))
    save(path, white, transparency=0)
    assert np.array_equal(read_mask(path, 64), LUNGS)
    save(path, white, transparency=255)
    assert "show different areas" in message(path)
    indices = Image.fromarray(LUNGS).convert("P")
    indices.putpalette([255] * 768)
    indices.save(path, transparency=b"\x00\xff")
    assert "shows several values alike" in message(path)


def test_masks_that_cannot_be_lungs(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    white = np.full((64, 64), 255, dtype=np.uint8)
    for value, dtype in ((0, np.uint8), (0, np.uint16), (0, np.bool_)):
        save(path, np.full((64, 64), value, dtype=dtype))
        assert "found a mask without lungs: 0 everywhere; allowed: a mask with" in message(path)
    assert "nothing but lungs: 100.0% of the picture; allowed: at most 95%" in message(
        save(path, white)
    )
    white[1:14, 1:14] = 0  # 4.1 %
    assert "nothing but lungs: 95.9%" in message(save(path, white))
    text = message(save(path, (1 - LUNGS) * np.uint8(255)))
    assert "found lungs along 100% of the picture's border, as when black and white" in text
    assert "Invert the mask, or leave it out with --skip-bad: its image stays." in text


def test_the_border_may_be_lungs_up_to_a_half(tmp_path: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:30] = 1  # of 256 border pixels 64 above and 2 x 30 at the sides: 48 %
    assert read_mask(save(tmp_path / "m.png", values), 64).sum() == 64 * 30
    values[:33] = 1  # 51 %
    assert "found lungs along 51% of the picture's border" in message(
        save(tmp_path / "m.png", values)
    )


def test_lungs_too_small_for_the_cache(tmp_path: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[5, 5] = 255
    text = message(save(tmp_path / "m.png", values))
    assert "found a mask of 1 pixels, none at 32 px; allowed: a mask with lungs in it" in text


@pytest.mark.parametrize(("rows", "noted"), [(1, "1.2%"), (2, ""), (44, ""), (50, "61.0%")])
def test_an_unusual_area_is_noted(tmp_path: Path, rows: int, noted: str) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[7 : 7 + rows, 7:57] = 255
    path = save(tmp_path / "m.png", values)
    expected = (Note("lung-area", noted),) if noted else ()
    assert decode_mask(path.read_bytes(), str(path), 64).notes == expected


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "m.png", np.rot90(LUNGS[:40]).copy(), exif=exif)
    decoded = decode_mask(path.read_bytes(), str(path), 64, like=(64, 40))
    assert np.array_equal(decoded.pixels[12:52], LUNGS[:40])
    assert decoded.notes == (Note("turned"),)
    assert "found a mask of 64 x 40 pixels; allowed: 40 x 64" in message(path, like=(40, 64))


def test_16_bit_values_below_the_upper_byte(tmp_path: Path) -> None:
    rows = [struct.pack(">64H", *(row.astype(int) * 255)) for row in LUNGS]
    (tmp_path / "m.png").write_bytes(png(64, 64, rows, 16))
    assert np.array_equal(read_mask(tmp_path / "m.png", 64), LUNGS)
