"""From a site's cached pixels to training batches.

The pixels stay where they are fastest: in the memory map on a CPU, or as one uint8 array on
the GPU when that fits. What travels per step is row numbers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from client.data.augment import augment
from client.data.cache import Cache
from client.settings import SiteFolder
from common.errors import DataError, Problem
from common.findings import FINDINGS
from common.losses import Batch
from common.sections import AugmentPlan, TasksPlan, TrainingPlan

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
        both = (self.labelled(split, tasks), self.outlined(split, tasks))
        return np.union1d(*both)

    def labelled(self, split: str, tasks: TasksPlan) -> Rows:
        """Positions of the rows in a split with an annotated finding; none if not a task."""
        rows = self.rows(split)
        return rows[self.known[rows].any(axis=1) & tasks.findings]

    def outlined(self, split: str, tasks: TasksPlan) -> Rows:
        """Positions of the rows in a split with a lung mask; none if lungs are not a task."""
        rows = self.rows(split)
        return rows[(self.mask_row[rows] >= 0) & tasks.lungs]

    def annotated(self, split: str) -> npt.NDArray[np.bool_]:
        """Which findings are annotated on some row of a split, (14,) bool."""
        return np.atleast_1d(self.known[self.rows(split)].any(axis=0))

    def pictures(self, rows: Rows) -> Tensor:
        """The images of rows (B,), (B, 1, S, S) float in [0, 1] on the device."""
        return self.images.gather(self.image_row[rows]).float() / 255

    def batch(self, rows: Rows, unit: Rows | None = None) -> Batch:
        """The rows as one un-augmented batch; each row is its own unit if `unit` is None."""
        device = self.images.device
        lung_rows = np.flatnonzero(self.mask_row[rows] >= 0)
        unit = np.arange(len(rows)) if unit is None else unit
        masks = self.masks.gather(self.mask_row[rows[lung_rows]])
        return Batch(
            images=self.pictures(rows),
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

    rows: columns image, split, labelled; if there, `masked` (bool), without which a row's lung
    mask is not used, and any of the findings as bool columns, which narrow row by row what is
    annotated (pooled data of sites that annotate different findings).
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
    mask_row = table["mask_row"].to_numpy(np.int64)
    if "masked" in rows:
        mask_row = np.where(rows["masked"].to_numpy(bool), mask_row, -1)
    return SiteData(
        table=table,
        targets=(findings == 1).astype(np.float32),
        known=known,
        image_row=table["row"].to_numpy(np.int64),
        mask_row=mask_row,
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


@dataclass(frozen=True)
class Stream:
    """Units that fill a part of every step: `size` of them, in shuffled passes without end."""

    units: list[Rows]
    size: int

    def steps(self) -> int:
        """How many steps one pass takes."""
        return math.ceil(len(self.units) / self.size)

    def draw(self, seed: int) -> Iterator[list[Rows]]:
        """The units of one step after the other.

        The last step of a pass holds what is left of it, so one pass is every unit once.
        """
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.units), generator=generator)
            for chosen in torch.split(order, self.size):
                yield [self.units[i] for i in chosen.tolist()]


def supervised_streams(data: SiteData, plan: TrainingPlan, tasks: TasksPlan) -> list[Stream]:
    """What a site's annotated training rows fill its steps with; none if it has none.

    One stream of everything annotated, or, with `lungs_batch_size`, one of labels and one of
    masks: of ten masks among thousands of labels the lungs head would hardly see any.
    """
    if plan.lungs_batch_size is None:
        parts = [(data.supervised("train", tasks), plan.batch_size)]
    else:
        masks, labels = data.outlined("train", tasks), data.labelled("train", tasks)
        parts = [(labels, plan.batch_size), (masks, plan.lungs_batch_size)]
    return [Stream(group_units(data, rows, plan.unit), size) for rows, size in parts if len(rows)]


def training_batches(
    data: SiteData, streams: Sequence[Stream], plan: AugmentPlan, seed: int
) -> Iterator[Batch]:
    """Augmented batches without end, each with its share of every stream.

    The same seed gives the same batches, whatever the machine did before.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [stream.draw(seed + 1 + number) for number, stream in enumerate(streams)]
    for parts in zip(*drawn, strict=True):
        chosen = [unit for part in parts for unit in part]
        batch = data.batch(*unit_rows(chosen))
        batch.images, batch.masks = augment(
            batch.images, batch.masks, batch.lung_rows, plan, generator
        )
        yield batch


def unit_rows(units: Sequence[Rows]) -> tuple[Rows, Rows]:
    """The rows of some units, (R,) int64, and which of the units each belongs to, (R,) int64."""
    sizes = [len(unit) for unit in units]
    return np.concatenate(units), np.repeat(np.arange(len(units)), sizes)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 on a GPU; on a CPU everything stays in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def to_model_format(images: Tensor) -> Tensor:
    """NHWC memory on a GPU, where convolutions want it; NCHW on a CPU, where it is faster."""
    if images.device.type == "cuda":
        return images.contiguous(memory_format=torch.channels_last)
    return images
