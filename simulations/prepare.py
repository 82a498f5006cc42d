"""From an archive to site folders: decode, cut into hospitals, hold the tests back.

A prepared run folder holds `cache/` (shared by all), `sites/<hospital>/`, and in `sites/` the
tests that no hospital ever sees: `global_test.parquet` for findings, `lungs_test.parquet`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.cache import Cache, build_cache, open_cache
from client.nih import Archive, open_archive
from client.settings import SITE_FILE
from common.checkpoint import read_json, write_json
from common.errors import DataError, PartitionError, Problem
from common.plan import Plan
from simulations.partition import partition, print_summary, read_groups, write_sites
from simulations.phantom import make_phantom

MASK_HOSPITAL = "masks"
PREPARED = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A run folder that is ready to train.

    sites: names, in the order of Flower's nodes. data: the archive's name. synthetic: whether
    it is a phantom that this run made.
    """

    run: Path
    sites: tuple[str, ...]
    data: str
    synthetic: bool

    @property
    def sites_folder(self) -> Path:
        """Where the site folders lie."""
        return self.run / "sites"

    @property
    def cache_folder(self) -> Path:
        """The cache that all sites of this run share."""
        return self.run / "cache"

    def folder(self, site: str) -> Path:
        """One site's folder."""
        return self.sites_folder / site

    def findings_test(self) -> pd.DataFrame:
        """The global test: image, patient, site (the hospital whose population it resembles)."""
        return pd.read_parquet(self.sites_folder / "global_test.parquet")

    def lungs_test(self) -> pd.DataFrame:
        """The images with a lung mask that no hospital has: column image."""
        return pd.read_parquet(self.sites_folder / "lungs_test.parquet")


def load_prepared(run: Path) -> Prepared | None:
    """What `prepare` finished in this run folder, or None if it did not finish."""
    file = run / PREPARED
    if not file.exists():
        return None
    known = read_json(file)
    return Prepared(run, tuple(known["sites"]), known["data"], known["synthetic"])


def prepare(
    plan: Plan,
    run: Path,
    data: Path | None,
    masks: Path | None,
    skip_bad: bool,
    console: Console,
) -> Prepared:
    """Fill the run folder. Without `data`, the archive is a phantom.

    masks: lung masks of the archive's own images, or a folder with images/ and masks/, which
    becomes one more hospital that has masks and no findings.
    Raises DataError, CacheError or PartitionError; a later call goes on where it stopped.
    """
    synthetic = data is None
    data = _phantom(plan, run, console) if data is None else data
    archive, mask_archive = _open(data, masks, skip_bad)
    for remark in archive.remarks:
        console.print(f"  note: {remark}")
    both = archive if mask_archive is None else _combine(archive, mask_archive)
    cache = _cache(both, run / "cache", plan.model.image_size, skip_bad, console)
    index = cache.index
    findings_rows = index[index["image"].isin(archive.table["image"])].reset_index(drop=True)
    mask_rows = index[~index["image"].isin(archive.table["image"])]
    groups_file = data / "hospitals.csv"
    groups = read_groups(groups_file) if groups_file.exists() else None
    spec, sites = plan.simulation.partition, plan.simulation.sites
    parts = partition(findings_rows, spec, sites, plan.seed, groups)
    sites_folder = run / "sites"
    if sites_folder.exists():
        shutil.rmtree(sites_folder)  # half of an earlier call: nothing was trained in it yet
    write_sites(parts, run / "cache", sites_folder)
    print_summary(console, parts)
    names = list(parts.sites)
    test_images = set(parts.test["image"])
    if mask_archive is not None:
        held_back = _mask_hospital(mask_rows, plan, sites_folder)
        names.append(MASK_HOSPITAL)
    else:
        held = findings_rows["image"].isin(test_images) & (findings_rows["mask_row"] >= 0)
        held_back = findings_rows.loc[held, "image"]
    pd.DataFrame({"image": list(held_back)}).to_parquet(sites_folder / "lungs_test.parquet")
    prepared = Prepared(run, tuple(sorted(names)), data.absolute().name, synthetic)
    known = {"sites": prepared.sites, "data": prepared.data, "synthetic": synthetic}
    write_json(run / PREPARED, known)
    return prepared


