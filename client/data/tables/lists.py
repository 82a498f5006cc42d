"""Reads the lists beside the label table: the official split and the bounding boxes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from client.data.tables.csv_file import CsvFile, read_csv
from client.data.tables.names import stem
from client.data.tables.text import read_text
from common.errors import DataError, Problem
from common.findings import ALIASES, FINDINGS

BOX_SIDE = 1024.0  # pixels per side of the released images, the unit of the boxes
_BOX_NAMES = ("Image Index", "Finding Label")
_BOX_COLUMNS = 6  # with x, y, w and h; the release has three empty ones after them
_LINE_END = re.compile(r"\r\n|\n|\r")
_QUOTED = re.compile(r"(['\"])(.*)\1")
# A line of a CSV file: a file name with another cell behind it, or a number before it.
_CELLS = re.compile(r".*\.\w{3,5}[\"']?\s*[,;\t].*|[\"']?[0-9]*[\"']?[,;\t].*\.\w{3,5}[\"']?")


def read_list(path: Path) -> list[str]:
    """The image names of `train_val_list.txt` or `test_list.txt`, in the file's order.

    Of a path the name is taken, quotes around a line do not count, and a list may be empty.
    Raises DataError when the file cannot be read, has a header or several columns, or names an
    image twice (its ending apart).
    """
    numbered = enumerate(_LINE_END.split(read_text(path)), start=1)
    lines = [(number, line.strip()) for number, line in numbered if line.strip()]
    problem = _not_a_list(str(path), lines)
    if problem:
        raise DataError(problem)
    first_line: dict[str, int] = {}
    names: list[str] = []
    problems = []
    for number, line in lines:
        name = re.split(r"[/\\]", _QUOTED.sub(r"\2", line))[-1].strip()
        first = first_line.setdefault(stem(name), number)
        if first != number:
            found = f"{name!r}, which is in line {first} already"
            problems.append(
                Problem(str(path), f"line {number}", found, "every image once", "Remove the line.")
            )
        names.append(name)
    if problems:
        raise DataError(problems)
    return names


def _not_a_list(file: str, lines: list[tuple[int, str]]) -> Problem | None:
    """What shows that lines hold more than the name of an image."""
    cells = [(number, line) for number, line in lines if _CELLS.fullmatch(line)]
    allowed = "one image name a line, and nothing else"
    if cells and len(cells) >= len(lines) - 1:  # the first line may be a header
        number, line = cells[0]
        found = f"{len(cells)} lines of several cells, such as {line!r}"
        return Problem(file, f"line {number}", found, allowed, "Keep the names alone.")
    without = [(number, line) for number, line in lines if "." not in line]
    if len(lines) > 1 and without == lines[:1]:
        number, line = lines[0]
        return Problem(file, f"line {number}", f"{line!r}, a header", allowed, "Remove the line.")
    return None


def read_boxes(path: Path) -> pd.DataFrame:
    """The bounding boxes of `BBox_List_2017.csv`, plain or gzipped.

    Returns columns image (str), finding (str, one of FINDINGS), and x, y, w, h (float64):
    left, top, width and height in pixels of the released 1024 x 1024 image.

    Raises DataError with every mistake found; row numbers are line numbers of the file.
    """
    return parse_boxes(path)[0]


def parse_boxes(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `read_boxes`, and the remarks that a person should see but that stop nothing."""
    file = read_csv(path, _BOX_NAMES)
    _check_header(path, file)
    if not file.lines:
        return empty_boxes(), file.remarks
    raw = [pd.Series(cells, dtype="str").str.strip() for cells in file.columns[:_BOX_COLUMNS]]
    boxes = pd.DataFrame({"image": raw[0], "finding": raw[1].replace(ALIASES)})
    for name, cells in zip("xywh", raw[2:], strict=True):
        boxes[name] = pd.to_numeric(cells, errors="coerce").astype("float64")
    _check_boxes(path, file.lines, boxes, raw)
    return boxes, file.remarks


def empty_boxes() -> pd.DataFrame:
    """The box table of an archive without boxes: the columns of `read_boxes`, no rows."""
    columns = {"image": "str", "finding": "str"} | dict.fromkeys("xywh", "float64")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def _check_header(path: Path, file: CsvFile) -> None:
    """Raises DataError unless the columns are those of the box list."""
    names, more = file.header[:_BOX_COLUMNS], file.columns[_BOX_COLUMNS:]
    known = tuple(names[:2]) == _BOX_NAMES and len(names) == _BOX_COLUMNS
    if not known or any(map(str.strip, (cell for cells in more for cell in cells))):
        found = f"the {len(file.header)} columns {', '.join(file.header)}"
        allowed = f"{', '.join(_BOX_NAMES)}, x, y, w, h"
        step = "Rename or remove columns, or copy the file again."
        raise DataError(Problem(str(path), "header", found, allowed, step))


def _check_boxes(
    path: Path, lines: list[int], boxes: pd.DataFrame, raw: "list[pd.Series[str]]"
) -> None:
    problems = []
    for row in np.flatnonzero(boxes["image"].str.contains(r"^$|[/\\]")):
        at = f"row {lines[row]}, column 'Image Index'"
        allowed, step = "a file name such as 00000001_000.png", "Mend it."
        problems.append(Problem(str(path), at, repr(str(raw[0].iloc[row])), allowed, step))
    for row in np.flatnonzero(~boxes["finding"].isin(FINDINGS)):
        found = repr(str(raw[1].iloc[row]))
        at = f"row {lines[row]}, column 'Finding Label'"
        problems.append(Problem(str(path), at, found, ", ".join(FINDINGS), "Mend the label."))
    x, y, w, h = (boxes[name].to_numpy() for name in "xywh")
    # One pixel of slack: the released coordinates are rounded.
    inside = (x >= 0) & (y >= 0) & (w > 0) & (h > 0)
    inside &= (x + w <= BOX_SIDE + 1) & (y + h <= BOX_SIDE + 1)  # NaN compares false
    for row in np.flatnonzero(~inside):
        found = ", ".join(str(cells.iloc[row]) or "blank" for cells in raw[2:])
        allowed = f"x, y, w, h inside {BOX_SIDE:.0f} x {BOX_SIDE:.0f} pixels"
        problems.append(Problem(str(path), f"row {lines[row]}", found, allowed, "Mend the box."))
    if problems:
        raise DataError(problems)
