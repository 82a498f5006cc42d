"""What the federation is measured against: every hospital alone, and all data pooled.

A baseline runs the same `Site` code as the federation, for the same rounds and local steps
with the same schedule; the only difference is that nobody is averaged with.
"""

import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from client.settings import SiteFolder, open_site_folder
from client.site import Site
from common.checkpoint import read_arrays, write_arrays
from common.entry import terminable
from common.errors import ConsiliumError
from common.findings import FINDINGS
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan, plan_from_json
from simulations.experiment.hospitals import POOLED, UNBOUND
from simulations.experiment.prepare import Prepared, write_site
from simulations.flower.processes import MARK, Reaper


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
            alone = baseline_folder(prepared, name)
            # The hospital's own words and policy; its ledger starts anew, in this other world.
            settings = folder.settings.model_dump(mode="json", exclude={"rows", "ledger"})
            write_site(alone, settings | {"cache": "../../cache"}, folder.rows())
            folders.append(alone)
    return folders


def pooled_rows(prepared: Prepared) -> pd.DataFrame:
    """All hospitals' rows (image, split, labelled), each annotated as its own hospital does.

    The bool columns named by findings say what is annotated, as `client.data.batches.select` reads.
    """
    folders = [open_site_folder(prepared.folder(name)) for name in prepared.sites]
    return pd.concat([annotated_rows(folder) for folder in folders], ignore_index=True)


def annotated_rows(folder: SiteFolder) -> pd.DataFrame:
    """One hospital's rows (image, split, labelled) with the findings that it annotates as bools."""
    narrowed = {finding: finding in folder.settings.annotates for finding in FINDINGS}
    return folder.rows()[["image", "split", "labelled"]].assign(**narrowed)


def _write_pooled(prepared: Prepared) -> Path:
    folder = baseline_folder(prepared, POOLED)
    sites = [open_site_folder(prepared.folder(name)).settings for name in prepared.sites]
    policy = sites[0].policy.model_dump(mode="json")
    settings = {
        "name": POOLED,
        "cache": "../../cache",
        "annotates": list(FINDINGS),
        "nominal_units": sum(site.nominal_units or 0 for site in sites) or None,
        "outlines_lungs": any(site.outlines_lungs for site in sites),
        # One hospital with everybody's patients: what it may spend is the plan's question.
        "policy": policy | {"epsilon": None if policy["epsilon"] is None else UNBOUND},
    }
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
    layout = site.prepare(plan).layout
    for round_number in range(done + 1, plan.federation.rounds + 1):
        shared = layout.moved(shared, site.train(plan, round_number, shared).delta)
        arrays = {"shared": shared, "round": np.array([round_number])}
        write_arrays(folder / "alone.safetensors", arrays)
    if not site.final_model(plan).exists():
        site.finish(plan, plan.federation.rounds, shared)
    return site.name


def _is_trained(plan: Plan, folder: Path) -> bool:
    """Whether a folder has gone through all rounds. What cannot be read says so in training."""
    try:
        rounds = _progress(plan, folder)[1]
        return rounds == plan.federation.rounds and Site.open(folder).final_model(plan).exists()
    except ConsiliumError:
        return False


def _progress(plan: Plan, folder: Path) -> tuple[Flat, int]:
    """The shared parameters and the last finished round of an interrupted baseline."""
    file = folder / "alone.safetensors"
    if file.exists():
        arrays = read_arrays(file)
        return arrays["shared"], int(arrays["round"][0])
    model = build_model(plan)
    return flatten(model, shared_layout(model, plan.heads)), 0


def side_by_side(plan: Plan, threads: int) -> int:
    """How many trainings of so many threads run at a time: as the cores, or the one GPU, allow.

    On a GPU `simulation.gpus_per_site` counts: 0.25 is four at a time; 0, not said, is one.
    """
    if torch.cuda.is_available():
        return max(1, int(1 / (plan.simulation.gpus_per_site or 1.0)))
    return max(1, len(os.sched_getaffinity(0)) // threads)


def train_baselines(
    plan: Plan, folders: Sequence[Path], progress: Callable[[str], None]
) -> dict[str, str]:
    """Train all folders, side by side as far as the cores or the one GPU allow.

    progress is called with the name of each that is done, now or before. Returns those that
    failed, name: reason; the others go on without them. On Ctrl-C, SIGTERM or the death of this
    process the workers are stopped; what is finished stays finished for the next call.
    Raises ConsiliumError when a worker process itself died: that ends the others, too.
    """
    threads = max(1, round(plan.simulation.cpus_per_site))
    failed: dict[str, str] = {}
    left = []
    for folder in folders:
        if _is_trained(plan, folder):
            progress(folder.name)
        else:
            left.append(folder)
    if not left:
        return failed  # without the seconds in which processes load torch
    with worker_pool(min(len(left), side_by_side(plan, threads))) as pool:
        jobs = {pool.submit(train_alone, plan.to_json(), each, threads): each for each in left}
        for job in as_completed(jobs):
            try:
                progress(job.result())
            except BrokenProcessPool:
                raise ConsiliumError(
                    "a baseline's process died (out of memory?); resume the run"
                ) from None
            except Exception as error:
                failed[jobs[job].name] = str(error) or type(error).__name__
    return failed


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of which none outlives this one, not even after kill -9."""
    # Python's own helper process serves others after us: started now, it carries no mark.
    resource_tracker.ensure_running()
    mark = uuid.uuid4().hex
    # spawn: a forked child cannot use CUDA, and inherits locks of libraries' threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupts)
    try:
        with terminable(), Reaper(mark):
            os.environ[MARK] = mark
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # and the reaper stops those at work
            pool.shutdown()
    finally:
        os.environ.pop(MARK, None)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