def _phantom(plan: Plan, run: Path, console: Console) -> Path:
    archive = run / "archive"
    if archive.exists():
        return archive
    count, size = plan.simulation.phantom_images, plan.model.image_size
    console.print(f"no data given: making a phantom archive of {count} radiographs")
    with _bar(console) as progress:
        task = progress.add_task("phantom", total=count)
        return make_phantom(
            archive,
            images=count,
            size=size,
            hospitals=plan.simulation.sites,
            seed=plan.seed,
            progress=lambda written: progress.update(task, completed=written),
        )


def _open(data: Path, masks: Path | None, skip_bad: bool) -> tuple[Archive, Archive | None]:
    if masks is not None and (masks / "images").is_dir():
        return open_archive(data, skip_bad=skip_bad), open_archive(masks, skip_bad=skip_bad)
    return open_archive(data, masks=masks, skip_bad=skip_bad), None


def _combine(first: Archive, second: Archive) -> Archive:
    """Two archives as one, so that one cache serves all hospitals of the run."""
    clash = set(first.table["image"]) & set(second.table["image"])
    if clash:
        raise DataError(
            Problem(
                str(second.root),
                f"image {min(clash)!r}",
                f"{len(clash)} names that the archive has too",
                "other names",
                "Give --masks the folder of masks alone if they belong to the archive's images.",
            )
        )
    table = pd.concat([first.table, second.table], ignore_index=True)
    skipped = pd.concat([first.skipped, second.skipped], ignore_index=True)
    return replace(first, table=table, skipped=skipped)


def _cache(archive: Archive, folder: Path, size: int, skip_bad: bool, console: Console) -> Cache:
    if (folder / "manifest.json").exists():
        return open_cache(folder)
    with _bar(console) as progress:
        task = progress.add_task("decoding", total=len(archive.table))
        cache = build_cache(
            archive,
            folder,
            size,
            skip_bad=skip_bad,
            progress=lambda done: progress.advance(task, done),
        )
    left_out = len(archive.table) - len(cache.index) + len(archive.skipped)
    if left_out:
        console.print(f"  [yellow]left out {left_out} bad images, listed in {folder}[/yellow]")
    return cache


def _mask_hospital(rows: pd.DataFrame, plan: Plan, sites: Path) -> "pd.Series[str]":
    """Write the hospital that owns masks and annotates nothing; return the held-back images."""
    held = plan.simulation.mask_test
    masked = rows.loc[rows["mask_row"] >= 0, "image"].sort_values()
    if len(masked) < held + 2:
        raise PartitionError(
            Problem(
                "partition",
                "key 'simulation.mask_test'",
                f"{held} of {len(masked)} images with a mask",
                "a number that leaves masks to train on",
                "Lower mask_test or give more masks.",
            )
        )
    generator = np.random.default_rng(plan.seed)
    shuffled = masked.iloc[generator.permutation(len(masked))]
    test, own = shuffled.iloc[:held], shuffled.iloc[held:]
    val = round(len(own) * plan.simulation.partition.val_fraction)
    splits = np.where(np.arange(len(own)) < val, "val", "train")
    settings = {"name": MASK_HOSPITAL, "cache": "../../cache", "annotates": []}
    frame = pd.DataFrame({"image": own.to_numpy(), "split": splits, "labelled": False})
    write_site(sites / MASK_HOSPITAL, settings, frame)
    return test


def write_site(folder: Path, settings: Mapping[str, object], rows: pd.DataFrame) -> None:
    """Write one site folder: site.yaml and rows.parquet (image, split, labelled, ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "rows.parquet")
    text = yaml.safe_dump({**settings, "rows": "rows.parquet"}, sort_keys=False)
    (folder / SITE_FILE).write_text(text, encoding="utf-8")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
