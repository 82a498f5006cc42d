"""Remarks on what lies among images and masks and was passed over: nothing is, without a word."""

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from client.data.nih.checks import Checks
from client.data.nih.folders import (
    READ,
    Listing,
    ending,
    holds_images,
    is_masks,
    other_mask_folders,
)
from client.data.tables.names import OTHER_PICTURES, first


def remark_on_leftovers(root: Path, found: Listing, loose: Listing, checks: Checks) -> None:
    """found: the image folders. loose: the archive's own folder, where pictures alone count."""
    below = [folder for folder in found.folders[:1] if folder.parent != root]
    if below:
        checks.remark(root, f"no image folder in it; {os.path.relpath(below[0], root)} was read")
    pictures = [path for path in loose.unread if ending(path.name) in OTHER_PICTURES]
    _remark_on_unread(root, found.unread + pictures, checks)
    odd = found.odd if found.folders else loose.odd
    if odd:
        names = [f"{path.name} is {reason}" for path, reason in odd.items()]
        checks.remark(root, f"{len(odd)} names of images are no files: {first(names)}")
    inner = [os.path.relpath(folder, root) for folder in found.inner if holds_images(folder)]
    if inner:
        checks.remark(
            root,
            f"{len(inner)} folders inside the image folders hold images that were not read: "
            f"{first(inner)}. Move them one level up if they belong to the archive.",
        )


def remark_on_other_folders(root: Path, found: Listing, loose: Listing, checks: Checks) -> None:
    """Name folders in the archive's own that hold images and are called neither images nor masks.

    found: the image folders. loose: the archive's own folder.
    """
    read = {folder for image in found.folders for folder in (image, *image.parents)}
    masks = {*other_mask_folders(loose.inner), *(f for f in loose.inner if is_masks(f))}
    others = [f for f in loose.inner if f not in read and f not in masks and holds_images(f)]
    if others:
        checks.remark(
            root,
            f"{len(others)} folders beside the images hold images that were not read: "
            f"{first(folder.name for folder in others)}. Call such a folder images if it belongs "
            "to the archive.",
        )


def remark_on_unlabelled(root: Path, table: pd.DataFrame, checks: Checks) -> None:
    """table: as `join_files`. Names the images without a row, beside a table of others."""
    extra = table[~table["from_row"]]
    if 0 < len(extra) < len(table):
        names = first(extra["image"])
        checks.remark(root, f"{len(extra)} images without a row kept as unlabelled: {names}")
    bearing = extra[extra["bears"].ne("")]
    if len(bearing):
        names = first(bearing["image"] + " (patient " + bearing["patient"] + ")")
        checks.remark(
            root,
            f"{len(bearing)} images without a row bear the name of another image, and were "
            f"counted to its patient: {names}",
        )


def remark_on_masks(root: Path, masks: Listing, loose: Listing, checks: Checks) -> None:
    """masks: the folder of masks. Without one, folders whose names speak of masks are named."""
    if masks.folders:
        _remark_on_unread(masks.folders[0], masks.unread, checks)
        return
    names = [folder.name for folder in other_mask_folders(loose.inner)]
    if names:
        checks.remark(
            root,
            f"no masks were read: {first(names)} is not called masks. Rename it, or give it "
            "with --masks if it holds lung masks.",
        )


def _remark_on_unread(where: Path, paths: list[Path], checks: Checks) -> None:
    if paths:
        endings = Counter(ending(path.name) or "none" for path in paths)
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(endings.items()))
        checks.remark(
            where,
            f"{len(paths)} files were not read, such as {os.path.relpath(paths[0], where)}; "
            f"endings: {kinds}; read are {READ}",
        )
