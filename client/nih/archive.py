"""Joins label table, split lists, boxes, image files and masks of one folder, and checks them.

Image files lie in `images_001/images/`, in `images_001/`, in `images/` or directly in the
folder. Files are matched by stem, so that a table that says `.png` also fits `.dcm` files.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from client.nih.images import IMAGE_SUFFIXES
from client.nih.lists import empty_boxes, read_boxes, read_list
from client.nih.table import TABLE_NAMES, find_table, parse_table
from common.errors import DataError, Problem
from common.findings import FINDINGS

LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
BOXES = ("BBox_List_2017.csv", "BBox_List_2017.csv.gz")
_NIH_NAME = re.compile(r"(\d{8})_\d{3}")
_SHOWN = 5  # names in one message
_SKIP_BAD = "or leave them out with --skip-bad."


@dataclass(frozen=True)
class Archive:
    """One checked archive.

    table: one row per image that has a file: the columns of `read_table` plus path (str,
    absolute), split ("train_val", "test" or "") and mask (str, absolute, or "").
    boxes: as `read_boxes`, those of images in the table. skipped: what --skip-bad left out,
    columns image and reason. remarks: what a person should know but that stopped nothing.
    """

    root: Path
    table: pd.DataFrame
    boxes: pd.DataFrame
    skipped: pd.DataFrame
    remarks: tuple[str, ...] = ()


@dataclass
class _Findings:
    """What the checks gather on their way."""

    skip_bad: bool
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, names: list[str], what: str, problem: Problem) -> None:
        """Names that --skip-bad leaves out and that are a Problem without it."""
        if names and self.skip_bad:
            self.skipped += [(name, what) for name in names]
        elif names:
            self.problems.append(problem)


def open_archive(root: Path, masks: Path | None = None, skip_bad: bool = False) -> Archive:
    """Read and check an archive in the NIH layout, or a folder of images/ and masks/ alone.

    masks: folder of lung masks, named as their images; default: `masks/` in root, if there.
    skip_bad: leave out, and list in `skipped`, rows without an image, masks without an image
    and names of the split lists with neither (the archive is then a part of the release).

    Images without a row are unlabelled images: findings -1, and their patient is the number in
    an NIH name or else the stem. An image outside both lists takes the split of its patient.
    Pixels are not read here: the cache does that. Raises DataError with every mistake found.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise DataError(Problem(str(root), "", "no such folder", "a folder", "Check the path."))
    if masks is not None and not masks.is_dir():
        raise DataError(
            Problem(str(masks), "", "no such folder", "a folder of masks", "Check the path.")
        )
    if masks is None and (root / "masks").is_dir():
        masks = root / "masks"
    report = _Findings(skip_bad)
    files = _by_stem(_image_folders(root), "image", report)
    table = _join_files(root, _table(root, masks, report), files, report)
    table["split"] = _splits(root, table, report)
    table["mask"] = _masks(masks, table, report)
    boxes = _boxes(root, table)
    if not report.problems and not table["path"].ne("").any():
        allowed = f"files {', '.join(IMAGE_SUFFIXES)} in images_001/images/, images/ or here"
        report.problems.append(
            Problem(str(root), "", "no image of the archive", allowed, "Unpack the images here.")
        )
    if report.problems:
        raise DataError(report.problems)
    table = table[table["path"].ne("")].reset_index(drop=True)
    boxes = boxes[boxes["image"].isin(table["image"])].reset_index(drop=True)
    skipped = pd.DataFrame(report.skipped, columns=["image", "reason"], dtype="str")
    return Archive(root, table, boxes, skipped, tuple(report.remarks))


def _table(root: Path, masks: Path | None, report: _Findings) -> pd.DataFrame:
    """The label table; without one, masks say that this is a folder of images and masks."""
    if masks is None or any((root / name).is_file() for name in TABLE_NAMES):
        table, remarks = parse_table(find_table(root))
        report.remarks += remarks
        return table
    return _unlabelled([])


def _image_folders(root: Path) -> list[Path]:
    """The folders of the release's layouts; root itself only when there is no other."""
    tops = sorted(
        top for top in root.iterdir() if top.is_dir() and re.fullmatch(r"images(_\w+)?", top.name)
    )
    inner = [top / "images" for top in tops if (top / "images").is_dir()]
    return [*tops, *inner] or [root]


