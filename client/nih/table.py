"""Reads the label table of NIH ChestX-ray14 (`Data_Entry_2017*.csv`), quirks and all.

The header of the release has commas inside two bracketed names, so that its nine columns
arrive as eleven; the 2017 edition ends every line with one comma more and holds ages up to
414; the sample on Kaggle writes ages as `060Y`, `013M` and `001D`. All of them are read here.
"""

import csv
import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import DataError, Problem
from common.findings import ALIASES, FINDINGS, NO_FINDING

TABLE_NAMES = (  # v2020 first: its ages are corrected
    "Data_Entry_2017_v2020.csv",
    "Data_Entry_2017_v2020.csv.gz",
    "Data_Entry_2017.csv",
    "Data_Entry_2017.csv.gz",
    "sample_labels.csv",
)
SEXES = ("M", "F", "")
VIEWS = ("PA", "AP", "")
OLDEST = 120.0  # years; an age above it is a typing error, and is read as unknown

REQUIRED = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Sex",
    "View Position",
)
RENAMED = {"Patient Gender": "Patient Sex"}
# Columns of the release that we do not use, as its editions spell them after a split at commas.
UNUSED = (
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
    "OriginalImage[Width,Height]",
    "OriginalImagePixelSpacing[x,y]",
    "OriginalImageWidth",
    "OriginalImageHeight",
    "OriginalImagePixelSpacing_x",
    "OriginalImagePixelSpacing_y",
)
_AGE = re.compile(r"(\d+(?:\.\d+)?)([YMD]?)")
_UNITS_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "D": 365.25}


def find_table(root: Path) -> Path:
    """The label table in an archive folder; v2020 when both editions lie there.

    Raises DataError when there is none.
    """
    for name in TABLE_NAMES:
        if (root / name).is_file():
            return root / name
    allowed = " or ".join(TABLE_NAMES)
    raise DataError(
        Problem(str(root), "", "no label table", allowed, "Copy it from the NIH release.")
    )


def read_table(path: Path) -> pd.DataFrame:
    """Read and validate a label table, plain or gzipped.

    Returns one row per image, in the file's order, with a RangeIndex: image (str, file name),
    patient (str; leading zeros of a number dropped, so that it equals the number in the file
    names), follow_up (int64, 0 when blank), age (float32, years, NaN when blank or above 120),
    sex ("M", "F" or ""), view ("PA", "AP" or ""), labelled (bool: `Finding Labels` is not
    blank), and the 14 FINDINGS (int8: 1 present, 0 absent, -1 unknown).

    Raises DataError with every mistake found; row numbers are line numbers of the file.
    """
    return parse_table(path)[0]


