"""Hospitals that a file gives: the scheme `hospitals`."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from client.data.tables.csv_file import read_csv
from client.data.tables.identity import patient_column
from common.errors import DataError, PartitionError, Problem
from simulations.partition.result import cannot

COLUMNS = ("Patient ID", "Hospital")
SHOWN = 5
# A hospital's name becomes a folder: no dots, no separators, nothing that climbs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def read_groups(path: Path) -> dict[str, str]:
    """Patient -> hospital from a CSV file with the columns `Patient ID` and `Hospital`.

    Patients are spelled as in the label table (`client.data.tables.identity`). Other columns are
    passed over.

    Raises PartitionError with every fault: unreadable or empty file, missing column, spelling of
    a patient that is refused, hospital name that is no folder name, two names that differ in
    case alone, patient in two hospitals.
    """
    file = str(path)
    try:
        table = read_csv(path, COLUMNS)
    except DataError as error:
        raise PartitionError(error.problems) from None
    if any(table.header.count(column) != 1 for column in COLUMNS):
        allowed = "the columns " + " and ".join(COLUMNS) + ", once each"
        found = "the columns " + ", ".join(table.header)
        raise PartitionError(Problem(file, "header", found, allowed, "Rename the columns."))
    if not table.lines:
        allowed, step = "a row for every patient", "Complete the file, or remove it."
        raise PartitionError(Problem(file, "", "0 rows, a header alone", allowed, step))
    cells = [table.columns[table.header.index(column)] for column in COLUMNS]
    patients = patient_column(file, table.lines, cells[0])
    hospitals = [hospital.strip() for hospital in cells[1]]
    problems = patients.problems + _name_problems(file, table.lines, hospitals)
    groups: dict[str, str] = {}
    for line, patient, hospital in zip(table.lines, patients.ids, hospitals, strict=True):
        first = groups.setdefault(patient, hospital)
        if patient and first != hospital:
            found = f"patient {patient} in {first} and in {hospital}"
            allowed, step = "one hospital a patient", "Choose one of them."
            problems.append(Problem(file, f"row {line}", found, allowed, step))
    if problems:
        raise PartitionError(problems)
    return groups


def _name_problems(file: str, lines: list[int], hospitals: list[str]) -> list[Problem]:
    """Hospitals that cannot become folders of their own, each once, where it first stands."""
    first_line = dict(zip(reversed(hospitals), reversed(lines), strict=True))
    folders: dict[str, str] = {}
    problems = []
    for hospital, count in Counter(hospitals).items():
        at = f"row {first_line[hospital]}"
        rows = f"in {count} rows" if count > 1 else "in this row"
        if not NAME.fullmatch(hospital):
            found = f"the hospital {hospital!r} ({rows})" if hospital else f"no hospital ({rows})"
            allowed = "1 to 64 of A-Z, a-z, 0-9, - and _ (it becomes a folder)"
            problems.append(Problem(file, at, found, allowed, "Rename the hospital."))
            continue
        first = folders.setdefault(hospital.casefold(), hospital)
        if first != hospital:
            found = f"the hospital {hospital!r} ({rows}) beside {first!r}"
            allowed, step = (
                "names that differ in more than case",
                "Rename one, or write both alike.",
            )
            problems.append(Problem(file, at, found, allowed, step))
    return problems


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
