"""The test images as another hospital's X-ray unit would show them.

A model is often good at home and poor next door. Without a second archive, the nearest to next
door is the same patients through other equipment: their labels and masks stay true.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.cache import Cache, build_cache, open_cache
from client.data.cache.store import MANIFEST
from client.data.nih import Archive
from client.data.tables.lists import empty_boxes
from simulations.phantom.acquisition import Unit
from simulations.phantom.fields import blur, noise, single

# Tone, contrast, focus and border lie outside of what `client/data/augment.py` draws by default
# (gamma and contrast 0.8 to 1.2, no blur, no border); the lungs can still be outlined by eye.
OTHER = Unit(
    gamma=0.70,
    contrast=0.78,
    brightness=0.04,
    softness=5.0,
    grain=0.016,
    margin=0.05,
    marker=0,
    marker_at=0.0,
)


def through_unit(
    picture: npt.NDArray[np.uint8], profile: Unit, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """An existing radiograph (S, S) uint8 as the unit would have shown it; same shape.

    Focus, quantum noise, tone curve and collimated border change a little from image to image.
    """
    size = picture.shape[0]
    gamma = profile.gamma * rng.uniform(0.95, 1.05)
    contrast = profile.contrast * rng.uniform(0.95, 1.05)
    cuts = profile.margin * rng.uniform(0.3, 1.4, 4)
    sharp = blur(single(picture / 255.0), profile.softness * size / 1000.0)
    grain = 0.7 * rng.standard_normal(picture.shape) + 0.5 * noise(rng, max(8, size // 3), size)
    value = np.clip(sharp, 0.0, 1.0) ** gamma
    value = 0.5 + contrast * (value - 0.5) + profile.brightness + profile.grain * grain
    out: npt.NDArray[np.uint8] = np.clip(255.0 * value + 0.5, 0.0, 255.0).astype(np.uint8)
    for quarter, cut in enumerate(cuts):
        turned = np.rot90(out, quarter)  # a view: the shutters write into the picture
        turned[: round(float(cut) * size)] = 5
    return out


def equipment_cache(cache: Cache, images: Collection[str], folder: Path, seed: int) -> Path:
    """A cache of some of the images through the other unit; returns its folder, made once.

    Labels and masks are those of `cache`. The same seed gives the same pixels.
    Raises CacheError or DataError when it cannot be written.
    """
    # With another profile the pictures are others; a cache's identity is that of its content, so
    # the folder's name makes no finished cell old.
    profile = hashlib.sha256(json.dumps(asdict(OTHER), sort_keys=True).encode()).hexdigest()
    done = folder / f"cache-{profile[:8]}"
    if (done / MANIFEST).is_file():
        return open_cache(done).folder
    drawn = folder / "pictures"
    archive = _draw(cache, images, drawn, seed)
    made = build_cache(archive, done, cache.size)
    shutil.rmtree(drawn, ignore_errors=True)
    return made.folder


def _draw(cache: Cache, images: Collection[str], folder: Path, seed: int) -> Archive:
    """The changed pictures and their masks as PNG files, with the table of `cache`."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    table = cache.index[cache.index["image"].isin(images)].reset_index(drop=True)
    paths, masks = [], []
    for name, row, mask_row in table[["image", "row", "mask_row"]].itertuples(index=False):
        file = f"{name}.png"
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        picture = through_unit(np.asarray(cache.images[row]), OTHER, rng)
        Image.fromarray(picture).save(folder / "images" / file)
        paths.append(str(folder / "images" / file))
        masks.append(str(folder / "masks" / file) if mask_row >= 0 else "")
        if mask_row >= 0:
            Image.fromarray(np.asarray(cache.masks[mask_row]) * np.uint8(255)).save(masks[-1])
    known = table.drop(columns=["row", "mask_row"]).assign(path=paths, mask=masks)
    known[["path", "mask"]] = known[["path", "mask"]].astype("str")
    return Archive(folder, known, empty_boxes(), cache.skipped.iloc[:0])
