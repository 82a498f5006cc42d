"""Joins label table, split lists, boxes, image files and masks of one folder, and checks them.

Image files lie in `images_001/images/`, in `images_001/`, in `images/` or directly in the
folder. Files are matched by stem, so that a table that says `.png` also fits `.dcm` files.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from client.data.nih.checks import SKIP_BAD, Checks, given_folder
from client.data.nih.copies import without_copies
from client.data.nih.folders import READ, Listing, image_folders, list_folder, mask_folder
from client.data.nih.join import files_of, join_files, with_stems
from client.data.nih.leftovers import (
    remark_on_leftovers,
    remark_on_masks,
    remark_on_other_folders,
    remark_on_unlabelled,
)
from client.data.nih.masks import masks_of
from client.data.nih.patients import unlabelled_rows
from client.data.nih.where import has_table, hint, home_of, no_table
from client.data.tables.lists import empty_boxes, parse_boxes, read_list
from client.data.tables.names import Names, first, stem
from client.data.tables.table import find_table, parse_table
from common.errors import DataError, Problem

LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
BOXES = ("BBox_List_2017.csv", "BBox_List_2017.csv.gz")


@dataclass(frozen=True)
class Archive:
    """One checked archive.

    root: the folder of the table, which may lie in the folder that was asked for.
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


def open_archive(root: Path, masks: Path | None = None, skip_bad: bool = False) -> Archive:
    """Read and check an archive in the NIH layout, or a folder of images/ and masks/ alone.

    masks: folder of lung masks, named as their images; default: `masks/` in root, if there.
    skip_bad: leave out, and list in `skipped`, rows without an image, masks without an image,
    files whose names no table can hold, and names of the split lists with neither row nor file
    (the archive is then a part of the release).

    Images without a row are unlabelled images: findings -1. Their patient is the one whose
    image's name they bear, or else the stem. One that is equal to another image byte for byte
    is left out. An image outside both lists takes the split of its patient.
    Pixels are not read here: the cache does that. Raises DataError with every mistake found.
    """
    asked = given_folder(root, "a folder")
    home = home_of(asked)
    folder = mask_folder(home) if masks is None else given_folder(masks, "a folder of masks")
    checks = Checks(skip_bad)
    if home != asked:
        checks.remark(asked, f"the archive in {home} was read")
    found, loose = image_folders(home)
    mask_list = list_folder(folder) if folder is not None else Listing()
    for listing in (loose, found, mask_list):
        checks.problems += listing.problems
    checks.stop()
    rows = _rows(home, folder is not None, checks)
    files = files_of(home, found, loose, rows, checks)
    table, sizes = join_files(home, rows, files, (found, loose), checks)
    table["split"] = _splits(home, table, checks)
    here = table["path"].ne("").to_numpy()
    stems = table["stem"].tolist()
    images = table.loc[here, "stem"].tolist()
    mask_of = masks_of(mask_list, images, checks) if folder and here.any() else {}
    table["mask"] = pd.Series([mask_of.get(one, "") for one in stems], dtype="str")
    boxes = _boxes(home, checks)
    remark_on_leftovers(home, found, loose, checks)
    remark_on_other_folders(home, found, loose, checks)
    remark_on_masks(home, mask_list, loose, checks)
    if not here.any() and not checks.problems:
        checks.problems.append(_no_image(home, set(stems), found, loose))
    checks.stop()
    sizes = [size for size, there in zip(sizes, here, strict=True) if there]
    table = without_copies(table[here].reset_index(drop=True), sizes, checks, home)
    remark_on_unlabelled(home, table, checks)
    table = table.drop(columns=["stem", "from_row", "known", "bears"])
    boxes = _boxes_of(table, boxes, home, checks)
    skipped = pd.DataFrame(checks.skipped, columns=["image", "reason"], dtype="str")
    return Archive(home, table, boxes, skipped, tuple(checks.remarks))


def _rows(root: Path, masks: bool, checks: Checks) -> pd.DataFrame:
    """The label table; without one, masks say that this is a folder of images and masks."""
    if masks and not has_table(root):
        return with_stems(unlabelled_rows([], []))
    try:
        file = find_table(root)
    except DataError as error:
        raise DataError([no_table(root, problem) for problem in error.problems]) from None
    table, remarks = parse_table(file)
    checks.remarks += remarks
    return with_stems(table)


def _splits(root: Path, table: pd.DataFrame, checks: Checks) -> "pd.Series[str]":
    """The official split of each image, by patient. A patient in two splits is a Problem."""
    by_image: dict[str, str] = {}
    known = Names(table["stem"].tolist())
    in_both: set[str] = set()
    for split, file in LISTS.items():
        if not (root / file).is_file():
            continue
        names = read_list(root / file)
        if not names:
            checks.remark(root / file, "an empty list: it puts no image into its split")
        listed = [(name, known.find(stem(name))) for name in names]
        unknown = [stem(name) for name, image in listed if image is None]
        problem = Problem(
            str(root / file),
            "",
            f"{len(unknown)} images with neither row nor file: {first(unknown)}",
            "images of this archive",
            f"Complete the archive, {SKIP_BAD}",
        )
        checks.leave_out(unknown, f"in {file}, with neither row nor file", problem)
        images = [image for _, image in listed if image is not None]
        in_both |= {image for image in images if by_image.get(image, split) != split}
        by_image.update(dict.fromkeys(images, split))
    own = pd.Series([by_image.get(one, "") for one in table["stem"].tolist()], dtype="str")
    listed_rows = pd.DataFrame({"patient": table["patient"], "split": own})[own.ne("")]
    counts = listed_rows.groupby("patient")["split"].nunique()
    both_images = table.loc[table["stem"].isin(in_both), "patient"]
    for patient in sorted({*counts.index[counts > 1], *both_images}):
        checks.problems.append(
            Problem(str(root), f"patient {patient!r}", "images in both split lists",
                    "every patient in one split", "Move all images of the patient to one list.")
        )  # fmt: skip
    by_patient = dict(zip(listed_rows["patient"], listed_rows["split"], strict=True))
    return pd.Series([by_patient.get(one, "") for one in table["patient"].tolist()], dtype="str")


def _no_image(root: Path, wanted: set[str], found: Listing, loose: Listing) -> Problem:
    """What to say of an archive of which nothing is left."""
    allowed = f"files {READ}, in images_001/images/, images/ or here"
    step = hint(root, wanted, [*found.folders, *loose.folders]) or "Unpack the images here."
    return Problem(str(root), "", "no image of the archive", allowed, step)


def _boxes_of(table: pd.DataFrame, boxes: pd.DataFrame, root: Path, checks: Checks) -> pd.DataFrame:
    """The boxes of the archive's images; of the others, how many and on which images."""
    ours = boxes["image"].isin(table["image"])
    others = boxes.loc[~ours, "image"].unique()
    if len(others):
        count = int((~ours).sum())
        text = f"{count} boxes on {len(others)} images that are not in the archive: {first(others)}"
        checks.remark(root, text)
    return boxes[ours].reset_index(drop=True)


def _boxes(root: Path, checks: Checks) -> pd.DataFrame:
    for name in BOXES:
        if (root / name).is_file():
            boxes, remarks = parse_boxes(root / name)
            checks.remarks += remarks
            return boxes
    return empty_boxes()
