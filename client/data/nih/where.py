"""Says where the missing part of an archive lies: in another folder, or still packed.

Only looks, at few folders and few names in each, and never into a folder that was listed.
"""

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from client.data.nih.checks import is_packed
from client.data.nih.folders import DEPTH, ENTRIES, folders_in, has_images, of_system
from client.data.tables.names import first, stem
from client.data.tables.table import TABLE_NAMES, find_table
from common.errors import DataError, Problem

_FOLDERS = 200  # looked at in all


def has_table(folder: Path) -> bool:
    """Whether a label table lies in the folder."""
    try:
        find_table(folder)
    except DataError:
        return False
    return True


def home_of(root: Path) -> Path:
    """The folder that holds table and images: root, or the only one below it that does.

    root itself when it has a table or images, or when there is none or more than one below.
    """
    if has_table(root) or has_images(root):
        return root
    level, homes = [root], []
    for _ in range(DEPTH - 1):
        level = [inner for folder in level for inner in folders_in(folder)][:_FOLDERS]
        here = [folder for folder in level if has_table(folder) and has_images(folder)]
        homes += here
        level = [folder for folder in level if folder not in here]
    return homes[0] if len(homes) == 1 else root


def no_table(root: Path, problem: Problem) -> Problem:
    """`problem`, that root has no table, with the place where one lies if there is one.

    A problem that names a file in root stays as it is: that file is the nearer one.
    """
    if problem.found != "no label table":
        return problem
    above = [folder for folder in list(root.parents)[:2] if has_table(folder)]
    if above:
        found = f"no label table; it lies in {above[0]}"
        step = f"Give that folder: --data {above[0]}"
        return Problem(problem.file, "", found, problem.allowed, step)
    tables: list[Path] = []
    packed: list[Path] = []

    def look(path: Path) -> bool:
        tables.extend([path.parent] if path.name in TABLE_NAMES else [])
        packed.extend([path] if is_packed(path.name) else [])
        return False

    _walk(root, [], look)
    if tables:
        found = f"no label table in it, but in {_relative(root, tables)}"
        step = "Give one of these folders, or put the table beside the image folders."
        return Problem(problem.file, "", found, problem.allowed, step)
    if packed:
        step = f"Unpack {_relative(root, packed)}"
        return Problem(problem.file, "", problem.found, problem.allowed, f"{step}.")
    return problem


def hint(root: Path, wanted: set[str], listed: Iterable[Path]) -> str:
    """Where files of the wanted stems lie that were not found in the folders `listed`.

    One sentence or two; "" when there is no trace of them.
    """
    packed: list[Path] = []
    folders: list[Path] = []

    def look(path: Path) -> bool:
        packed.extend([path] if is_packed(path.name) else [])
        if stem(path.name) in wanted:
            folders.append(path.parent)
            return True
        return False

    _walk(root, listed, look)
    said = []
    if folders:
        said.append(f"Such files lie in {_relative(root, folders)}: move them to images/.")
    if packed:
        said.append(f"Unpack {_relative(root, packed)}.")
    return " ".join(said)


def _walk(root: Path, listed: Iterable[Path], look: Callable[[Path], bool]) -> None:
    """Show files below root to `look`, folder by folder, until it has seen enough of a folder.

    Of the folders `listed` only the names of what is packed in them are looked at.
    """
    seen: set[str] = set()
    known = {os.path.realpath(folder) for folder in listed}
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level[: _FOLDERS - len(seen)]:
            real = os.path.realpath(folder)
            if real not in seen:
                seen.add(real)
                below += _look_into(folder, look, real in known)
        level = below


def _look_into(folder: Path, look: Callable[[Path], bool], known: bool) -> list[Path]:
    """The folders in a folder; its files are shown to `look`."""
    inner: list[Path] = []
    enough = False
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, ENTRIES):
                if of_system(entry.name):
                    continue
                if entry.is_dir():
                    inner.append(Path(entry.path))
                elif not enough and (not known or is_packed(entry.name)):
                    enough = look(Path(entry.path))
    except OSError:  # a folder that nobody asked for: not a reason to stop
        return inner
    return sorted(inner)


def _relative(root: Path, paths: list[Path]) -> str:
    unique = sorted({os.path.relpath(path, root) for path in paths})
    return first(unique)
