"""What a file is instead of a radiograph, in the words that lead to the next step."""

import os
from pathlib import Path

import pytest
from PIL import Image

from client.data.pixels import read_image, read_mask
from client.data.pixels.content import jpeg2000_size, jpeg_frame
from client.data.pixels.pictures import MAX_BYTES, read_bytes
from common.errors import DataError
from tests.unit.client.data.pictures import RAMP, save


def message(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, 32)
    assert str(caught.value).startswith(f"{path}: found ")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["WebP", "GIF", "TIFF", "BMP", "PDF"])
def test_another_picture_format_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path, format=kind)
    found = f"found {kind}, named .png; allowed: a PNG, JPEG or DICOM radiograph. Convert it to PNG"
    assert found in message(path)
    with pytest.raises(DataError, match=f"found {kind}, named .png; allowed: a PNG or JPEG mask"):
        read_mask(path, 32)


def test_jpeg2000_is_named(tmp_path: Path) -> None:
    for no_jp2 in (False, True):
        Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="JPEG2000", no_jp2=no_jp2)
        assert "found JPEG 2000, named .jpg" in message(tmp_path / "a.jpg")
        assert jpeg2000_size((tmp_path / "a.jpg").read_bytes()) == (64, 64)


@pytest.mark.parametrize(
    ("content", "found", "next_step"),
    [
        (b"", "an empty file", "Copy the file again"),
        (bytes(5000), "nothing but zero bytes", "Copy the file again"),
        (b"<html>Not found</html>", "a web page (HTML or XML), not an image", "download the file"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML>", "a web page (HTML or XML)", "asked for a login"),
        (b"<?xml version='1.0'?><Error/>", "a web page (HTML or XML)", "download the file again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
         "a Git LFS pointer, not an image", "Run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--00.png\n", "a git-annex pointer", "Run `git annex get`"),
        (b"PK\x03\x04rest", "a zip archive, named .png", "Unpack it"),
        (b"\x1f\x8b\x08rest", "a gzip archive, named .png", "Unpack it"),
        (b"\x89PNG\n\x1a\n\0\0", "a PNG whose first bytes are damaged", "Copy the file again"),
        (b"Image Index,Finding Labels\n", "not an image but text", "Copy the file again"),
        (b"\xde\xad\xbe\xef\0\1", "not an image;", "Copy the file again"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named(
    tmp_path: Path, content: bytes, found: str, next_step: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    text = message(tmp_path / "a.png")
    assert f"found {found}" in text
    assert next_step in text


def test_what_would_never_end_or_fit_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "found not a file (a device, pipe or socket)" in message(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    assert "found not a file" in message(tmp_path / "b.png")
    with (tmp_path / "c.png").open("wb") as stream:
        stream.truncate(MAX_BYTES + 2**20)  # takes no room on the disk
    assert "found 257 MiB; allowed: at most 256 MiB" in message(tmp_path / "c.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "d.png")
    with pytest.raises(DataError, match="Too many levels of symbolic links"):
        read_bytes(tmp_path / "d.png")


def test_the_frame_of_a_jpeg(tmp_path: Path) -> None:
    wide = save(tmp_path / "a.jpg", RAMP[:32]).read_bytes()
    assert jpeg_frame(wide) == (0xC0, 8, 64, 32)
    assert jpeg_frame(save(tmp_path / "b.jpg", RAMP, progressive=True).read_bytes()) == (
        0xC2, 8, 64, 64
    )  # fmt: skip
    for kept in range(200):
        assert jpeg_frame(wide[:kept]) in (None, (0xC0, 8, 64, 32))
    assert jpeg2000_size(b"\xff\x4f\xff\x51 too short") is None
