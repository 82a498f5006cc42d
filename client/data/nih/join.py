"""Joins the label table with the image files: rows, images without a row, rows without a file."""

import os
from pathlib import Path

import pandas as pd

from client.data.nih.checks import SKIP_BAD, Checks
from client.data.nih.folders import READ, File, Listing, by_stem
from client.data.nih.patients import Owners, unlabelled_rows
from client.data.nih.where import hint
from client.data.tables.names import Names, beginnings, first, stem
from common.errors import Problem


def with_stems(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with one more column, stem (str), by which files, lists and masks find them."""
    return rows.assign(stem=pd.Series(map(stem, rows["image"].tolist()), dtype="str"))


def files_of(
    root: Path, found: Listing, loose: Listing, rows: pd.DataFrame, checks: Checks
) -> dict[str, File]:
    """The image files by stem.

    found: the image folders. loose: the archive's own folder, whose images count when there are
    no others, and else only for rows that have no file in the image folders.
    """
    if not found.folders:
        return by_stem(loose, "image", checks)
    files = by_stem(found, "image", checks)
    missing = set(rows["stem"].tolist()) - set(files)
    taken = [file for file in loose.images if file.stem in missing]
    files |= by_stem(Listing(loose.folders, taken), "image", checks)
    ignored = [file.name for file in loose.images if file.stem not in missing]
    if ignored:
        checks.remark(
            root,
            f"{len(ignored)} images beside the image folders were not read: {first(ignored)}. "
            f"Move them to {found.folders[0]} if they belong there.",
        )
    return files


def join_files(
    root: Path,
    rows: pd.DataFrame,
    files: dict[str, File],
    listings: tuple[Listing, Listing],
    checks: Checks,
) -> tuple[pd.DataFrame, list[int]]:
    """The rows and the images without a row, and the size of each one's file in bytes.

    Beside the columns of `with_stems`: path ("" for a row that is left out), from_row and known
    (bool, see `without_copies`), and bears (str: the other image whose name it bears, or "").
    """
    stems = rows["stem"].tolist()
    file_of, extra = _matched(root, stems, files, checks)
    missing = [
        name for name, one in zip(rows["image"].tolist(), stems, strict=True) if one not in file_of
    ]
    _missing_rows(root, missing, extra, listings, checks)
    owners = Owners(rows, extra)
    owned = [owners.of(file.stem) for file in extra]
    table = rows
    if extra:
        table = pd.concat([rows, with_stems(unlabelled_rows(extra, owned))], ignore_index=True)
    taken = [file_of.get(one) for one in stems] + extra
    table = table.assign(
        path=pd.Series([str(file.path) if file else "" for file in taken], dtype="str"),
        from_row=[True] * len(rows) + [False] * len(extra),
        known=[True] * len(rows) + [owner.known for owner in owned],
        bears=[""] * len(rows) + [owner.bears for owner in owned],
    )
    return table, [file.size if file else 0 for file in taken]


def _matched(
    root: Path, stems: list[str], files: dict[str, File], checks: Checks
) -> tuple[dict[str, File], list[File]]:
    """The file of each row that has one, by the row's stem, and the files without a row.

    A row takes the file of its name, or else the only one that differs in case alone.
    """
    rows = Names(stems)
    file_of = {one: files[one] for one in stems if one in files}
    extra, by_case = [], []
    for file in files.values():
        row = rows.find(file.stem)
        if row is None:
            extra.append(file)
        elif file_of.setdefault(row, file) is not file:
            found = f"{file.name} beside {file_of[row].name}"
            allowed = "names that differ by more than upper and lower case"
            checks.problems.append(Problem(str(root), "", found, allowed, "Remove one of them."))
        elif file.stem != row:
            by_case.append(file.name)
    if by_case:
        checks.remark(
            root,
            f"{len(by_case)} images found by names that differ from the table's in upper and "
            f"lower case: {first(by_case)}",
        )
    return file_of, extra


def _missing_rows(
    root: Path,
    missing: list[str],
    extra: list[File],
    listings: tuple[Listing, Listing],
    checks: Checks,
) -> None:
    """Say of rows without an image file what is there instead."""
    unread = {_bare(path): path for listing in listings for path in listing.unread}
    odd = {_bare(path): path for listing in listings for path in listing.odd}
    why = listings[0].odd | listings[1].odd
    other = [name for name in missing if stem(name) in unread]
    strange = [name for name in missing if stem(name) in odd and stem(name) not in unread]
    absent = [name for name in missing if stem(name) not in unread and stem(name) not in odd]
    there = first(unread[stem(name)].name for name in other)
    text = f"{len(other)} rows whose image is there, but has an ending that is not read: {there}"
    step = f"Convert them to PNG, {SKIP_BAD}"
    checks.leave_out(other, "an ending that is not read", Problem(str(root), "", text, READ, step))
    said = [f"{path.name} is {why[path]}" for path in map(odd.get, map(stem, strange))
            if path]  # fmt: skip
    text = f"{len(strange)} rows whose image is no file: {first(said)}"
    step = f"Copy them again, {SKIP_BAD}"
    checks.leave_out(strange, "no file", Problem(str(root), "", text, "a file for every row", step))
    if absent:
        _absent_rows(root, absent, extra, listings, checks)


def _absent_rows(
    root: Path,
    absent: list[str],
    extra: list[File],
    listings: tuple[Listing, Listing],
    checks: Checks,
) -> None:
    """Rows without any file of their name, and the place where such files may be."""
    found, loose = listings
    searched = [os.path.relpath(folder, root) for folder in found.folders] or ["this folder"]
    wanted = {stem(name) for name in absent}
    step = hint(root, wanted, [*found.folders, *loose.folders])
    longer = [file.name for file in extra if not wanted.isdisjoint(beginnings(file.stem))]
    if longer:
        step = f"Name {first(longer)} as the table does. {step}".strip()
    text = f"{len(absent)} rows without an image file: {first(absent)}"
    allowed = f"an image for every row, in {first(searched)}"
    if step and checks.skip_bad:
        checks.remark(root, f"{text}. {step}")
    step = (
        f"{step} Or leave them out with --skip-bad." if step else f"Unpack them there, {SKIP_BAD}"
    )
    checks.leave_out(absent, "no image file", Problem(str(root), "", text, allowed, step))


def _bare(path: Path) -> str:
    """The stem of a file that is not read, whose ending may be any."""
    return stem(path.stem)
