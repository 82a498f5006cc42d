"""From an archive to site folders: decode, cut into hospitals, hold the tests back.

A prepared run folder holds `cache/` (shared by all), `sites/<hospital>/`, and in `sites/` the
tests that no hospital ever sees: `global_test.parquet` for findings, `lungs_test.parquet`.
"""

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console

from client.data.cache import Cache, build_cache
from client.data.nih import Archive
from client.settings import SITE_FILE
from common.checkpoint import write_bytes, write_json
from common.plan import Plan
from simulations.experiment.folder import Request, make_folder, read_record, remove_folders
from simulations.experiment.hospitals import MASK_HOSPITAL, OPEN
from simulations.experiment.options import bar
from simulations.experiment.survey import Cut, Survey, cut, remarks, survey
from simulations.partition import OVERVIEW, print_summary, write_overview, write_sites
from simulations.phantom import make_phantom

PREPARED = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A run folder that is ready to train.

    sites: names, in the order of Flower's nodes. data: the archive's name. synthetic: whether
    it is a phantom that this run made. remarks: what a person should know of the data.
    """

    run: Path
    sites: tuple[str, ...]
    data: str
    synthetic: bool
    remarks: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class _Known:
    """What the file prepared.json holds of `Prepared`."""

    sites: tuple[str, ...]
    data: str
    synthetic: bool
    remarks: tuple[str, ...]


def load_prepared(run: Path) -> Prepared | None:
    """What `prepare` finished in this run folder, or None if it did not finish.

    Raises InputError when the file that says so is damaged.
    """
    file = run / PREPARED
    if not file.exists():
        return None
    known = read_record(file, _Known, "what was prepared")
    return _prepared(run, known)


def _prepared(run: Path, known: _Known) -> Prepared:
    return Prepared(run, known.sites, known.data, known.synthetic, known.remarks)


def prepare(
    plan: Plan,
    run: Path,
    data: Path | None,
    masks: Path | None,
    skip_bad: bool,
    console: Console,
    found: Survey | None = None,
) -> Prepared:
    """Fill the run folder. Without `data`, the archive is a phantom.

    masks: lung masks of the archive's own images, or a folder with images/ and masks/, which
    becomes one more hospital that has masks and no findings. found: the survey of just this, if
    it was made already.
    Raises DataError, CacheError or PartitionError; a later call goes on where it stopped.
    """
    request = Request(data, masks, skip_bad)
    # The tables alone show whether the hospitals can be cut: before hours of decoding.
    found = found or survey(plan, request)
    if data is None:
        request = replace(request, data=_phantom(plan, run, console))
        found = survey(plan, request)
    sources = found.sources
    cache = _cache(_combined(found), run / "cache", plan.model.image_size, skip_bad, console)
    # Cut again: bad images may have been left out.
    table = cache.index.assign(outlined=cache.index["mask_row"] >= 0)
    own = table["image"].isin(sources.archive.table["image"])
    elsewhere = None if sources.masks is None else table[~own].reset_index(drop=True)
    done = cut(plan, table[own].reset_index(drop=True), elsewhere, sources)
    _write_hospitals(run, done)
    print_cut(done, console)
    known = _Known(
        tuple(sorted(each.name for each in done.hospitals)),
        sources.name,
        data is None,
        remarks(plan, sources, done, cache.skipped, cache.remarks),
    )
    write_json(run / PREPARED, asdict(known))
    return _prepared(run, known)


def print_cut(done: Cut, console: Console) -> None:
    """Print what each hospital got, and where the lung masks are."""
    print_summary(console, done.parts)
    masks = done.masks()
    if any(masks.values()):
        owner = f" (hospital {MASK_HOSPITAL!r})" if done.hospitals[-1].name == MASK_HOSPITAL else ""
        text = "lung masks: {train:,} to train on, {val:,} to validate{owner}, {test:,} to test"
        console.print(text.format(**masks, owner=owner))
    if masks["left_out"]:
        console.print(f"left out {masks['left_out']} masks of patients in the findings test")


def write_cut(found: Survey, out: Path) -> None:
    """Write what `partition` shows, partition.json and partition.png, into a new folder.

    Raises InputError, and leaves nothing, when that cannot be done.
    """
    made = make_folder(out)
    try:
        write_overview(found.cut.parts, found.overview(), out)
    except BaseException:
        for name in OVERVIEW:
            (out / name).unlink(missing_ok=True)
        remove_folders(made)
        raise


def _write_hospitals(run: Path, done: Cut) -> None:
    """Write the site folders and the tests below `sites/`."""
    folder = run / "sites"
    if folder.exists():
        shutil.rmtree(folder)  # half of an earlier call: nothing was trained in it yet
    said = {
        each.name: each.settings.model_dump(mode="json", exclude_unset=True)
        for each in done.hospitals
    }
    write_sites(done.parts, run / "cache", folder, more=said)
    for each in done.hospitals:
        if each.name == MASK_HOSPITAL:
            rows = each.rows[["image", "split", "labelled"]]
            write_site(folder / MASK_HOSPITAL, said[MASK_HOSPITAL], rows)
    _write_parquet(folder / "lungs_test.parquet", pd.DataFrame({"image": done.lungs_test}))


def _phantom(plan: Plan, run: Path, console: Console) -> Path:
    archive = run / "archive"
    if archive.exists():
        return archive
    count, size = plan.simulation.phantom_images, plan.model.image_size
    console.print(f"no data given: making a phantom archive of {count} radiographs")
    with bar(console) as progress:
        task = progress.add_task("phantom", total=count)
        return make_phantom(
            archive,
            images=count,
            size=size,
            hospitals=plan.simulation.sites,
            seed=plan.seed,
            progress=lambda written: progress.update(task, completed=written),
        )


def _combined(found: Survey) -> Archive:
    """Both archives as one, so that one cache serves all hospitals of the run."""
    first, second = found.sources.archive, found.sources.masks
    if second is None:
        return first
    table = pd.concat([first.table, second.table], ignore_index=True)
    return replace(first, table=table, skipped=found.sources.skipped)


def _cache(archive: Archive, folder: Path, size: int, skip_bad: bool, console: Console) -> Cache:
    with bar(console) as progress:
        task = progress.add_task("decoding", total=len(archive.table))
        return build_cache(
            archive,
            folder,
            size,
            skip_bad=skip_bad,
            progress=lambda done: progress.advance(task, done),
        )


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