def parse_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `read_table`, and the remarks that a person should see but that stop nothing."""
    checks = _Checks(str(path), _read_text(path))
    remarks: list[str] = []
    table = pd.DataFrame(
        {
            "image": checks.images(),
            "patient": checks.patients(),
            "follow_up": checks.follow_ups(),
            "age": checks.ages(remarks),
            "sex": checks.allowed("Patient Sex", SEXES),
            "view": checks.allowed("View Position", VIEWS),
            "labelled": checks.raw["Finding Labels"].ne(""),
        }
    )
    findings = pd.DataFrame(checks.findings(), columns=list(FINDINGS))
    if checks.problems:
        raise DataError(checks.problems)
    return pd.concat([table, findings], axis=1), remarks


def _read_text(path: Path) -> pd.DataFrame:
    """The used columns as stripped text; the index is the line number in the file."""
    file = str(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    problems: list[Problem] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            names = _check_header(file, next(reader, []))
            for cells in reader:
                if len(cells) != len(names):
                    if not "".join(cells).strip():  # a blank line
                        continue
                    if len(cells) < len(names) or "".join(cells[len(names) :]).strip():
                        at, found = f"row {reader.line_num}", f"{len(cells)} columns"
                        problems.append(Problem(file, at, found, f"{len(names)}", "Mend the row."))
                    cells = cells[: len(names)]
                rows.append(cells)
                lines.append(reader.line_num)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise DataError(_unreadable(file, error)) from None
    if problems:
        raise DataError(problems)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    index = pd.Index(lines, dtype="int64")
    used = {
        name: pd.Series(cells, index, dtype="str").str.strip()
        for name, cells in zip(names, columns, strict=True)
        if name in REQUIRED
    }
    blank = np.logical_and.reduce([cells.eq("") for cells in used.values()])
    table: pd.DataFrame = pd.DataFrame(used).loc[~blank]  # rows of commas alone: from Excel
    return table


def _check_header(file: str, cells: list[str]) -> list[str]:
    """The column names. Raises DataError on missing, double and unknown ones."""
    names = [RENAMED.get(name.strip(), name.strip()) for name in cells]
    while names and not names[-1]:  # the empty column at the end of the 2017 edition
        names.pop()
    problems = []
    for name in REQUIRED:
        if name not in names:
            allowed, next_step = "the columns of the release", "Add it; separate them by commas."
            found = f"no column {name!r}"
            problems.append(Problem(file, "header", found, allowed, next_step))
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            found = f"column {name!r} {names.count(name)} times"
            problems.append(Problem(file, "header", found, "once each", "Remove one of them."))
        if name not in REQUIRED + UNUSED:
            allowed = ", ".join((*REQUIRED, *UNUSED))
            found = f"unknown column {name!r}"
            problems.append(Problem(file, "header", found, allowed, "Remove or rename it."))
    if problems:
        raise DataError(problems)
    return names


def _unreadable(file: str, error: Exception) -> Problem:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem(file, "", reason, "a readable UTF-8 CSV file", "Copy the file again.")


class _Checks:
    """Turns the text columns into values, and collects what is wrong with them."""

    def __init__(self, file: str, raw: pd.DataFrame) -> None:
        self.file, self.raw = file, raw.reset_index(drop=True)
        self.lines = raw.index.to_numpy()
        self.problems: list[Problem] = []

    def _refuse(self, column: str, bad: Any, allowed: str, next_step: str) -> None:
        values = self.raw[column]
        for row in np.flatnonzero(np.asarray(bad, dtype=bool)):
            at = f"row {self.lines[row]}, column {column!r}"
            self.problems.append(
                Problem(self.file, at, repr(str(values.iloc[row])), allowed, next_step)
            )

    def images(self) -> "pd.Series[str]":
        names = self.raw["Image Index"]
        allowed = "a file name such as 00000001_000.png"
        self._refuse(
            "Image Index", names.str.contains(r"[/\\]") | names.eq(""), allowed, "Mend it."
        )
        stems = names.str.replace(r"\.[^.]*$", "", regex=True)
        first_rows = dict(zip(stems[::-1], self.lines[::-1], strict=True))
        for row in np.flatnonzero(stems.duplicated().to_numpy() & names.ne("").to_numpy()):
            at = f"row {self.lines[row]}, column 'Image Index'"
            first = first_rows[stems.iloc[row]]
            found = f"{names.iloc[row]!r}, which is in row {first} already"
            self.problems.append(
                Problem(self.file, at, found, "every image once", "Remove one of the rows.")
            )
        return names

    def patients(self) -> "pd.Series[str]":
        names = self.raw["Patient ID"]
        self._refuse("Patient ID", names.eq(""), "an identifier", "Fill it in.")
        return names.where(
            ~names.str.fullmatch(r"\d+"), names.str.replace(r"^0+(?=\d)", "", regex=True)
        )

    def follow_ups(self) -> "pd.Series[int]":
        text = self.raw["Follow-up #"]
        good = text.str.fullmatch(r"\d{1,9}|")
        self._refuse("Follow-up #", ~good, "a whole number from 0, or blank", "Mend it.")
        return text.where(good & text.ne(""), "0").astype("int64")

    def ages(self, remarks: list[str]) -> "pd.Series[float]":
        codes, texts = pd.factorize(self.raw["Patient Age"])
        years = np.full(len(texts), np.nan)
        good = np.ones(len(texts), dtype=bool)
        for place, text in enumerate(texts):
            match = _AGE.fullmatch(text)
            good[place] = bool(match) or text == ""
            if match:
                years[place] = float(match[1]) / _UNITS_PER_YEAR[match[2]]
        allowed = "years such as 58 or 058Y, months 013M, days 001D, or blank"
        self._refuse("Patient Age", ~good[codes], allowed, "Mend it.")
        too_old = int((years[codes] > OLDEST).sum())
        if too_old:
            remarks.append(f"{self.file}: {too_old} ages above {OLDEST:.0f} years read as unknown")
        years[years > OLDEST] = np.nan
        return pd.Series(years[codes].astype(np.float32))

    def allowed(self, column: str, values: tuple[str, ...]) -> "pd.Series[str]":
        allowed = ", ".join(value or "blank" for value in values)
        self._refuse(column, ~self.raw[column].isin(values), allowed, "Mend it.")
        return self.raw[column]

    def findings(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """(rows, 14) int8. Each of the few hundred combinations is parsed once."""
        codes, texts = pd.factorize(self.raw["Finding Labels"])
        values = np.zeros((len(texts), len(FINDINGS)), dtype=np.int8)
        column = {name: place for place, name in enumerate(FINDINGS)}
        unknown, combined = np.zeros((2, len(texts)), dtype=bool)
        for place, text in enumerate(texts):
            names = [ALIASES.get(name.strip(), name.strip()) for name in text.split("|")]
            if text == "":
                values[place] = -1
            elif NO_FINDING in names:
                combined[place] = len(names) > 1
            elif all(name in column for name in names):
                values[place, [column[name] for name in names]] = 1
            else:
                unknown[place] = True
        allowed = f"{', '.join((*FINDINGS, NO_FINDING))}, joined by |, or blank for unlabelled"
        self._refuse("Finding Labels", unknown[codes], allowed, "Mend the label.")
        self._refuse("Finding Labels", combined[codes], f"{NO_FINDING!r} alone", "Mend the label.")
        return values[codes]
