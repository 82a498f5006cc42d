"""Finds the folders of an archive and lists their files, each folder once.

Image folders are called `images` or `images_001` in any of the ways in which people and
programs write it (`Images`, `images-001`, `images_001 (1)`), also inside one another.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from client.data.nih.checks import Checks, leave_out_unsafe
from client.data.pixels.images import IMAGE_SUFFIXES
from client.data.tables.names import OTHER_PICTURES, first, stem, unsafe
from common.errors import Problem

DEPTH = 3  # folders below the archive that are looked into
ENTRIES = 1000  # names that are looked at in a folder that is not of the archive
READ = f"{', '.join(IMAGE_SUFFIXES)}, and DICOM files of any other ending"
_IMAGES = re.compile(r"images?(?![a-z]).*", re.IGNORECASE | re.DOTALL)
_MASKS = re.compile(r".*masks?(?![a-z]).*", re.IGNORECASE | re.DOTALL)
_OF_SYSTEMS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"})
_PREAMBLE = 128  # bytes before the letters DICM


class File(NamedTuple):
    """An image file: its folder and name, the name as a stem, and its size in bytes."""

    folder: Path
    name: str
    stem: str
    size: int

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.folder / self.name


@dataclass
class Listing:
    """What lies in one or more folders.

    folders: those listed. images: files that are read. unread: paths of files that are not.
    odd: paths of what bears an image's name and is no file, and why. inner: other folders in
    them. problems: folders that could not be listed.
    """

    folders: list[Path] = field(default_factory=list)
    images: list[File] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    odd: dict[Path, str] = field(default_factory=dict)
    inner: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: "Listing") -> None:
        """Take in what another listing found."""
        self.folders += other.folders
        self.images += other.images
        self.unread += other.unread
        self.odd |= other.odd
        self.inner += other.inner
        self.problems += other.problems


def list_folder(folder: Path) -> Listing:
    """The files of one folder, sorted by name. Only a file of unknown ending is opened.

    A folder that cannot be listed is one Problem; a file that vanishes meanwhile is not there.
    """
    found = Listing([folder])
    try:
        with os.scandir(folder) as scan:
            for entry in sorted(scan, key=lambda entry: entry.name):
                if not of_system(entry.name):
                    _sort_in(entry, folder, found)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        allowed = "a folder that this user may list and enter"
        step = "Ask its owner for the right to read it."
        found.problems.append(Problem(str(folder), "", reason, allowed, step))
    return found


def _sort_in(entry: "os.DirEntry[str]", folder: Path, found: Listing) -> None:
    try:
        facts = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():
            found.odd[folder / entry.name] = "a link to nothing"
        return
    except OSError as error:
        if not entry.is_symlink():
            raise
        found.odd[folder / entry.name] = f"a link that leads nowhere ({error.strerror})"
        return
    if stat.S_ISDIR(facts.st_mode):
        found.inner.append(folder / entry.name)
        if ending(entry.name) in IMAGE_SUFFIXES:
            found.odd[folder / entry.name] = "a folder"
    elif not stat.S_ISREG(facts.st_mode):
        found.odd[folder / entry.name] = "neither a file nor a folder"
    elif _is_read(folder, entry.name):
        found.images.append(File(folder, entry.name, stem(entry.name), facts.st_size))
    else:
        found.unread.append(folder / entry.name)


def of_system(name: str) -> bool:
    """Whether a file or folder is one that operating systems leave behind, or hidden."""
    hidden = name.startswith(".") and ending(name) not in IMAGE_SUFFIXES
    return hidden or name.startswith("._") or name.lower() in _OF_SYSTEMS


def _is_read(folder: Path, name: str) -> bool:
    """Whether a file is taken for an image: by its ending, or as DICOM by its first bytes."""
    suffix = ending(name)
    if name.startswith("."):
        return False
    if suffix in IMAGE_SUFFIXES or suffix in OTHER_PICTURES:
        return suffix in IMAGE_SUFFIXES
    try:
        with (folder / name).open("rb") as stream:
            return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def ending(name: str) -> str:
    """The ending of a file's name in small letters, with its dot; "" without one."""
    head, _, last = name.rpartition(".")
    return f".{last.lower()}" if head and last else ""


