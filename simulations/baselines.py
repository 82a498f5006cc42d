"""What the federation is measured against: every hospital alone, and all data pooled.

A baseline runs the same `Site` code as the federation, for the same rounds and local steps
with the same schedule; the only difference is that nobody is averaged with.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from client.settings import open_site_folder
from client.site import Site
from common.checkpoint import read_arrays, write_arrays
from common.findings import FINDINGS
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan, plan_from_json
from simulations.prepare import Prepared, write_site

POOLED = "pooled"


def baseline_folder(prepared: Prepared, name: str) -> Path:
    """The site folder in which a hospital alone, or the pooled data, is trained."""
    return prepared.run / "baselines" / name


def write_baselines(prepared: Prepared, plan: Plan) -> list[Path]:
    """Write the site folders of the plan's baselines; largest first, as they should start."""
    folders = []
    if "pooled" in plan.evaluation.baselines:
        folders.append(_write_pooled(prepared))
    if "local" in plan.evaluation.baselines:
        for name in prepared.sites:
            folder = open_site_folder(prepared.folder(name))
            settings = {"name": name, "cache": "../../cache"}
            annotates = list(folder.settings.annotates)
            alone = baseline_folder(prepared, name)
            write_site(alone, {**settings, "annotates": annotates}, folder.rows())
            folders.append(alone)
    return folders


def pooled_rows(prepared: Prepared) -> pd.DataFrame:
    """All hospitals' rows (image, split, labelled), each annotated as its own hospital does.

    The bool columns named by findings say what is annotated, as `client.batches.select` reads.
    """
    parts = []
    for name in prepared.sites:
        folder = open_site_folder(prepared.folder(name))
        rows = folder.rows()[["image", "split", "labelled"]]
        narrowed = {finding: finding in folder.settings.annotates for finding in FINDINGS}
        parts.append(rows.assign(**narrowed))
    return pd.concat(parts, ignore_index=True)


def _write_pooled(prepared: Prepared) -> Path:
    folder = baseline_folder(prepared, POOLED)
    settings = {"name": POOLED, "cache": "../../cache", "annotates": list(FINDINGS)}
    write_site(folder, settings, pooled_rows(prepared))
    return folder


def train_alone(plan_json: str, folder: Path, threads: int) -> str:
    """Train one site folder for all rounds of the plan without a federation.

    Goes on after the last finished round. Leaves `alone.safetensors` (shared (P,) float32,
    round) and the site's final model in the folder; returns the site's name.
    """
    torch.set_num_threads(threads)
    plan = plan_from_json(plan_json)
    site = Site.open(folder)
    shared, done = _progress(plan, folder)
    for round_number in range(done + 1, plan.federation.rounds + 1):
        shared = shared + site.train(plan, round_number, shared).delta
        arrays = {"shared": shared, "round": np.array([round_number])}
        write_arrays(folder / "alone.safetensors", arrays)
    if not site.final_model(plan).exists():
        site.finish(plan, plan.federation.rounds, shared)
    return site.name


def _progress(plan: Plan, folder: Path) -> tuple[Flat, int]:
    """The shared parameters and the last finished round of an interrupted baseline."""
    file = folder / "alone.safetensors"
    if file.exists():
        arrays = read_arrays(file)
        return arrays["shared"], int(arrays["round"][0])
    model = build_model(plan)
    return flatten(model, shared_layout(model, plan.heads)), 0


def train_baselines(plan: Plan, folders: Sequence[Path], progress: Callable[[str], None]) -> None:
    """Train all folders, side by side as far as the cores or the one GPU allow.

    progress is called with the name of each that is done. An error of one is raised after the
    others have ended; what is finished stays finished for the next call.
    """
    threads = max(1, round(plan.simulation.cpus_per_site))
    side_by_side = max(1, (os.cpu_count() or 1) // threads)
    if torch.cuda.is_available():
        side_by_side = max(1, int(1 / (plan.simulation.gpus_per_site or 1.0)))
    # spawn: a forked child cannot use CUDA, and inherits locks of libraries' threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, mp_context=context) as pool:
        jobs = [pool.submit(train_alone, plan.to_json(), folder, threads) for folder in folders]
        for job in as_completed(jobs):
            progress(job.result())
