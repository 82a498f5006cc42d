"""Hospitals that a file gives: the scheme `hospitals`."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from common.errors import PartitionError, Problem
from simulations.partition.result import cannot

COLUMNS = ("Patient ID", "Hospital")
SHOWN = 5
# A hospital's name becomes a folder: no dots, no separators, nothing that climbs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def read_groups(path: Path) -> dict[str, str]:
    """Patient -> hospital from a CSV file with the columns `Patient ID` and `Hospital`.

    Leading zeros of a patient number are dropped, as in the label table.

    Raises PartitionError with every fault: unreadable file, missing column, empty cell,
    hospital name that is no folder name, patient in two hospitals.
    """
    file = str(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PartitionError(
            Problem(file, "", reason, "a readable CSV file", "Check the path and the file.")
        ) from None
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        allowed = "the columns " + " and ".join(COLUMNS)
        found = "the columns " + ", ".join(map(str, frame.columns))
        raise PartitionError(Problem(file, "header", found, allowed, "Rename the columns."))
    groups: dict[str, str] = {}
    problems = []
    patients = frame[COLUMNS[0]].str.strip().str.replace(r"^0+(?=\d+$)", "", regex=True)
    pairs = zip(patients, frame[COLUMNS[1]].str.strip(), strict=True)
    for row, (patient, hospital) in enumerate(pairs, start=2):
        problem = _row_problem(file, row, patient, hospital, groups)
        if problem:
            problems.append(problem)
        groups[patient] = hospital
    if problems:
        raise PartitionError(problems)
    return groups


def _row_problem(
    file: str, row: int, patient: str, hospital: str, groups: Mapping[str, str]
) -> Problem | None:
    at = f"row {row}"
    if not patient:
        return Problem(file, at, "no patient", "a patient identifier", "Fill the cell.")
    if not NAME.fullmatch(hospital):
        allowed = "letters, digits, - and _ (it becomes a folder)"
        return Problem(file, at, f"the hospital {hospital!r}", allowed, "Rename the hospital.")
    if groups.get(patient, hospital) != hospital:
        found = f"patient {patient} in {groups[patient]} and in {hospital}"
        return Problem(file, at, found, "one hospital a patient", "Choose one of them.")
    return None


def group_problems(
    patients: pd.DataFrame, groups: Mapping[str, str] | None, sites: int
) -> list[Problem]:
    """What keeps the scheme `hospitals` from being met; empty when nothing does."""
    if groups is None:
        allowed = "a hospital for every patient"
        step = "Use an archive with hospitals.csv, or another scheme."
        return [cannot("partition.scheme", "hospitals, without a list of them", allowed, step)]
    lost = [patient for patient in patients.index if patient not in groups]
    if lost:
        names = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        found = f"{len(lost)} patients without a hospital ({names})"
        step = "Complete the list of hospitals."
        return [cannot("partition.scheme", found, "a hospital for every patient", step)]
    hospitals = hospital_names(patients, groups)
    if len(hospitals) != sites:
        allowed = f"{len(hospitals)}, the hospitals of the archive: {', '.join(hospitals[:20])}"
        return [cannot("sites", str(sites), allowed, f"Set sites to {len(hospitals)}.")]
    return [
        cannot("partition.scheme", f"the hospital {name!r}", "a folder name", "Rename it.")
        for name in hospitals
        if not NAME.fullmatch(name)
    ]


def hospital_names(patients: pd.DataFrame, groups: Mapping[str, str]) -> list[str]:
    """The hospitals that the patients outside the official test list belong to, sorted."""
    pool = patients.index[patients["in_pool"]]
    return sorted({groups[patient] for patient in pool})
