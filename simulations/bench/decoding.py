"""Rows 2 and 3: what the cache saves, and what building it costs beside the decoding itself."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from client.data.cache import build_cache
from simulations.bench.material import Material, Scale
from simulations.bench.timing import Goal, Row, cores, interleave, quotients, row

GATHERING, BUILDING = Goal(">=", 150.0), Goal(">=", 0.85)
# Row 2, per block: PNG files to decode, and passes over the far faster cache.
DECODED, PASSES = 16, 10


def decode(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Bare decoding: a PNG file to (size, size) uint8 with Pillow, as the cache resizes it."""
    with Image.open(path) as picture:
        grey = picture.convert("L")
    # The cache's own filter; a plain antialiased resize takes three times as long.
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _decode_all(paths: Sequence[Path], size: int) -> None:
    for path in paths:
        decode(path, size)


def gathering(material: Material, repeats: int) -> list[Row]:
    """Row 2: images per second in batches from the cache, over decoded PNGs, on one core."""
    scale, data = material.scale, material.site_data(masks=0)
    rows = np.tile(np.random.default_rng(0).permutation(data.rows("train")), PASSES)
    batches = [rows[i : i + scale.batch_size] for i in range(0, len(rows), scale.batch_size)]
    paths = [Path(path) for path in material.archive.table["path"].iloc[:DECODED]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(
            {
                "gather": lambda: [data.batch(batch) for batch in batches],
                "decode": lambda: _decode_all(paths, scale.image_size),
            },
            repeats,
        )
    finally:
        torch.set_num_threads(threads)
    values = quotients(seconds["decode"], seconds["gather"], len(rows) / len(paths))
    note = (
        f"batches of {scale.batch_size} random rows at {scale.image_size} px from the mapped "
        f"cache, with targets and scaled to floats, against {_files(scale)} decoded and resized "
        "by Pillow; both from the page cache, one thread"
    )
    return [row(2, "cached images/s / decoded images/s", values, "", GATHERING, note)]


def building(material: Material, repeats: int) -> list[Row]:
    """Row 3: images per second of a cache build, over what all cores could decode at best."""
    scale, archive, count = material.scale, material.archive, cores()
    bare = [Path(path) for path in archive.table["path"].iloc[: scale.files]]
    numbers = itertools.count()

    def build() -> None:
        build_cache(archive, material.folder / f"build-{next(numbers)}", scale.image_size)

    seconds = interleave(
        {"build": build, "bare": lambda: _decode_all(bare, scale.image_size)}, repeats
    )
    images = len(archive.table)
    values = quotients(seconds["bare"], seconds["build"], images / len(bare) / count)
    note = (
        f"build_cache of {images} files ({_files(scale)}) to {scale.image_size} px on {count} "
        f"cores, hashes, syncing and tables included, against {count} x Pillow's decoding and "
        f"resizing of {len(bare)} of them in one thread"
    )
    what = "cache build images/s / (cores x bare decoding)"
    return [row(3, what, values, "", BUILDING, note)]


def _files(scale: Scale) -> str:
    size = scale.png_size
    return f"PNG phantoms of {size} x {size} px, {scale.phantoms} different ones"
