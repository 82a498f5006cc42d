"""Who a patient is: one rule for the label table, hospitals.csv and the names of image files.

Two spellings of one patient would put that person into two hospitals, or on both sides of a
split, and void a privacy unit. So what is the same number becomes the same text, and what could
be a second spelling of somebody else is refused.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import Problem

COLUMN = "Patient ID"
_NIH_NAME = re.compile(r"([0-9]{8})_[0-9]{3}")
# A whole number; `.0` is what a table program adds when a cell of the column was empty.
_NUMBER = re.compile(r"([0-9]+)(\.0+)?")
_EXACT = 15  # digits that a float holds: with more, `.0` says that the number was rounded
# Digits without a letter that are no number: 01-007, 3_2, a DICOM UID.
_GROUPS = re.compile(r"[0-9]+([-/_][0-9]+)+|[0-9]+(\.[0-9]+){2,}")
_THOUSANDS = re.compile(r"[0-9]{1,3}(\.[0-9]{3})+")
# 1.1E+05, 12e+3, 1e5. Hexadecimal identifiers look like 11e4, so a column decides about those.
_SCIENTIFIC = re.compile(r"[+-]?([0-9]*[.,][0-9]*e|[0-9]+e(?=[+-])|[0-9]e(?=..?$))[+-]?[0-9]+")
_POWER = re.compile(r"([0-9]+)e([0-9]{1,2})")
# Words for "none", and the errors of table programs such as #REF!.
_MISSING = re.compile(
    "na|n/a|n[.]a[.]|<na>|nan|nat|none|null|nil|inf|infinity|unknown|missing|anon|anonymous|"
    "anonymi[sz]ed|#n/a|#nv|#[a-z0/]+[!?]",
    re.IGNORECASE,
)
# Characters that are not seen, besides those of Unicode's categories C and Z.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_PART = re.compile(r"[^!-/:-@\[-`{-~\u2010-\u2015\u2212]+")
_TOKEN = re.compile(r"[0-9]+|[^0-9]+")
_PADDING = re.compile(r"(?<![0-9])0+(?=[0-9])")
_HEXADECIMAL = re.compile(r"[0-9a-f]+")
_DIGIT_LETTER = re.compile(r"[0-9][a-f]")
_SHOWN = 5  # names in one message
_ALLOWED = "a number such as 12 (also 0012 or 12.0), or an identifier such as anon-7f"


def patient_id(text: str) -> str | None:
    """The one spelling of a patient's identifier, or None for a spelling that is refused.

    Spaces around it do not count. `0012` and `12.0` are `12`; other texts stay as they are, in
    Unicode's composed form. Refused: blank and words for "unknown"; a number in any other
    spelling (1.5, 1e5, +1, 1,001, digits of other scripts); characters that cannot be seen.
    What only a neighbour makes doubtful (A1 beside a1) is found by `patient_column`.
    """
    text = unicodedata.normalize("NFC", text.strip(" \t\r\n"))
    number = _NUMBER.fullmatch(text)
    if number:
        digits = number[1].lstrip("0") or "0"
        return None if number[2] and len(digits) > _EXACT else digits
    if any(map(_hidden, text)) or _UNSEEN.search(text) or _MISSING.fullmatch(text):
        return None
    if any(map(str.isalpha, text)):
        return None if _SCIENTIFIC.fullmatch(text.casefold()) else text
    return text if _GROUPS.fullmatch(text) and not _THOUSANDS.fullmatch(text) else None


def spelling(identifier: str) -> str:
    """What two spellings of one identifier share: without case, spaces and punctuation."""
    return _plain(_parts(identifier)) or identifier


def patient_of_name(stem: str) -> str | None:
    """The patient's number in the stem of an NIH file name: "00000003_001" -> "3"; else None."""
    match = _NIH_NAME.fullmatch(stem)
    return (match[1].lstrip("0") or "0") if match else None


@dataclass(frozen=True)
class PatientColumn:
    """ids: one a cell, "" where the cell is refused. Problems stop the work, remarks do not."""

    ids: list[str]
    problems: list[Problem]
    remarks: list[str]


def patient_column(file: str, lines: Sequence[int], cells: Sequence[str]) -> PatientColumn:
    """Read a column of patients. file: for messages; lines: the line number of each cell.

    Problems: a cell that `patient_id` refuses; in a column of numbers, digits that are none
    (1_0, 11e4); two identifiers that only case, spaces, punctuation, Unicode form or the zeros
    before a number tell apart.
    """
    known = {text: patient_id(text) or "" for text in dict.fromkeys(cells)}
    ids = [known[text] for text in cells]
    refused = {text for text, identifier in known.items() if not identifier}
    names = dict.fromkeys(filter(None, ids))
    others = [name for name in names if not name.isdecimal()]
    numbers = len(names) - len(others)
    if numbers and not any(map(_is_word, others)):
        refused |= {text for text, identifier in known.items() if identifier in others}
        others = []
    problems = [
        Problem(file, f"row {line}, column {COLUMN!r}", repr(text), _ALLOWED, _next_step(text))
        for line, text in zip(lines, cells, strict=True)
        if text in refused
    ]
    remarks = []
    if others:
        problems += _second_spellings(file, lines, ids)
    if others and numbers:
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        remarks.append(
            f"{file}: {numbers} patients are numbers and {len(others)} are not ({shown}): "
            "nobody may be under both"
        )
    floats = sum("." in text for text in cells if known[text].isdecimal())
    if floats:
        remarks.append(f"{file}: {floats} patient numbers such as 12.0 read as whole numbers")
    return PatientColumn(ids, problems, remarks)


