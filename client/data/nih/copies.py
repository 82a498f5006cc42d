"""Finds files of equal bytes: the same picture under two names, patients or splits.

Only files of equal size are compared: first a short piece of each, then, of those still equal,
all of it. So little of a release is read.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from client.data.nih.checks import Checks
from client.data.tables.names import first

_PIECE = 2048  # bytes at the start, in the middle and at the end
_GROUPS = 3  # shown in a remark
Places = list[int]


def equal_files(paths: list[str], sizes: list[int]) -> list[Places]:
    """The places of files that are equal byte for byte, group by group, in the order given.

    sizes: in bytes. Empty files, and such as cannot be read, are equal to none: decoding says
    what is wrong with them.
    """
    filled = [place for place, size in enumerate(sizes) if size]
    groups = _split([filled], lambda place: str(sizes[place]))
    groups = _split(groups, lambda place: _piece(paths[place], sizes[place]))
    return _split(groups, lambda place: _whole(paths[place]))


def _split(groups: Iterable[Places], key: Callable[[int], str | None]) -> list[Places]:
    """Groups by a second key; what is alone, or has none, is left out."""
    found = []
    for group in groups:
        parts: dict[str | None, Places] = defaultdict(list)
        for place in group:
            parts[key(place)].append(place)
        found += [part for value, part in parts.items() if value is not None and len(part) > 1]
    return found


def _piece(path: str, size: int) -> str | None:
    """A hash of three short pieces: a DICOM file differs at its start, a PNG at its end."""
    try:
        with Path(path).open("rb", buffering=0) as stream:
            pieces = []
            for start in (0, size // 2, max(size - _PIECE, 0)):
                stream.seek(start)
                pieces.append(stream.read(_PIECE))
    except OSError:
        return None
    return hashlib.blake2b(b"".join(pieces)).hexdigest()


def _whole(path: str) -> str | None:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()
    except OSError:
        return None


def without_copies(
    table: pd.DataFrame, sizes: list[int], checks: Checks, root: Path
) -> pd.DataFrame:
    """The table without copies of images in it, and remarks on the equal files that stay.

    table: as `Archive`, with a RangeIndex, all with a file, and the columns `from_row` (bool)
    and `known` (bool: the patient is not a guess). sizes: of its files, in bytes.

    A file without a row that equals another is no new image: it is left out, and if it has a
    mask, that becomes the other's who has none. Of rows with labels, none is left out.
    """
    groups = equal_files(table["path"].tolist(), sizes)
    drop: dict[int, int] = {}
    kept = []
    for group in groups:
        stay, copies = _sort_out(table, group)
        drop |= dict.fromkeys(copies, stay[0])
        kept += [stay] if len(stay) > 1 else []
    if drop:
        pairs = [_same(table, [original, copy]) for copy, original in sorted(drop.items())]
        checks.remark(
            root,
            f"{_count(len(drop), 'file')} left out as copies, equal byte for byte: {first(pairs)}",
        )
    _remark_on_equal(table, kept, checks, root)
    masks = table["mask"].tolist()
    for copy, original in drop.items():
        masks[original] = masks[original] or masks[copy]
    table = table.assign(mask=pd.Series(masks, dtype="str"))
    return table.drop(index=list(drop)).reset_index(drop=True)


def _sort_out(table: pd.DataFrame, group: Places) -> tuple[Places, Places]:
    """Those of equal files that stay, the original first, and the copies."""
    columns = (
        table[name].iloc[group].tolist() for name in ("from_row", "known", "image", "patient")
    )
    facts = sorted(
        zip(*columns, group, strict=True),
        key=lambda fact: (not fact[0], not fact[1], len(fact[2]), fact[2]),
    )
    stay, copies, patients = [facts[0][-1]], [], {facts[0][3]}
    for from_row, known, _, patient, place in facts[1:]:
        if not from_row and (not known or facts[0][0] or patient in patients):
            copies.append(place)
        else:
            stay.append(place)
            patients.add(patient)
    return stay, copies


def _remark_on_equal(table: pd.DataFrame, groups: list[Places], checks: Checks, root: Path) -> None:
    """Remarks on one picture in both splits, of several patients, or twice of one patient."""
    patients, splits = table["patient"], table["split"]
    in_both = [g for g in groups if len(set(splits.iloc[g]) - {""}) > 1]
    of_many = [g for g in groups if patients.iloc[g].nunique() > 1]
    of_one = [g for g in groups if patients.iloc[g].nunique() == 1]
    said = (
        (in_both, "ATTENTION: the same picture lies in train_val and in test", "A test on it is "
         "no test: take it out of one list"),
        (of_many, "the same picture under several patients", "One person may be two patients "
         "here, and lie on both sides of a split: ask who it is"),
        (of_one, "the same picture twice under one patient", "It counts twice"),
    )  # fmt: skip
    for found, what, step in said:
        if found:
            count = sum(map(len, found))
            persons = patients.iloc[[place for group in found for place in group]].nunique()
            pairs = "; ".join(_same(table, group) for group in found[:_GROUPS])
            more = "; ..." if len(found) > _GROUPS else ""
            checks.remark(
                root,
                f"{what}: {count} files of {_count(len(found), 'picture')}, "
                f"{_count(persons, 'patient')}, equal byte for byte: {pairs}{more}. {step}.",
            )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _same(table: pd.DataFrame, group: Places) -> str:
    """Names of equal files, with their patients."""
    names = [f"{table['image'].iat[p]} (patient {table['patient'].iat[p]})" for p in group]
    return " = ".join([*names[:3], "..."] if len(names) > 3 else names)
