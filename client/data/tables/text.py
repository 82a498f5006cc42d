"""Reads a text file of an archive, or says in one sentence what the file is instead."""

import gzip
import zlib
from pathlib import Path

from common.errors import DataError, Problem

AS_CSV = "Open it in a table program and save it as CSV: UTF-8, separated by commas."
_ALLOWED = "text in UTF-8"
_AGAIN = "Get the file itself again."
# How files begin that are met under the name of a text file: what they are, and what to do.
_OTHERS = (
    (b"PK\x03\x04", "a zip or Excel file", AS_CSV),
    (b"PK\x05\x06", "an empty zip file", _AGAIN),
    (b"\xd0\xcf\x11\xe0", "an Excel file of the older kind", AS_CSV),
    (b"\x1f\x8b", "a gzip file", "Unpack it, or let its name end with .gz."),
    (b"BZh", "a bzip2 file", "Unpack it."),
    (b"\xfd7zXZ", "an xz file", "Unpack it."),
    (b"7z\xbc\xaf", "a 7z file", "Unpack it."),
    (b"PAR1", "a Parquet file", "Write it as CSV."),
    (b"%PDF", "a PDF file", _AGAIN),
    (b"{\\rtf", "a document in rich text", "Save it as plain text."),
    (b"{", "a JSON file", _AGAIN),
    (b"\x89PNG", "a PNG image", _AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", _AGAIN),
    (b"\0\5\x16\7", "a Mac's side file, not the file", _AGAIN),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "Run: git lfs pull"),
    (b"<", "an HTML or XML page, perhaps of a login", "Download the file itself again."),
)
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, plain or (named `.gz`) gzipped, without a byte-order mark.

    UTF-8; with their mark also UTF-16, as PowerShell writes it, and UTF-32. Raises DataError
    when it cannot be read or is no text, with the row of the first byte that is wrong.
    """
    file = str(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(Problem(file, "", reason, "a readable file", "Check the path.")) from None
    if path.suffix == ".gz":
        data = _unpacked(file, data)
    head = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    for begin, what, step in _OTHERS:
        if head.startswith(begin):
            raise DataError(Problem(file, "", what, _ALLOWED, step))
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = f"row {_lines(data[: error.start].decode(encoding, 'ignore'))}"
        found = f"the byte 0x{data[error.start]:02x}, which is not {encoding.upper()}"
        raise DataError(Problem(file, row, found, _ALLOWED, "Save the file as UTF-8.")) from None
    if "\0" in text:
        row = f"row {_lines(text[: text.index(chr(0))])}"
        raise DataError(Problem(file, row, "a zero byte", _ALLOWED, "Save the file as UTF-8."))
    return text.lstrip("\ufeff")


def _unpacked(file: str, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        if data.startswith(b"\x1f\x8b"):
            found, step = "a gzip file that is damaged or ends too early", "Copy the file again."
        else:
            found, step = "a file that is not gzipped", "Let its name end without .gz."
        raise DataError(Problem(file, "", found, "a gzip file", step)) from None


def _lines(before: str) -> int:
    """The line, from 1, of what follows this text; lines end as in `csv`: \\n, \\r\\n or \\r."""
    return before.count("\n") + before.count("\r") - before.count("\r\n") + 1