def contradictions(
    file: str, lines: Sequence[int], stems: Sequence[str], ids: Sequence[str]
) -> list[Problem]:
    """Rows whose patient contradicts the patient's number in an NIH file name.

    stems: the image's name without its ending, ids: as `patient_column`, one a row. A patient
    who is a number has to be that number. Under other identifiers each number has to keep one
    patient: image files without a row are given to patients by it.
    """
    of_number: dict[str, str] = {}
    problems = []
    for line, stem, identifier in zip(lines, stems, ids, strict=True):
        number = patient_of_name(stem)
        if number is None or not identifier:
            continue
        allowed = number if identifier.isdecimal() else of_number.setdefault(number, identifier)
        if identifier != allowed:
            at = f"row {line}, column {COLUMN!r}"
            found = f"{identifier!r} for the image {stem}"
            why = "the number in the name" if allowed == number else "as in the rows before"
            step = "Mend the row, or rename images whose numbers are not the patients'."
            problems.append(Problem(file, at, found, f"{allowed!r}, {why}", step))
    if len(problems) > 1:
        found = f"{len(problems)} of {len(ids)} rows whose patient is not the one of the file name"
        allowed, step = "one patient an image", "Look whether the column, or a sort, has slipped."
        problems.insert(0, Problem(file, f"column {COLUMN!r}", found, allowed, step))
    return problems


def _second_spellings(file: str, lines: Sequence[int], ids: Sequence[str]) -> list[Problem]:
    """Identifiers that may be another one in another spelling, each where it first stands."""
    first_line: dict[str, int] = {}
    for line, identifier in zip(lines, ids, strict=True):
        if identifier:
            first_line.setdefault(identifier, line)
    parts = {identifier: _parts(identifier) for identifier in first_line}
    hexadecimal = _are_hexadecimal(list(parts.values()))
    by_plain: dict[str, str] = {}
    by_number: dict[str, str] = {}
    problems = []
    for identifier, line in first_line.items():
        plain = _plain(parts[identifier])
        if hexadecimal:  # a0 and a00 are two: only at the front are zeros padding
            number = "-".join(part.lstrip("0") for part in parts[identifier])
        else:
            number = _PADDING.sub("", plain)
        other = by_plain.setdefault(plain, identifier)
        if other == identifier:
            other = by_number.setdefault(number, identifier)
        if other != identifier:
            found = f"{identifier!r}, but {other!r} in row {first_line[other]}"
            allowed, step = "one spelling a patient", "Write both alike, or make them clearly two."
            problems.append(Problem(file, f"row {line}, column {COLUMN!r}", found, allowed, step))
    return problems


def _parts(identifier: str) -> list[str]:
    """The runs between punctuation, without case, spaces and Unicode's variants of a letter."""
    text = unicodedata.normalize("NFKC", identifier).upper().casefold()  # upper: Turkish i
    return _PART.findall("".join(unicodedata.normalize("NFKC", text).split()))


def _plain(parts: list[str]) -> str:
    """Numbers and words: P1, P-1 and P_1 are alike, and 11e4 is the number that it may be."""
    power = _POWER.fullmatch(parts[0]) if len(parts) == 1 else None
    if power:
        return power[1] + "0" * int(power[2])
    return "-".join(token for part in parts for token in _TOKEN.findall(part))


def _are_hexadecimal(identifiers: list[list[str]]) -> bool:
    """Whether a column's identifiers end in hexadecimal numbers, as hashes and UUIDs do.

    One A1 or P-1A does not say so: in a quarter of them a letter has to follow a digit.
    """
    ends = [parts[-1] for parts in identifiers]
    if not all(map(_HEXADECIMAL.fullmatch, ends)):
        return False
    return 4 * sum(bool(_DIGIT_LETTER.search(end)) for end in ends) >= len(ends)


def _next_step(text: str) -> str:
    if not text.strip():
        return "Fill it in."
    return "Write it out; in a table program, format the column as text first."


def _is_word(identifier: str) -> bool:
    """Whether an identifier cannot be a number in another spelling."""
    return not _GROUPS.fullmatch(identifier) and not _POWER.fullmatch(identifier.casefold())


def _hidden(character: str) -> bool:
    """Whether a character cannot be told from another, or not be seen, in an identifier."""
    if character.isascii():
        return not character.isprintable()
    return unicodedata.category(character)[0] in "CZN"