def _by_stem(folders: list[Path], what: str, report: _Findings) -> dict[str, Path]:
    """Image files by stem, sorted. The same stem twice is a Problem."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            first = files.setdefault(path.stem, path)
            if first is not path:
                found = f"the {what} a second time; first in {first}"
                report.problems.append(
                    Problem(str(path), "", found, f"every {what} once", "Remove one of them.")
                )
    return files


def _join_files(
    root: Path, rows: pd.DataFrame, files: dict[str, Path], report: _Findings
) -> pd.DataFrame:
    """The rows plus the images without a row, with `path` ("" for a row that is left out)."""
    stems = rows["image"].map(_stem)
    missing = rows.loc[~stems.isin(list(files)), "image"].tolist()
    problem = Problem(
        str(root),
        "",
        f"{len(missing)} rows without an image file: {_first(missing)}",
        "an image for every row",
        f"Unpack the missing images, {_SKIP_BAD}",
    )
    report.leave_out(missing, "no image file", problem)
    taken = set(stems)
    extra = [path for stem, path in files.items() if stem not in taken]
    if extra and len(rows):
        names = [path.name for path in extra]
        report.remarks.append(
            f"{root}: {len(extra)} images without a row kept as unlabelled: {_first(names)}"
        )
    table = pd.concat([rows, _unlabelled(extra)], ignore_index=True) if extra else rows
    return table.assign(path=_text([str(files.get(_stem(name), "")) for name in table["image"]]))


def _unlabelled(paths: list[Path]) -> pd.DataFrame:
    """Rows in the shape of `read_table` for images that no table knows."""
    columns: dict[str, pd.Series] = {
        "image": _text([path.name for path in paths]),
        "patient": _text([_patient(path.stem) for path in paths]),
        "follow_up": pd.Series(np.zeros(len(paths), dtype=np.int64)),
        "age": pd.Series(np.full(len(paths), np.nan, dtype=np.float32)),
        "sex": _text([""] * len(paths)),
        "view": _text([""] * len(paths)),
        "labelled": pd.Series(np.zeros(len(paths), dtype=bool)),
    }
    for finding in FINDINGS:
        columns[finding] = pd.Series(np.full(len(paths), -1, dtype=np.int8))
    return pd.DataFrame(columns)


def _patient(stem: str) -> str:
    """The patient of an image without a row: as the table writes it, without leading zeros."""
    match = _NIH_NAME.fullmatch(stem)
    return str(int(match[1])) if match else stem


def _splits(root: Path, table: pd.DataFrame, report: _Findings) -> "pd.Series[str]":
    """The official split of each image, by patient. A patient in two splits is a Problem."""
    by_image: dict[str, str] = {}
    known = set(table["image"].map(_stem))
    in_both: list[str] = []
    for split, file in LISTS.items():
        if not (root / file).is_file():
            continue
        stems = [_stem(name) for name in read_list(root / file)]
        unknown = [stem for stem in stems if stem not in known]
        problem = Problem(
            str(root / file),
            "",
            f"{len(unknown)} images with neither row nor file: {_first(unknown)}",
            "images of this archive",
            f"Complete the archive, {_SKIP_BAD}",
        )
        report.leave_out(unknown, f"in {file}, with neither row nor file", problem)
        in_both += [stem for stem in stems if stem in by_image]
        by_image.update(dict.fromkeys(stems, split))
    own = _text([by_image.get(_stem(name), "") for name in table["image"]])
    listed = pd.DataFrame({"patient": table["patient"], "split": own})[own.ne("")]
    counts = listed.groupby("patient")["split"].nunique()
    both_images = table.loc[table["image"].map(_stem).isin(in_both), "patient"]
    for patient in sorted({*counts.index[counts > 1], *both_images}):
        report.problems.append(
            Problem(str(root), f"patient {patient!r}", "images in both split lists",
                    "every patient in one split", "Move all images of the patient to one list.")
        )  # fmt: skip
    by_patient = dict(zip(listed["patient"], listed["split"], strict=True))
    return _text([by_patient.get(patient, "") for patient in table["patient"]])


def _masks(folder: Path | None, table: pd.DataFrame, report: _Findings) -> "pd.Series[str]":
    """The path of each image's mask, "" without one. A mask without an image is a Problem."""
    if folder is None:
        return _text([""] * len(table))
    files = _by_stem([folder.absolute()], "mask", report)
    stems = table["image"].map(_stem)
    with_file = set(stems[table["path"].ne("")])
    orphans = [path.name for stem, path in files.items() if stem not in with_file]
    problem = Problem(
        str(folder),
        "",
        f"{len(orphans)} masks without an image: {_first(orphans)}",
        "masks named as their images",
        f"Add the images, {_SKIP_BAD}",
    )
    report.leave_out(orphans, "mask without an image", problem)
    return _text([str(files.get(stem, "")) for stem in stems])


def _boxes(root: Path, table: pd.DataFrame) -> pd.DataFrame:
    for name in BOXES:
        if (root / name).is_file():
            return read_boxes(root / name)
    return empty_boxes()


def _text(values: list[str]) -> "pd.Series[str]":
    return pd.Series(values, dtype="str")


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
