"""From an archive to site folders: decode, cut into hospitals, hold the tests back.

A prepared run folder holds `cache/` (shared by all), `sites/<hospital>/`, and in `sites/` the
tests that no hospital ever sees: `global_test.parquet` for findings, `lungs_test.parquet`.
"""

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.cache import Cache, build_cache
from client.nih import Archive, open_archive
from client.settings import SITE_FILE
from common.checkpoint import read_json, write_bytes, write_json
from common.errors import DataError, PartitionError, Problem
from common.plan import Plan
from simulations.hospitals import OPEN, simulated_settings
from simulations.partition import Partition, partition, print_summary, read_groups, write_sites
from simulations.phantom import make_phantom

MASK_HOSPITAL = "masks"
PREPARED = "prepared.json"
RESERVED = {MASK_HOSPITAL, "pooled"}  # the names of what the experiment adds to the hospitals


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
    # The table alone shows whether the partition can be met: before hours of decoding.
    _check_caps(plan, mask_archive is not None)
    parts = _partition(archive.table, plan, data)
    if mask_archive is not None:
        outlined = mask_archive.table[mask_archive.table["mask"] != ""]
        _share_masks(outlined, plan, parts)
    cache = _cache(both, run / "cache", plan.model.image_size, skip_bad, console)
    index = cache.index
    findings_rows = index[index["image"].isin(archive.table["image"])].reset_index(drop=True)
    mask_rows = index[~index["image"].isin(archive.table["image"])]
    parts = _partition(findings_rows, plan, data)  # again: bad images may have been left out
    sites_folder = run / "sites"
    if sites_folder.exists():
        shutil.rmtree(sites_folder)  # half of an earlier call: nothing was trained in it yet
    more = {
        name: _settings(plan, number, index, rows)
        for number, (name, rows) in enumerate(parts.sites.items())
    }
    write_sites(parts, run / "cache", sites_folder, more=more)
    print_summary(console, parts)
    names = list(parts.sites)
    test_images = set(parts.test["image"])
    if mask_archive is not None:
        outlined = mask_rows[mask_rows["mask_row"] >= 0]
        held_back, own, seen = _share_masks(outlined, plan, parts)
        settings = _settings(plan, len(parts.sites), index, own)
        settings |= {"name": MASK_HOSPITAL, "cache": "../../cache", "annotates": []}
        write_site(sites_folder / MASK_HOSPITAL, settings, own)
        if seen:
            console.print(f"  left out {seen} masks of patients in the findings test")
        names.append(MASK_HOSPITAL)
    else:
        held = findings_rows["image"].isin(test_images) & (findings_rows["mask_row"] >= 0)
        held_back = list(findings_rows.loc[held, "image"])
    _write_parquet(sites_folder / "lungs_test.parquet", pd.DataFrame({"image": list(held_back)}))
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


def _partition(table: pd.DataFrame, plan: Plan, data: Path) -> Partition:
    """Cut the table into hospitals. Raises PartitionError, for a reserved name as well."""
    groups_file = data / "hospitals.csv"
    groups = read_groups(groups_file) if groups_file.exists() else None
    spec, sites = plan.simulation.partition, plan.simulation.sites
    parts = partition(table, spec, sites, plan.seed, groups)
    taken = sorted(RESERVED & set(parts.sites))
    if taken:
        found, allowed = f"a hospital named {taken[0]!r}", f"a name not in {sorted(RESERVED)}"
        raise PartitionError(Problem(str(groups_file), "Hospital", found, allowed, "Rename it."))
    return parts


def _check_caps(plan: Plan, masks: bool) -> None:
    """Raises PartitionError when the plan's budgets miss the hospital of masks."""
    caps, needed = plan.simulation.lifetime_epsilon, plan.simulation.sites + masks
    if caps is not None and len(caps) < needed:
        found = f"{len(caps)} numbers"
        allowed = f"{needed}: one for each hospital, the hospital of masks last"
        key = "key 'simulation.lifetime_epsilon'"
        raise PartitionError(Problem("plan", key, found, allowed, "Add the missing ones."))


def _settings(
    plan: Plan, number: int, index: pd.DataFrame, rows: pd.DataFrame
) -> dict[str, object]:
    """What a hospital with these rows says of itself, beyond its name and data."""
    known = index.set_index("image").loc[rows.loc[rows["split"] == "train", "image"]]
    units = known["patient"].nunique() if plan.privacy.unit == "patient" else len(known)
    masks = int((known["mask_row"] >= 0).sum())
    return simulated_settings(plan, number, units, masks)


def _share_masks(
    outlined: pd.DataFrame, plan: Plan, parts: Partition
) -> tuple[list[str], pd.DataFrame, int]:
    """Share the images that have a mask (image, patient) between the lungs test and a hospital.

    Whole patients go to one side. Images of patients in the findings test go to neither: no
    hospital may know them. Returns the test's images, the hospital's rows (image, split,
    labelled), and how many were left out. Raises PartitionError if none are left to train on.
    """
    held = plan.simulation.mask_test
    known = outlined["patient"].isin(parts.test["patient"])
    masked = outlined.loc[~known, ["image", "patient"]].sort_values("image")
    patients = masked["patient"].drop_duplicates()
    order = np.random.default_rng(plan.seed).permutation(len(patients))
    place = pd.Series(np.arange(len(patients)), index=patients.iloc[order])
    shuffled = masked.iloc[np.argsort(masked["patient"].map(place), kind="stable")]
    in_test = _first_patients(shuffled, held)
    own = shuffled[~in_test]
    in_val = _first_patients(own, round(len(own) * plan.simulation.partition.val_fraction))
    if len(own) < 2 or in_val.all():
        raise PartitionError(
            Problem(
                "partition",
                "key 'simulation.mask_test'",
                f"{held} of {len(masked)} images with a mask",
                "a number that leaves masks to train on",
                "Lower mask_test or give more masks.",
            )
        )
    splits = np.where(in_val, "val", "train")
    rows = pd.DataFrame({"image": own["image"].to_numpy(), "split": splits, "labelled": False})
    return list(shuffled.loc[in_test, "image"]), rows, int(known.sum())


def _first_patients(rows: pd.DataFrame, images: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: the first whole patients of rows grouped by patient, `images` rows or more."""
    first = np.arange(len(rows)) - rows.groupby("patient", sort=False).cumcount().to_numpy()
    return np.asarray(first < images)


def write_site(folder: Path, settings: Mapping[str, object], rows: pd.DataFrame) -> None:
    """Write one site folder: site.yaml and rows.parquet (image, split, labelled, ...).

    Unless the settings say otherwise, the site allows plans without privacy.

    Each file atomically. Raises InputError when one cannot be written.
    """
    _write_parquet(folder / "rows.parquet", rows)
    text = yaml.safe_dump({**OPEN, **settings, "rows": "rows.parquet"}, sort_keys=False)
    write_bytes(folder / SITE_FILE, text.encode())


def _write_parquet(path: Path, rows: pd.DataFrame) -> None:
    content = io.BytesIO()
    rows.to_parquet(content)
    write_bytes(path, content.getvalue())


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
