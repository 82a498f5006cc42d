"""What the benchmarks work on: real PNG files, a real cache, and site data from it."""

import csv
import dataclasses
import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.data.batches import SiteData, select
from client.data.cache import Cache, build_cache
from client.data.nih import Archive, open_archive
from client.data.tables import find_table
from common.findings import FINDINGS
from common.model_plan import Backbone
from simulations.bench.timing import cores
from simulations.phantom import make_phantom

PATIENT_STEP = 100_000  # between the numbers of a phantom patient and of its next copy


@dataclass(frozen=True)
class Scale:
    """Amounts of work. The defaults are what the goals are about; tests use less.

    backbone, image_size (pixels per side), batch_size (images): the training rows' network;
    private_backbone, private_image_size: the private step's, with the same batch size.
    steps: optimizer steps in one timed block. png_size: pixels per side of the PNG files (NIH:
    1024), phantoms: different ones among them, files: PNG files per core, images: those of them
    in the cache. client_seconds: what a site should train per round. tested_images,
    tested_patients, resamples: of the patient bootstrap.
    """

    backbone: Backbone = "resnet18"
    image_size: int = 128
    private_backbone: Backbone = "densenet121"
    private_image_size: int = 224
    batch_size: int = 16
    steps: int = 6
    png_size: int = 1024
    phantoms: int = 16
    files: int = 256
    images: int = 256
    client_seconds: float = 6.0
    tested_images: int = 25_596
    tested_patients: int = 2_797
    resamples: int = 1000


FULL = Scale()


class Material:
    """Files in one folder, each made when a row first needs it.

    rounds: the lines of rounds.jsonl of row 6's run; none before it.
    """

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        self.rounds: list[dict[str, Any]] = []

    @cached_property
    def archive(self) -> Archive:
        """PNG files of phantoms at NIH's size, `files` per core; no masks, as NIH has none."""
        return open_archive(self._files)

    @cached_property
    def cache(self) -> Cache:
        """A cache of the first `images` files, each with its lung mask."""
        archive = open_archive(self._files, masks=self.folder / "masks")
        table = archive.table.iloc[: self.scale.images].reset_index(drop=True)
        part = dataclasses.replace(archive, table=table)
        return build_cache(part, self.folder / "cache", self.scale.image_size)

    @cached_property
    def _files(self) -> Path:
        """The archive's folder. A phantom at 1024 px takes seconds, so a few serve for all.

        The copies are hard links: every one is opened, read and decoded like a file of its own.
        """
        scale = self.scale
        phantom = make_phantom(
            self.folder / "phantom", scale.phantoms, scale.png_size, hospitals=2, unlabelled=0.0
        )
        pictures = {path.name: path for path in phantom.glob("images_*/images/*.png")}
        header, *lines = find_table(phantom).read_text(encoding="utf-8").splitlines()
        studies = list(csv.reader(lines))
        archive, masks = self.folder / "archive", self.folder / "masks"
        (archive / "images").mkdir(parents=True)
        masks.mkdir()
        text = io.StringIO()
        text.write(header + "\n")
        writer = csv.writer(text, lineterminator="\n")
        for number in range(max(scale.images, scale.files * cores())):
            copy, which = divmod(number, len(studies))
            image, labels, follow_up, patient, *rest = studies[which]
            new_patient = int(patient) + copy * PATIENT_STEP
            name = f"{new_patient:08d}_{int(follow_up):03d}.png"
            os.link(pictures[image], archive / "images" / name)
            os.link(phantom / "masks" / image, masks / name)
            writer.writerow([name, labels, follow_up, new_patient, *rest])
        (archive / find_table(phantom).name).write_text(text.getvalue(), encoding="utf-8")
        return archive

    def site_data(self, masks: int) -> SiteData:
        """The cached images as one site's training rows on the CPU, all findings annotated.

        Whole batches only, so that every step has the same number of images. masks: how many
        images of each batch-sized run of rows keep their lung mask.
        """
        batch = self.scale.batch_size
        whole = len(self.cache.index) // batch * batch
        rows = self.cache.index[["image"]].iloc[:whole].assign(split="train", labelled=True)
        data = select(self.cache, rows, FINDINGS, torch.device("cpu"), "bench")
        kept = np.where(np.arange(whole) % batch < masks, data.mask_row, -1)
        return dataclasses.replace(data, mask_row=kept)
