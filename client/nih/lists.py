"""Reads the lists beside the label table: the official split and the bounding boxes."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import DataError, Problem
from common.findings import ALIASES, FINDINGS

BOX_SIDE = 1024.0  # pixels per side of the released images, the unit of the boxes
_BOX_COLUMNS = 6  # names before the three empty ones


def read_list(path: Path) -> list[str]:
    """The image names of `train_val_list.txt` or `test_list.txt`, in the file's order.

    A byte-order mark, Windows line ends and blank lines are accepted. Raises DataError when
    the file cannot be read or names an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(_unreadable(path, error)) from None
    first_line: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name in first_line:
            found = f"{name!r}, which is in line {first_line[name]} already"
            problems.append(
                Problem(str(path), f"line {number}", found, "every image once", "Remove the line.")
            )
        elif name:
            first_line[name] = number
    if problems:
        raise DataError(problems)
    return list(first_line)


def read_boxes(path: Path) -> pd.DataFrame:
    """The bounding boxes of `BBox_List_2017.csv`, plain or gzipped.

    Returns columns image (str), finding (str, one of FINDINGS), and x, y, w, h (float64):
    left, top, width and height in pixels of the released 1024 x 1024 image.

    Raises DataError with every mistake found; row numbers are line numbers of the file.
    """
    try:
        raw = pd.read_csv(
            path, header=None, skiprows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        return empty_boxes()
    except (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(_unreadable(path, error)) from None
    if raw.shape[1] < _BOX_COLUMNS:
        allowed = "image, finding, x, y, w, h"
        raise DataError(
            Problem(str(path), "", f"{raw.shape[1]} columns", allowed, "Copy the file again.")
        )
    boxes = pd.DataFrame({"image": raw[0].str.strip()})
    boxes["finding"] = raw[1].str.strip().replace(ALIASES)
    for place, name in enumerate("xywh", start=2):
        boxes[name] = pd.to_numeric(raw[place], errors="coerce").astype("float64")
    _check_boxes(path, boxes)
    return boxes


def empty_boxes() -> pd.DataFrame:
    """The box table of an archive without boxes: the columns of `read_boxes`, no rows."""
    columns = {"image": "str", "finding": "str"} | dict.fromkeys("xywh", "float64")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def _check_boxes(path: Path, boxes: pd.DataFrame) -> None:
    problems = []
    for row in np.flatnonzero(~boxes["finding"].isin(FINDINGS)):
        found = repr(str(boxes["finding"].iloc[row]))
        at = f"row {row + 2}, column 'Finding Label'"
        problems.append(Problem(str(path), at, found, ", ".join(FINDINGS), "Mend the label."))
    x, y, w, h = (boxes[name].to_numpy() for name in "xywh")
    # One pixel of slack: the released coordinates are rounded.
    inside = (x >= 0) & (y >= 0) & (w > 0) & (h > 0)
    inside &= (x + w <= BOX_SIDE + 1) & (y + h <= BOX_SIDE + 1)  # NaN compares false
    for row in np.flatnonzero(~inside):
        found = ", ".join(f"{values[row]:g}" for values in (x, y, w, h))
        allowed = f"x, y, w, h inside {BOX_SIDE:.0f} x {BOX_SIDE:.0f} pixels"
        problems.append(Problem(str(path), f"row {row + 2}", found, allowed, "Mend the box."))
    if problems:
        raise DataError(problems)


def _unreadable(path: Path, error: Exception) -> Problem:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem(str(path), "", reason, "a readable UTF-8 text file", "Copy the file again.")
