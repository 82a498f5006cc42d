"""From a site's cached pixels to training batches.

The pixels stay where they are fastest: in the memory map on a CPU, or as one uint8 array on
the GPU when that fits. What travels per step is row numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from client.augment import augment
from client.cache import Cache
from client.settings import SiteFolder
from common.errors import DataError, Problem
from common.findings import FINDINGS
from common.losses import Batch
from common.sections import AugmentPlan, TasksPlan

Rows = npt.NDArray[np.int64]

# The share of free GPU memory that the pixels may take; the model needs the rest.
GPU_SHARE = 0.5


class Pixels:
    """uint8 images (N, S, S) that can be gathered to a device by row number."""

    def __init__(self, array: npt.NDArray[np.uint8], device: torch.device) -> None:
        self.device = device
        self._array = array
        self._resident: Tensor | None = None
        self._settled = device.type == "cpu"  # whether it is decided where the pixels stay

    def _settle(self) -> None:
        """On the first gather: move everything to the GPU if it fits."""
        free, _ = torch.cuda.mem_get_info(self.device)
        if self._array.nbytes <= GPU_SHARE * free:
            self._resident = torch.from_numpy(np.ascontiguousarray(self._array)).to(self.device)
        self._settled = True

    def gather(self, rows: Rows) -> Tensor:
        """Rows (B,) int64 to images (B, 1, S, S) uint8 on the device."""
        if not self._settled:
            self._settle()
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self.device)].unsqueeze(1)
        taken = torch.from_numpy(self._array[rows]).unsqueeze(1)
        if self.device.type == "cuda":
            return taken.pin_memory().to(self.device, non_blocking=True)
        return taken


@dataclass(frozen=True)
class SiteData:
    """All rows of one site, N of them, and where their pixels are.

    table: N rows with image, patient, split, age, sex, view. targets: (N, 14) float32 0/1.
    known: (N, 14) bool, whether this site annotates the finding and may use it on this row.
    image_row, mask_row: (N,) int64 positions in the cache; mask_row is -1 without a mask.
    """

    table: pd.DataFrame
    targets: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    image_row: Rows
    mask_row: Rows
    images: Pixels
    masks: Pixels

    def rows(self, split: str) -> Rows:
        """Positions (R,) int64 of the rows in a split."""
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def supervised(self, split: str, tasks: TasksPlan) -> Rows:
        """Positions of the rows in a split that teach one of the plan's tasks something."""
        rows = self.rows(split)
        labelled = self.known[rows].any(axis=1) & tasks.findings
        return rows[labelled | ((self.mask_row[rows] >= 0) & tasks.lungs)]

    def batch(self, rows: Rows, unit: Rows | None = None) -> Batch:
        """The rows as one un-augmented batch; each row is its own unit if `unit` is None."""
        device = self.images.device
        lung_rows = np.flatnonzero(self.mask_row[rows] >= 0)
        unit = np.arange(len(rows)) if unit is None else unit
        masks = self.masks.gather(self.mask_row[rows[lung_rows]])
        return Batch(
            images=self.images.gather(self.image_row[rows]).float() / 255,
            targets=torch.from_numpy(self.targets[rows]).to(device),
            known=torch.from_numpy(self.known[rows]).to(device),
            lung_rows=torch.from_numpy(lung_rows).to(device),
            masks=masks.float(),
            unit=torch.from_numpy(unit).to(device),
            units=int(unit.max()) + 1 if len(unit) else 0,
        )


def load_site_data(folder: SiteFolder, cache: Cache, device: torch.device) -> SiteData:
    """Join a site's rows with the cache's index. Raises DataError if a row is not cached."""
    return select(cache, folder.rows(), folder.settings.annotates, device, str(folder.path))


def select(
    cache: Cache,
    rows: pd.DataFrame,
    annotates: tuple[str, ...],
    device: torch.device,
    name: str,
) -> SiteData:
    """Rows of a cache as SiteData; `name` appears in errors.

    rows: columns image, split, labelled, and any of the findings as bool columns, which narrow
    row by row what is annotated (pooled data of sites that annotate different findings).
    Raises DataError when a row's image is not in the cache.
    """
    indexed = cache.index.drop(columns=["split", "labelled"])
    table = rows[["image", "split", "labelled"]].merge(
        indexed, on="image", how="left", validate="1:1"
    )
    absent = table.loc[table["row"].isna(), "image"]
    if len(absent):
        raise DataError(
            Problem(
                name,
                f"image {absent.iloc[0]!r}",
                f"{len(absent)} rows that are not in the cache",
                f"images of {cache.folder}",
                "Build the cache of this archive, or partition it again.",
            )
        )
    findings = table[list(FINDINGS)].to_numpy(np.int8)
    annotated = np.array([finding in annotates for finding in FINDINGS])
    known = (findings >= 0) & annotated & table["labelled"].to_numpy(bool)[:, None]
    for column, finding in enumerate(FINDINGS):
        if finding in rows:
            known[:, column] &= rows[finding].to_numpy(bool)
    return SiteData(
        table=table,
        targets=(findings == 1).astype(np.float32),
        known=known,
        image_row=table["row"].to_numpy(np.int64),
        mask_row=table["mask_row"].to_numpy(np.int64),
        images=_pixels(cache, "images", device),
        masks=_pixels(cache, "masks", device),
    )


# One upload a process and device, however many sites share the cache.
_open_pixels: WeakValueDictionary[tuple[str, str, str], Pixels] = WeakValueDictionary()


def _pixels(cache: Cache, kind: Literal["images", "masks"], device: torch.device) -> Pixels:
    key = (f"{cache.folder.resolve()}:{cache.identity}", kind, str(device))
    pixels = _open_pixels.get(key)
    if pixels is None:
        pixels = Pixels(cache.images if kind == "images" else cache.masks, device)
        _open_pixels[key] = pixels
    return pixels


def group_units(data: SiteData, rows: Rows, unit: str) -> list[Rows]:
    """Split rows into privacy units: one array of rows per image or per patient."""
    if unit == "image":
        return [rows[i : i + 1] for i in range(len(rows))]
    patients = data.table["patient"].to_numpy()[rows]
    order = np.argsort(patients, kind="stable")
    starts = np.flatnonzero(patients[order][1:] != patients[order][:-1]) + 1
    return [np.sort(part) for part in np.split(rows[order], starts)] if len(rows) else []


def training_batches(
    data: SiteData,
    units: list[Rows],
    batch_size: int,
    steps: int,
    plan: AugmentPlan,
    seed: int,
) -> Iterator[Batch]:
    """`steps` augmented batches of `batch_size` units: shuffled passes, one after the other.

    The last batch of a pass holds what is left of it, so one pass is exactly every unit once.
    The same seed gives the same batches, whatever the machine did before.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(steps):
        if not waiting:
            waiting = torch.randperm(len(units), generator=generator).tolist()
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        rows = np.concatenate([units[i] for i in chosen])
        unit = np.repeat(np.arange(len(chosen)), [len(units[i]) for i in chosen])
        batch = data.batch(rows, unit)
        batch.images, batch.masks = augment(
            batch.images, batch.masks, batch.lung_rows, plan, generator
        )
        yield batch
