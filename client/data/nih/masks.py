"""Finds the mask of each image: a file of the image's name, or of that name and the word mask."""

import re
from collections import Counter

from client.data.nih.checks import SKIP_BAD, Checks
from client.data.nih.folders import File, Listing, by_stem, ending
from client.data.pixels.images import IMAGE_SUFFIXES
from client.data.tables.names import Names, beginnings, first
from common.errors import Problem

_WORD = r"(?:lungs?[ _-]?)?masks?"
_BEFORE = re.compile(rf"{_WORD}[ _.-]+", re.IGNORECASE)
_AFTER = re.compile(rf"[ _.-]+{_WORD}", re.IGNORECASE)


def masks_of(listing: Listing, stems: list[str], checks: Checks) -> dict[str, str]:
    """The path of the mask of each image that has one, by the image's stem.

    listing: the folder of masks. stems: of the images that have a file. A mask without an image
    is a Problem or left out; a folder without the mask of any image is a Problem.
    """
    folder = str(listing.folders[0])
    images = Names(stems)
    masks: dict[str, File] = {}
    orphans, worded = [], []
    for mask in by_stem(listing, "mask", checks).values():
        image = images.find(mask.stem)
        if image is None:
            image = images.find(_without_word(mask.stem))
            worded += [mask.name] if image is not None else []
        if image is None:
            orphans.append(mask)
        elif image in masks:
            found = f"a second mask of {image}; the first is {masks[image].name}"
            step = "Remove one of them."
            checks.problems.append(Problem(str(mask.path), "", found, "one an image", step))
        else:
            masks[image] = mask
    _orphans(folder, orphans, images, checks)
    if worded:
        text = f"{len(worded)} masks taken by their image's name and the word mask: {first(worded)}"
        checks.remark(folder, text)
    if not masks and (checks.skip_bad or not orphans):
        checks.problems.append(_nothing(folder, listing))
    return {image: str(mask.path) for image, mask in masks.items()}


def _without_word(name: str) -> str:
    """A mask's name without the word mask before or after it."""
    before = _BEFORE.match(name)
    if before:
        return name[before.end() :]
    ends = [match.start() for match in _AFTER.finditer(name) if match.end() == len(name)]
    return name[: ends[0]] if ends else name


def _orphans(folder: str, orphans: list[File], images: Names, checks: Checks) -> None:
    names = [mask.name for mask in orphans]
    step = "Add the images"
    for mask in orphans:
        image = next(filter(None, map(images.find, beginnings(mask.stem))), None)
        if image is not None:
            step = f"Rename {mask.name} if it is the mask of {image}"
            break
    allowed = "masks named as their images, as NAME.png or NAME_mask.png"
    found = f"{len(orphans)} masks without an image: {first(names)}"
    problem = Problem(folder, "", found, allowed, f"{step}, {SKIP_BAD}")
    checks.leave_out(names, "mask without an image", problem)


def _nothing(folder: str, listing: Listing) -> Problem:
    """What is wrong with a folder that gives no mask."""
    step = "Put the masks there, or take the folder away."
    if listing.images:
        found = f"no mask of an image of the archive among {len(listing.images)} files"
        step = "Name each as its image."
    elif listing.unread:
        kinds = Counter(ending(path.name) or "none" for path in listing.unread)
        found = f"no mask that can be read: {len(listing.unread)} files"
        found += f" with the endings {', '.join(kinds)}"
        step = f"Save them as PNG with 0 and 255, such as {_example(listing)}."
    elif listing.inner:
        found = f"no mask, but the folders {first(folder.name for folder in listing.inner)}"
        step = "Put one mask an image directly into it, or give one of these with --masks."
    else:
        found = "an empty folder"
    allowed = f"one mask an image: {', '.join(IMAGE_SUFFIXES)}"
    return Problem(folder, "", found, allowed, step)


def _example(listing: Listing) -> str:
    return listing.unread[0].with_suffix(".png").name
