"""Two hospitals that differ in one patient, and what lies around them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from torch import Tensor

from client.answer import forget
from client.data.cache import Cache, build_cache
from client.data.nih import open_archive
from client.site import Site

SIZE, UNITS = 32, 8  # pixels per side; training patients beside the target
TARGET = "999"
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position\n"


@dataclass(frozen=True)
class Target:
    """Who is attacked.

    split: where the patient's rows lie; images: how many; masks: with lung masks or without, as
    the only one; labelled: whether the labels may be used. alone: nobody else's labels may be;
    the others have masks. others: how many train beside the target; two more are in "val".
    """

    split: str = "train"
    images: int = 2
    masks: bool = True
    labelled: bool = True
    alone: bool = False
    others: int = UNITS


def make_world(folder: Path, target: Target, site: dict[str, Any]) -> dict[bool, Path]:
    """Write site folders with (True) and without the target; all else is equal, byte for byte.

    folder: an empty one, in which also the images lie, all of them made up. site: more keys of
    site.yaml. What a site says of itself in public is the same in both.
    """
    cache = _cache(folder, target)
    index = cache.index
    who = index["patient"].eq(TARGET)
    patients = index["patient"].rank(method="dense").astype(int)
    split = np.where(patients.le(2), "val", "train")
    rows = pd.DataFrame(
        {
            "image": index["image"],
            "split": np.where(who, target.split, split),
            "labelled": np.where(who, target.labelled, index["labelled"] & (not target.alone)),
        }
    )
    said = {"cache": str(cache.folder), "device": "cpu", "nominal_units": UNITS, **site}
    worlds = {}
    for there in (True, False):
        place = folder / ("with" if there else "without")
        place.mkdir()
        rows[there | ~who].reset_index(drop=True).to_parquet(place / "rows.parquet")
        (place / "site.yaml").write_text(yaml.safe_dump({"name": "ward", **said}))
        worlds[there] = place
    return worlds


def pictures(world: Path) -> tuple[Tensor, Tensor]:
    """What the attacker knows: the target's images, and those of all others.

    Both (N, 1, SIZE, SIZE) float32 in [0, 1].
    """
    site = Site.open(world)
    who = site.data.table["patient"].astype(str).eq(TARGET).to_numpy(copy=True)
    images = site.data.pictures(np.arange(len(who))).clone()
    return images[torch.from_numpy(who)], images[torch.from_numpy(~who)]


def fresh(world: Path, place: Path) -> Path:
    """A copy of a site folder that nobody has asked anything yet."""
    forget(place)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(world, place)
    return place


def _cache(folder: Path, target: Target) -> Cache:
    """An archive of patients with two images each, and the target.

    All have the same label, so that their gradients add up: silencing them shows most.
    """
    archive = folder / "archive"
    for part in ("images", "masks") if target.masks or target.alone else ("images",):
        (archive / part).mkdir(parents=True)
    lines = [HEADER]
    ids = [*range(1, target.others + 3), int(TARGET)]
    for patient in ids:
        ours = str(patient) == TARGET
        for number in range(target.images if ours else 2):
            name = f"{patient:08d}_{number:03d}.png"
            pixels = np.random.default_rng([patient, number]).integers(0, 256, (SIZE, SIZE))
            Image.fromarray(pixels.astype(np.uint8)).save(archive / "images" / name)
            lines.append(f"{name},Mass,{number},{patient},{40 + patient % 50},M,PA\n")
            if target.masks if ours else target.alone:
                mask = np.zeros((SIZE, SIZE), np.uint8)
                mask[8:-8, 4:12] = mask[8:-8, 18:26] = 255
                Image.fromarray(mask).save(archive / "masks" / name)
    (archive / "Data_Entry_2017_v2020.csv").write_text("".join(lines))
    return build_cache(open_archive(archive), folder / "cache", SIZE, workers=1)
