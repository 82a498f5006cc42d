"""Cells: the trainings of a study, each done once, tested at once, and kept.

A cell is a plan and the rows that each of its sites may use. What it leaves behind is small:
its answers on every test image. Everything that is compared later comes from those.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.data.batches import SiteData, select
from client.data.cache import open_cache
from client.data.cache.store import table_digest
from client.learning.evaluate import Heads, Predictions, predict
from client.site import Site
from client.ward import pick_device
from common.checkpoint import read_arrays, read_object, write_arrays, write_json
from common.errors import ConsiliumError
from common.findings import FINDINGS
from common.model import MultitaskModel, build_model
from common.parameters import load_flat, shared_layout
from common.plan import Plan
from server.run_folder import BEST, LATEST, read_encoder
from simulations.experiment.baselines import train_alone, worker_pool
from simulations.experiment.prepare import write_site
from simulations.experiment.results import personal_model
from simulations.study.federate import train_together

VERSION = 1  # raise it when the same cell would give other results: all are then done again
NAME = re.compile(r"[A-Za-z0-9._+-]{1,120}")
KEY_FILE, OUTCOME, ARRAYS, WORK = "cell.json", "outcome.json", "outcome.safetensors", "work"


@dataclass(frozen=True, eq=False)
class SiteRows:
    """What one site may use.

    rows: image, split, labelled, masked, and optional bool columns named by findings, as
    `client.data.batches.select` reads them. annotates: the findings that the site annotates.
    """

    rows: pd.DataFrame
    annotates: tuple[str, ...] = FINDINGS


@dataclass(frozen=True, eq=False)
class Cell:
    """One training. One site is trained alone, several are a federation.

    name: for people and for the folder. plan: all of it, the seed too. sites: by name.
    """

    name: str
    plan: Plan
    sites: Mapping[str, SiteRows]


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images that no cell trains on.

    cache: the folder of the cache that they are in. rows: image, patient, and whatever the
    study filters on later.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    name: str
    cache: Path
    rows: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished cell said about the tests, by the test's name; rows as in `TestSet.rows`.

    logits: (N, 14) float32, NaN in the columns that the model has no answer for. dice, iou:
    (N,) float64, NaN for images without a mask and for models without a lungs head. seconds:
    of training, in the last go if the cell was interrupted.
    """

    logits: Mapping[str, npt.NDArray[np.float32]]
    dice: Mapping[str, npt.NDArray[np.float64]]
    iou: Mapping[str, npt.NDArray[np.float64]]
    seconds: float
    plan_sha256: str


def run_cells(
    cells: Sequence[Cell],
    tests: Sequence[TestSet],
    cache: Path,
    folder: Path,
    workers: int,
    console: Console,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Train and test all cells that `folder` does not hold yet, `workers` side by side.

    cache: the folder of the cache with the training images. Returns the outcomes by cell name,
    in the order of `cells`, and the failed cells with their reasons; those that fail stop no
    other. A cell that was interrupted goes on after its last round.
    Raises ValueError when two cells have one name, or a name cannot be a folder;
    ConsiliumError when a worker process itself died.
    """
    names = [cell.name for cell in cells]
    strange = [name for name in names if not NAME.fullmatch(name)]
    if strange or len(set(names)) < len(names):
        raise ValueError(f"cell names must be unique and match {NAME.pattern}: {strange or names}")
    keys = _keys(cells, tests, cache)
    places = {name: folder / "cells" / name for name in names}
    left = [cell for cell in cells if not _finished(places[cell.name], keys[cell.name])]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} cells are done already")
    left.sort(key=lambda cell: -len(cell.sites))  # the long ones first, so that none is last
    failed: dict[str, str] = {}
    if left:
        with worker_pool(min(workers, len(left))) as pool, _Bar(console, len(left)) as bar:
            jobs = {
                pool.submit(_do, cell, keys[cell.name], tests, cache, places[cell.name]): cell.name
                for cell in left
            }
            for job in as_completed(jobs):
                try:
                    job.result()
                except BrokenProcessPool:
                    reason = "a worker process died (out of memory?); start again to go on"
                    raise ConsiliumError(reason) from None
                except Exception as error:
                    failed[jobs[job]] = str(error) or type(error).__name__
                bar.advance(jobs[job], failed.get(jobs[job]))
    done = {name: _read(places[name]) for name in names if name not in failed}
    return done, {name: failed[name] for name in names if name in failed}


def load_test(test: TestSet, device: torch.device) -> SiteData:
    """A test set's rows with their labels and masks, in the order of `test.rows`.

    Raises DataError when the cache misses one of the images.
    """
    rows = test.rows[["image"]].assign(split="test", labelled=True)
    return select(open_cache(test.cache), rows, FINDINGS, device, f"test {test.name!r}")


class _Bar:
    """A bar on a terminal; elsewhere one line for each cell."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console, self._total, self._done = console, total, 0
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("cells", total=total)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, name: str, failure: str | None) -> None:
        self._done += 1
        self._bar.advance(self._task)
        place = f"  [{self._done}/{self._total}] {name}"
        if failure is not None:
            self._console.print(f"{place} failed: {failure}", markup=False)
        elif not self._console.is_terminal:
            self._console.print(f"{place} done", markup=False)


