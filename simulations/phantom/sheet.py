"""A contact sheet: many radiographs of an archive on one page, to look at before training."""

import csv
import os
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from common.errors import DataError, InputError, Problem
from simulations.phantom.archive import TABLE

TILE, CAPTION = 192, 14  # pixels
SHORT = {"Pleural_Thickening": "Pl.Thick.", "No Finding": "none"}


def contact_sheet(archive: Path, out: Path, rows: int = 4, columns: int = 6) -> Path:
    """Write a PNG with rows x columns images of the archive, spread evenly over its table.

    Each tile is 192 px wide with view, age, sex and findings under it. Returns `out`. Raises
    InputError when rows or columns are below 1, and DataError when the archive has no table, no
    images, or an image that cannot be read.
    """
    problems = [
        Problem("contact sheet", name, str(value), "1 or more", f"Give another value for {name}.")
        for name, value in (("rows", rows), ("columns", columns))
        if value < 1
    ]
    if problems:
        raise InputError(problems)
    captions = _captions(archive)
    found = sorted(archive.glob("images_*/images/*.png"))
    if not found:
        step = "Make one with `consilium-sim phantom`."
        raise DataError(
            Problem(str(archive), "", "no images", "images_001/images/*.png and so on", step)
        )
    shown = min(rows * columns, len(found))
    sheet = Image.new("L", (columns * TILE, rows * (TILE + CAPTION)), 0)
    pen = ImageDraw.Draw(sheet)
    for tile in range(shown):
        path = found[tile * len(found) // shown]
        x, y = tile % columns * TILE, tile // columns * (TILE + CAPTION)
        sheet.paste(_picture(path), (x, y))
        pen.text((x + 2, y + TILE + 1), captions.get(path.name, path.name), fill=220)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        sheet.save(temporary, format="PNG")
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        found_text = f"cannot write: {error.strerror or error}"
        step = "Choose another place for the sheet."
        raise InputError(Problem(str(out), "", found_text, "a file in a folder", step)) from error
    return out


def _captions(archive: Path) -> dict[str, str]:
    """Image name -> "PA 57F Effusion|Mass", cut to the width of a tile."""
    path = archive / TABLE
    if not path.is_file():
        step = f"Give the folder that holds {TABLE}."
        raise DataError(Problem(str(archive), "", f"no {TABLE}", "an NIH archive", step))
    captions = {}
    with path.open(encoding="utf-8", newline="") as file:
        # By position: the official header has unquoted commas inside names.
        for row in list(csv.reader(file))[1:]:
            names = [SHORT.get(name, name) for name in row[1].split("|")]
            labels = "|".join(names) if row[1] else "(unlabelled)"
            captions[row[0]] = f"{row[6]} {row[4]}{row[5]} {labels}"[:31]
    return captions


def _picture(path: Path) -> Image.Image:
    """One tile, 8-bit grey."""
    try:
        with Image.open(path) as image:
            return image.convert("L").resize((TILE, TILE), Image.Resampling.LANCZOS)
    except (OSError, UnidentifiedImageError) as error:
        step = "Make the archive anew, or replace the image."
        raise DataError(
            Problem(str(path), "", f"unreadable: {error}", "a PNG image", step)
        ) from error
