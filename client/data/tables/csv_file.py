"""Reads the CSV files of an archive, each row with its line number in the file.

What is wrong with a file as a whole (another separator, no header, a quote that is never
closed) is said once, and not for every row that it spoils.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.tables.text import AS_CSV, read_text
from common.errors import DataError, Problem

_LAST = "end\n"  # a line put after the last one: an open quote swallows it
# What pandas calls an index, or a column without a name.
_UNNAMED = re.compile(r"(Unnamed: [0-9]+.*|index|level_[0-9]+|)")
_SEPARATORS = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}
_TOP = 10  # rows in which a header is looked for
_SHOWN = 60  # characters of a row in a message
_COPY = "Copy the file again."


@dataclass(frozen=True)
class CsvFile:
    """Header (stripped), and for each of its names a column of cells (as they are).

    lines: the line of the file, from 1, on which each row begins. remarks: what was passed over.
    """

    header: list[str]
    lines: list[int]
    columns: list[list[str]]
    remarks: list[str]


def read_csv(
    path: Path, columns: Sequence[str], check_header: Callable[[list[str]], object] | None = None
) -> CsvFile:
    """The header and the rows of a CSV file, plain or gzipped; blank rows are left out.

    Blank cells beyond the header are dropped, and so are columns without a name that are blank
    or a mere index, with a remark. columns: names of which the header has to have one, case and
    spaces apart; check_header: is called with the names before rows are compared with them, and
    raises DataError.

    Raises DataError with every mistake found: as `read_text`; an empty file; a quote that is
    not closed in its row; another separator; no header; rows of another length than the header;
    a column without a name that holds something.
    """
    file = str(path)
    lines, rows = _rows(file, read_text(path))
    if not rows:
        allowed = f"a CSV file with the column {columns[0]!r}"
        raise DataError(Problem(file, "", "an empty file", allowed, _COPY))
    problem = _no_header(file, lines, rows, columns)
    if problem:
        raise DataError(problem)
    header, rows, lines = rows[0], rows[1:], lines[1:]
    while not header[-1].strip():  # such as the comma at the end of the 2017 edition's lines
        header.pop()
    if rows and len(header) < len(rows[0]):  # "Bbox [x,y,w,h]" in quotes names four columns
        header = ",".join(header).split(",")
    if check_header is not None:
        check_header([n.strip() for n in header if not _UNNAMED.fullmatch(n.strip())])
    problems = _odd_lengths(file, len(header), lines, rows)
    if problems:
        raise DataError(problems)
    # Not by zip(*rows): an iterator for each of 112,120 rows takes twice the time.
    cells = [[row[place] for row in rows] for place in range(len(header))]
    kept, remarks = _named_columns(file, header, cells)
    return CsvFile([header[n].strip() for n in kept], lines, [cells[n] for n in kept], remarks)


def _rows(file: str, text: str) -> tuple[list[int], list[list[str]]]:
    """The rows that are not blank, and the line on which each begins.

    Raises DataError at a quote that is not closed in its row.
    """
    end = "" if text.endswith(("\n", "\r")) else "\n"
    reader = csv.reader(io.StringIO(text + end + _LAST, newline=""))
    lines: list[int] = []
    rows: list[list[str]] = []
    begins = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                lines.append(begins)
                rows.append(cells)
            if reader.line_num > begins and any(len(c.strip().splitlines()) > 1 for c in cells):
                closes = reader.line_num
                raise _open_quote(file, begins, closes if next(reader, None) is not None else None)
            begins = reader.line_num + 1
    except csv.Error:  # a cell longer than csv's limit
        line = next(itertools.islice(io.StringIO(text, newline=""), begins - 1, None))
        if '"' in line:
            raise _open_quote(file, begins, None) from None
        found = f"a cell of more than {csv.field_size_limit():,} characters"
        raise DataError(Problem(file, f"row {begins}", found, "short cells", _COPY)) from None
    if lines[-1] != reader.line_num:
        raise _open_quote(file, lines[-1], None)
    return lines[:-1], rows[:-1]


def _open_quote(file: str, row: int, closes: int | None) -> DataError:
    where = "never closes" if closes is None else f"closes in row {closes}"
    found, step = f"a quote that opens here and {where}", "Close the quote, or remove it."
    return DataError(Problem(file, f"row {row}", found, "cells that end in their own row", step))


def _no_header(
    file: str, lines: list[int], rows: list[list[str]], columns: Sequence[str]
) -> Problem | None:
    """What stands in the first row instead of a header with one of the columns."""
    wanted = {_folded(name) for name in columns}
    for place, cells in enumerate(rows[:_TOP]):
        row, text = f"row {lines[place]}", ",".join(cells)
        for separator, name in _SEPARATORS.items():
            if wanted.isdisjoint(_folded(cell) for cell in text.split(separator)):
                continue
            if separator != ",":
                found = f"cells separated by {name}"
                return Problem(file, row, found, "cells separated by commas", AS_CSV)
            if place == 0:
                return None
            found, step = f"the names of the columns below {place} other rows", "Remove the others."
            return Problem(file, row, found, "a header as the first row", step)
    found = f"no header, but {','.join(rows[0])[:_SHOWN]!r}"
    allowed, step = f"columns such as {', '.join(columns)}", "Name the columns in the first row."
    return Problem(file, f"row {lines[0]}", found, allowed, step)


def _odd_lengths(file: str, width: int, lines: list[int], rows: list[list[str]]) -> list[Problem]:
    """Rows of another length; blank cells at the end do not count."""
    odd = [
        (line, len(cells))
        for line, cells in zip(lines, rows, strict=True)
        if len(cells) < width or (len(cells) > width and any(map(str.strip, cells[width:])))
    ]
    lengths = {length for _, length in odd}
    if len(odd) == len(rows) > 1 and len(lengths) == 1:
        found, step = f"{width} names over rows of {lengths.pop()} cells", "Mend the header."
        return [Problem(file, "header", found, "a name for every column", step)]
    return [
        Problem(file, f"row {line}", f"{length} columns", f"{width}", "Mend the row.")
        for line, length in odd
    ]


def _named_columns(
    file: str, header: list[str], columns: list[list[str]]
) -> tuple[list[int], list[str]]:
    """The places of the columns that have a name, and remarks about the others."""
    kept: list[int] = []
    passed: list[str] = []
    problems: list[Problem] = []
    for place, name in enumerate(header):
        if not _UNNAMED.fullmatch(name.strip()):
            kept.append(place)
            continue
        cells = [cell.strip() for cell in columns[place]]
        filled = list(filter(None, cells))
        # An index of pandas counts from 0, one of R from 1; with rows taken out it has gaps.
        index = all(map(_is_count, filled)) and len(filled) == len(cells) == len(set(filled))
        if index or not filled:
            passed.append(f"{place + 1} ({name.strip()!r}, {'an index' if filled else 'blank'})")
            continue
        found = f"no name for column {place + 1}, which holds {filled[0]!r}"
        step = "Name the column, or remove it."
        problems.append(Problem(file, "header", found, "a name for every column", step))
    if problems:
        raise DataError(problems)
    remark = f"{file}: {len(passed)} columns without a name passed over: {', '.join(passed[:5])}"
    return kept, [remark] if passed else []


def _is_count(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal()


def _folded(name: str) -> str:
    return name.strip(' \t"').casefold()
