"""What a file is by its bytes, said when it is not the picture that its name promises."""

import struct
from pathlib import PurePath

from common.errors import Problem

ALLOWED = "a PNG, JPEG or DICOM radiograph"
COPY_AGAIN = "Copy the file again, or leave it out with --skip-bad."
_CONVERT = "Convert it to PNG, or leave it out with --skip-bad."
_UNPACK = "Unpack it, and put the images in its place."
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
# Where the bytes lie, the bytes, what they begin, and what to do with it.
_SIGNATURES = (
    (1, b"PNG", "a PNG whose first bytes are damaged, as by a copy in text mode", COPY_AGAIN),
    (128, b"DICM", "DICOM", _CONVERT),
    (0, b"GIF8", "GIF", _CONVERT),
    (8, b"WEBP", "WebP", _CONVERT),
    (0, b"II*\0", "TIFF", _CONVERT),
    (0, b"MM\0*", "TIFF", _CONVERT),
    (0, b"BM", "BMP", _CONVERT),
    (4, b"ftypavif", "AVIF", _CONVERT),
    (4, b"ftypheic", "HEIC", _CONVERT),
    (4, b"jP  \r\n", "JPEG 2000", _CONVERT),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (4, b"JXL \r\n", "JPEG XL", _CONVERT),
    (0, b"\xff\x0a", "JPEG XL", _CONVERT),
    (0, b"%PDF", "PDF", _CONVERT),
    (344, b"n+1\0", "NIfTI", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", _CONVERT),
    (0, b"\x89HDF", "HDF5", _CONVERT),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
)


def not_a_picture(data: bytes, file: str, allowed: str = ALLOWED) -> Problem:
    """The Problem of a file that is neither PNG nor JPEG nor DICOM: what it is instead."""
    found, next_step = _what(data, PurePath(file).suffix)
    return Problem(file, "", found, allowed, next_step)


def _what(data: bytes, suffix: str) -> tuple[str, str]:
    """What the bytes are, and the next step."""
    if not data:
        return "an empty file", COPY_AGAIN
    if not any(data[:4096]):
        return "nothing but zero bytes at the start: the file was never written", COPY_AGAIN
    if data.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, not an image"
        return found, "Run `git lfs pull` where the archive was cloned."
    if data.lstrip().startswith((b"/annex/objects/", b"../.git/annex", b".git/annex")):
        return "a git-annex pointer, not an image", "Run `git annex get` where it was cloned."
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<svg", b"<!--")):
        found = "a web page (HTML or XML), not an image"
        return found, "The download failed or asked for a login: download the file again."
    for place, signature, what, next_step in _SIGNATURES:
        if data[place : place + len(signature)] == signature:
            return f"{what}, named {suffix}" if suffix else what, next_step
    if data[:512].isascii() and not any(byte < 9 for byte in data[:512]):
        return "not an image but text", COPY_AGAIN
    return "not an image", COPY_AGAIN


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first 16 bytes of a PNG's chunks, by name, the first of each name.

    Without b"IEND" the file is cut off. Raises nothing: a damaged file has fewer chunks.
    """
    chunks: dict[bytes, bytes] = {}
    place = len(PNG)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if place + 12 + length > len(data):
            break
        chunks.setdefault(name, data[place + 8 : place + 8 + min(length, 16)])
        if name == b"IEND":
            break
        place += 12 + length
    return chunks


def jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """(process, bits a sample, width, height) of a JPEG or JPEG-LS stream, None without a frame.

    process: the frame's marker, ITU-T T.81 table B.1: 0xC0 baseline, 0xC2 progressive, 0xC3
    lossless, 0xF7 JPEG-LS.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width = struct.unpack_from(">BHH", data, place + 4)
            return marker, bits, width, height
        else:
            place += 2 + int(struct.unpack_from(">H", data, place + 2)[0])
    return None


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG 2000 stream, bare or in a JP2 box; None when there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    return right - left, bottom - top
