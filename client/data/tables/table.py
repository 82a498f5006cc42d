"""Reads the label table of NIH ChestX-ray14 (`Data_Entry_2017*.csv`), quirks and all.

The header of the release has commas inside two bracketed names, so that its nine columns
arrive as eleven; the 2017 edition ends every line with one comma more and holds ages up to
414; the sample on Kaggle writes ages as `060Y`, `013M` and `001D`. All of them are read here.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.data.tables.csv_file import CsvFile, read_csv
from client.data.tables.identity import contradictions, patient_column
from client.data.tables.names import stem
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
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([YMD]?)")
# Names that may be meant for a label table's.
_SIMILAR = re.compile(
    r"(?!\.|bbox|hospitals\.csv)(data.?entry|sample.?labels|.*\.(csv|tsv|xlsx?|ods)(\.|$))",
    re.IGNORECASE,
)
_SHOWN = 5  # names in one message
_UNITS_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "D": 365.25}


def find_table(root: Path) -> Path:
    """The label table in an archive folder; v2020 when both editions lie there.

    Raises DataError when there is none, with what lies there under such a name.
    """
    try:
        for name in TABLE_NAMES:
            if (root / name).is_file():
                return root / name
        there = sorted(root.iterdir())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(Problem(str(root), "", reason, "a readable folder", "Check it.")) from None
    similar = [_described(path) for path in there if _SIMILAR.match(path.name)]
    found, step = "no label table", "Copy it from the NIH release."
    if similar:
        shown = ", ".join(similar[:_SHOWN]) + (", ..." if len(similar) > _SHOWN else "")
        found, step = f"no label table, but {shown}", "Put the table there by such a name, as CSV."
    raise DataError(Problem(str(root), "", found, " or ".join(TABLE_NAMES), step))


def _described(path: Path) -> str:
    """The name of what lies there, and why it is no label table if its name is right."""
    if path.name not in TABLE_NAMES:
        return path.name
    if path.is_symlink() and not path.exists():
        return f"{path.name}, a link to {path.readlink()}, which is not there"
    return f"{path.name}, a folder" if path.is_dir() else f"{path.name}, not a file"


def read_table(path: Path) -> pd.DataFrame:
    """Read and validate a label table, plain or gzipped.

    Returns one row per image, in the file's order, with a RangeIndex: image (str, file name),
    patient (str, as `identity.patient_id`, so that a number equals that in the file names),
    follow_up (int64, 0 when blank), age (float32, years, NaN when blank or above 120),
    sex ("M", "F" or ""), view ("PA", "AP" or ""), labelled (bool: `Finding Labels` is not
    blank), and the 14 FINDINGS (int8: 1 present, 0 absent, -1 unknown).

    Raises DataError with every mistake found; row numbers are line numbers of the file.
    """
    return parse_table(path)[0]


def parse_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """As `read_table`, and the remarks that a person should see but that stop nothing."""
    file = read_csv(path, (*REQUIRED, *RENAMED), partial(_check_header, str(path)))
    remarks = list(file.remarks)
    checks = _Checks(str(path), _used(str(path), file))
    table = pd.DataFrame(
        {
            "image": checks.images(),
            "patient": checks.patients(remarks),
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
    if not table["labelled"].any():
        remarks.append(f"{path}: no row has a label")
    return pd.concat([table, findings], axis=1), remarks


def _used(path: str, file: CsvFile) -> pd.DataFrame:
    """The used columns as stripped text; the index is the line number in the file."""
    names = [RENAMED.get(name, name) for name in file.header]
    index = pd.Index(file.lines, dtype="int64")
    used = {
        name: pd.Series(cells, index, dtype="str")
        for name, cells in zip(names, file.columns, strict=True)
        if name in REQUIRED
    }
    table = pd.DataFrame({name: cells.str.strip() for name, cells in used.items()})
    blank = np.logical_and.reduce([table[name].eq("") for name in REQUIRED])
    # How an identifier is spelled is not for a cell to lose: see `identity`.
    table["Patient ID"] = used["Patient ID"]
    rows: pd.DataFrame = table[~blank]  # rows of commas alone: from Excel
    if not len(rows):
        found, step = "0 rows, a header alone", "Copy the file again, or remove it."
        raise DataError(Problem(path, "", found, "a row for every image", step))
    return rows


def _check_header(file: str, cells: list[str]) -> None:
    """Raises DataError on missing, double, misspelt and unknown columns."""
    right = {name.casefold(): name for name in (*REQUIRED, *UNUSED, *RENAMED)}
    misspelt = {name: right[name.casefold()] for name in cells if name.casefold() in right}
    misspelt = {name: spelling for name, spelling in misspelt.items() if name != spelling}
    if misspelt:
        found, allowed = f"the columns {', '.join(misspelt)}", ", ".join(misspelt.values())
        raise DataError(Problem(file, "header", found, allowed, "Rename them."))
    names = [RENAMED.get(name, name) for name in cells]
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


class _Checks:
    """Turns the text columns into values, and collects what is wrong with them."""

    def __init__(self, file: str, raw: pd.DataFrame) -> None:
        self.file, self.raw = file, raw.reset_index(drop=True)
        self.lines: list[int] = raw.index.tolist()
        self.stems = [stem(name) for name in self.raw["Image Index"].tolist()]
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
        first_line: dict[str, int] = {}
        for line, name, one in zip(self.lines, names.tolist(), self.stems, strict=True):
            first = first_line.setdefault(one, line)
            if one and first != line:
                at = f"row {line}, column 'Image Index'"
                found = f"{name!r}, which is in row {first} already"
                self.problems.append(
                    Problem(self.file, at, found, "every image once", "Remove one of the rows.")
                )
        return names

    def patients(self, remarks: list[str]) -> "pd.Series[str]":
        column = patient_column(self.file, self.lines, self.raw["Patient ID"].tolist())
        self.problems += column.problems
        remarks += column.remarks
        self.problems += contradictions(self.file, self.lines, self.stems, column.ids)
        return pd.Series(column.ids, dtype="str")

    def follow_ups(self) -> "pd.Series[int]":
        text = self.raw["Follow-up #"].str.replace(r"\.0+$", "", regex=True)
        good = text.str.fullmatch(r"[0-9]{1,9}|")
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