def image_folders(root: Path) -> tuple[Listing, Listing]:
    """The image folders in `root`, and `root` itself.

    Where there are none in root, but in one single folder of it, those are taken: so the Kaggle
    sample lies in its zip, `sample/images` beside `sample_labels.csv`.
    """
    loose = list_folder(root)
    seen = {os.path.realpath(root)}
    found = _descend(loose.inner, seen)
    if not found.folders and not loose.images:
        inner = [folder for folder in loose.inner if not _MASKS.fullmatch(folder.name)]
        below = [(folder, folders_in(folder)) for folder in inner]
        holding = [found for _, found in below if any(map(_is_images, found))]
        if len(holding) == 1:
            found = _descend(holding[0], seen)
    return found, loose


def by_stem(listing: Listing, what: str, checks: Checks) -> dict[str, File]:
    """The files by stem. What no table can hold is left out; a stem twice is a Problem."""
    files: dict[str, File] = {}
    twice: dict[tuple[Path, Path], list[str]] = {}
    unsafe_folders = {folder for folder in listing.folders if unsafe(str(folder))}
    bad = {file for file in listing.images if file.folder in unsafe_folders or unsafe(file.name)}
    for folder in sorted({file.folder for file in bad}):
        leave_out_unsafe(folder, sorted(file.name for file in bad if file.folder == folder), checks)
    for file in (file for file in listing.images if file not in bad):
        before = files.setdefault(file.stem, file)
        if before is not file:
            folders = file.folder, before.folder
            same = folders[0] == folders[1]
            name = f"{file.name} beside {before.name}" if same else file.name
            twice.setdefault(folders, []).append(name)
    for (folder, earlier), names in twice.items():
        found = f"{len(names)} {what}s a second time: {first(names)}; first in {earlier}"
        if len(names) == 1:
            found = f"the {what} a second time; first in {earlier}: {names[0]}"
        allowed = f"every {what} once, whatever its ending"
        checks.problems.append(Problem(str(folder), "", found, allowed, "Remove one of each."))
    return files


def _descend(folders: Iterable[Path], seen: set[str], depth: int = DEPTH) -> Listing:
    """All image folders among `folders` and below; one that is linked twice, once."""
    found = Listing()
    for folder in filter(_is_images, folders):
        real = os.path.realpath(folder)
        if real not in seen:
            seen.add(real)
            here = list_folder(folder)
            deeper = here.inner
            here.inner = [inner for inner in deeper if depth == 1 or not _is_images(inner)]
            found.add(here)
            if depth > 1:
                found.add(_descend(deeper, seen, depth - 1))
    return found


def mask_folder(root: Path) -> Path | None:
    """The folder `masks` in root, in any case; a folder in it of the same name, if that is all."""
    inner = [folder for folder in folders_in(root) if is_masks(folder)]
    if not inner:
        return None
    here = list_folder(inner[0])
    again = [folder for folder in here.inner if folder.name.lower() == "masks"]
    empty = not here.images and not here.unread
    return again[0] if empty and len(here.inner) == len(again) == 1 else inner[0]


def other_mask_folders(folders: Iterable[Path]) -> list[Path]:
    """Those of the folders whose names speak of masks, but are not `masks`."""
    return [f for f in folders if _MASKS.fullmatch(f.name) and not is_masks(f)]


def is_masks(folder: Path) -> bool:
    """Whether a folder is called `masks`, in capitals or not."""
    return folder.name.lower() == "masks"


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder; none if it cannot be listed. No file in it is touched."""
    try:
        with os.scandir(folder) as scan:
            return sorted(
                Path(entry.path) for entry in scan if not of_system(entry.name) and entry.is_dir()
            )
    except OSError:
        return []


def holds_images(folder: Path) -> bool:
    """Whether an image lies in a folder, as far as its first names show."""
    try:
        with os.scandir(folder) as scan:
            return any(ending(entry.name) in IMAGE_SUFFIXES for entry in islice(scan, ENTRIES))
    except OSError:
        return False


def has_images(folder: Path) -> bool:
    """Whether there are image folders in a folder, or images."""
    return any(map(_is_images, folders_in(folder))) or holds_images(folder)


def _is_images(folder: Path) -> bool:
    return bool(_IMAGES.fullmatch(folder.name)) and not _MASKS.fullmatch(folder.name)
