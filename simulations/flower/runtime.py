"""One simulated run on Flower's Ray runtime: start, follow, stop, and tell the truth.

`flwr run` exits with 0 even when the run failed, its local SuperLink outlives the run, and
asking for more CPU than there is hangs. So we start a SuperLink of our own in a temporary
folder, follow the run folder that our ServerApp writes, and leave no process behind.
"""

import fcntl
import math
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import IO

import torch
from rich.console import Console

from common.entry import terminable
from common.errors import InputError, NotEnoughSitesError, Problem
from common.plan import Plan
from common.simulated import SimulationPlan
from server.run_folder import PROGRESS, STATE, begun, check_run, write_plan
from simulations.flower.ending import judge, status, tail
from simulations.flower.processes import Reaper, marked
from simulations.flower.superlink import START_SECONDS, Resources, SuperLink
from simulations.flower.surroundings import ENDING_FILE, short_folder

APP = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5
SERVER = "flwr-simulation"  # the process that holds the ServerApp, as its command line says


def run_simulation(
    plan: Plan,
    run: Path,
    sites: Path,
    num_sites: int,
    console: Console,
    app_dir: Path = APP,
) -> None:
    """Run a plan over the site folders below `sites`, one SuperNode each; resume if begun.

    run: the run folder; a run that was begun in it is resumed. console: takes the server's
    progress lines. app_dir: the folder of our pyproject.toml and packages. What Flower and
    Ray say goes to flower.log in the run folder.
    Returns when the run is completed and all its processes are gone; on Ctrl-C, SIGTERM or
    SIGHUP they are stopped first, too. Raises InputError or NotEnoughSitesError before anything is
    started, RunFailedError with the server's reason and exit code when the run failed.
    """
    resume = begun(run)
    check_run(run, plan, resume)
    check_sites(plan, sites, num_sites)
    resources = share_resources(plan.simulation, num_sites)
    plan_file = write_plan(run, plan)
    progress = _Progress(run / PROGRESS, console)
    mark, log = uuid.uuid4().hex, run / "flower.log"
    before = log.stat().st_size if log.exists() else 0
    with (
        terminable(),
        short_folder() as home,
        log.open("ab") as output,
        Reaper(mark, home),
        SuperLink(home, mark, resources, output, sites) as link,
    ):
        config: dict[str, str | int] = {
            "plan": str(_short(home, "plan.yaml", plan_file)),
            "run": str(_short(home, "run", run)),
            "resume": int(resume),
        }
        run_id = link.submit(_stage(app_dir, home), config, num_sites)
        _follow(run, mark, progress)
        ended = progress.status()
        printed = "" if ended == "completed" else tail(log, before) + link.server_log(run_id)
        progress.show()
        judge(ended, run, home / ENDING_FILE, printed, log)


def _short(home: Path, name: str, target: Path) -> Path:
    """A name of ours for a path of the user's, which may hold what Flower's parser refuses."""
    link = home / name
    link.symlink_to(target.resolve())
    return link


def _stage(app_dir: Path, home: Path) -> Path:
    """A folder with what Flower ships and nothing else: it walks through all it is given."""
    if not (app_dir / "pyproject.toml").exists():
        allowed = "the checkout of Consilium, with its pyproject.toml"
        problem = Problem(str(app_dir), "", "no Flower app", allowed, "Run from a checkout.")
        raise InputError(problem)
    stage = home / "app"
    stage.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(app_dir / name, stage / name)
    for package in ("common", "client", "server", "simulations"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(app_dir / package, stage / package, ignore=ignored)
    return stage


def check_sites(plan: Plan, sites: Path, num_sites: int) -> None:
    """Raise when there are fewer site folders than asked for, or fewer than the plan needs."""
    found = len(list(sites.glob("*/site.yaml")))
    if found < num_sites:
        problem = Problem(
            str(sites), "", f"{found} site folders", f"at least {num_sites}", "Partition first."
        )
        raise InputError(problem)
    needed = plan.federation.min_sites
    if num_sites < needed:
        raise NotEnoughSitesError(
            f"the plan needs {needed} sites (federation.min_sites), the simulation has {num_sites}"
        )


def share_resources(plan: SimulationPlan, num_sites: int) -> Resources:
    """What Ray may use: no more than this machine has and the sites need.

    Raises InputError when one site alone asks for more than there is: Flower would wait for
    ever with an empty pool of actors.
    """
    cpus = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count() if plan.gpus_per_site > 0 else 0
    problems = [
        Problem("plan", f"key 'simulation.{key}'", f"{asked:g}", f"at most {have}", "Lower it.")
        for key, asked, have in (
            ("cpus_per_site", plan.cpus_per_site, cpus),
            ("gpus_per_site", plan.gpus_per_site, gpus),
        )
        if asked > have
    ]
    if problems:
        raise InputError(problems)
    return Resources(
        slots=min(num_sites, math.floor(cpus / plan.cpus_per_site)),
        gpus=min(gpus, math.ceil(num_sites * plan.gpus_per_site)),
        gpus_per_site=plan.gpus_per_site,
        threads=max(1, math.floor(plan.cpus_per_site)),
    )


def _follow(run: Path, mark: str, progress: "_Progress") -> None:
    """Show progress until the server has said how it ended, or is no more."""
    deadline = time.monotonic() + START_SECONDS
    seen = False
    while True:
        progress.show()
        alive = any(SERVER in command for command in marked(mark).values())
        seen = seen or alive
        if (seen and not alive) or progress.status() in ("completed", "failed"):
            return
        if not seen and time.monotonic() > deadline:
            return
        time.sleep(POLL_SECONDS)


class _Progress:
    """The tail of the server's progress file, from where it stood when we began."""

    def __init__(self, file: Path, console: Console) -> None:
        self._file, self._console = file, console
        self._offset = file.stat().st_size if file.exists() else 0
        self._state = file.parent / STATE
        self._stale = _stamp(self._state)

    def show(self) -> None:
        """Pass on complete new lines."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        for line in text[:end].decode(errors="replace").splitlines():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def status(self) -> str:
        """What the server has written of the run since we began: running, ...; "" for nothing."""
        return "" if _stamp(self._state) == self._stale else status(self._state.parent)


def _stamp(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def hold(lock: IO[bytes], folder: Path, allowed: str) -> None:
    """Take the lock of a folder for as long as its open file `lock` stays open.

    The kernel lets go of it when the process ends, however. allowed: what the error says is.
    Raises InputError when another process holds it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        found, step = "another process at work in it", "Wait for it, or stop it first."
        raise InputError(Problem(str(folder), "", found, allowed, step)) from None