def _keys(cells: Sequence[Cell], tests: Sequence[TestSet], cache: Path) -> dict[str, str]:
    """The hash of all that a cell's outcome depends on, by the cell's name."""
    identities = {each: open_cache(each).identity for each in {cache, *(t.cache for t in tests)}}
    common = [VERSION, identities[cache]]
    common += [[t.name, identities[t.cache], table_digest(t.rows[["image"]])] for t in tests]
    keys = {}
    for cell in cells:
        sites = [[n, s.annotates, table_digest(s.rows)] for n, s in sorted(cell.sites.items())]
        text = json.dumps([common, cell.plan.to_json(), sites])
        keys[cell.name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def _finished(place: Path, key: str) -> bool:
    return (place / OUTCOME).exists() and read_object(place / OUTCOME, key=str)["key"] == key


def _read(place: Path) -> Outcome:
    arrays, facts = read_arrays(place / ARRAYS), read_object(place / OUTCOME)
    parts: dict[str, dict[str, Any]] = {"logits": {}, "dice": {}, "iou": {}}
    for name, value in arrays.items():
        kind, _, test = name.partition("/")
        parts[kind][test] = value
    return Outcome(**parts, seconds=facts["seconds"], plan_sha256=facts["plan_sha256"])


def _do(cell: Cell, key: str, tests: Sequence[TestSet], cache: Path, place: Path) -> None:
    """Train and test one cell, in a worker process."""
    torch.set_num_threads(1)
    if place.exists() and not _begun(place, key):
        shutil.rmtree(place)  # of another plan, other rows or another version
    write_json(place / KEY_FILE, {"key": key, "plan": cell.plan.model_dump(mode="json")})
    started = time.monotonic()
    folders = [_write_site(place / WORK / "sites" / name, cell, name, cache) for name in cell.sites]
    if len(folders) == 1:
        train_alone(cell.plan.to_json(), folders[0], 1)
    else:
        train_together(cell.plan, folders, place / WORK / "run")
    seconds = time.monotonic() - started
    arrays = _test(cell.plan, folders, place / WORK / "run", tests)
    write_arrays(place / ARRAYS, arrays)
    facts = {"key": key, "seconds": round(seconds, 2), "plan_sha256": cell.plan.sha256}
    write_json(place / OUTCOME, facts)
    # A study of a hundred cells would otherwise keep a hundred models with their optimizers.
    shutil.rmtree(place / WORK, ignore_errors=True)


def _begun(place: Path, key: str) -> bool:
    return (place / KEY_FILE).exists() and read_object(place / KEY_FILE, key=str)["key"] == key


def _write_site(folder: Path, cell: Cell, name: str, cache: Path) -> Path:
    site = cell.sites[name]
    settings = {"name": name, "cache": str(cache.absolute()), "annotates": list(site.annotates)}
    write_site(folder, settings, site.rows.reset_index(drop=True))
    return folder


def _test(
    plan: Plan, folders: Sequence[Path], run: Path, tests: Sequence[TestSet]
) -> dict[str, npt.NDArray[Any]]:
    """The answers on every test, as named arrays."""
    device = pick_device("auto")
    model, heads = _trained(plan, folders, run, device)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for test in tests:
        data = load_test(test, device)
        _, said = predict(model, heads, data, np.arange(len(data.table)))
        arrays[f"logits/{test.name}"] = said.logits
        for kind in ("dice", "iou"):
            arrays[f"{kind}/{test.name}"] = _per_row(said, kind, data)
    return arrays


def _per_row(said: Predictions, kind: str, data: SiteData) -> npt.NDArray[np.float64]:
    """(N,) float64: the overlap of every row, NaN for rows without a mask."""
    values = np.full(len(data.table), np.nan)
    found = getattr(said, kind)
    if len(found):
        values[data.mask_row >= 0] = found
    return values


def _trained(
    plan: Plan, folders: Sequence[Path], run: Path, device: torch.device
) -> tuple[MultitaskModel, list[Heads]]:
    """The trained model and who speaks: the one site, or every site's heads (the council)."""
    # In a federation a site may never have got as far, while the others were enough.
    sites = [site for site in map(Site.open, folders) if site.final_model(plan).exists()]
    pairs = [personal_model(plan, site, device) for site in sites]
    if len(folders) == 1:
        model, heads = pairs[0]
        return model, [heads]
    shared = build_model(plan, pretrained=False).to(device)
    layout = shared_layout(shared, plan.heads)
    file = LATEST if plan.evaluation.encoder == "last" else BEST
    load_flat(shared, layout, read_encoder(run / file, layout))
    return shared, [heads for _, heads in pairs]
