"""What can be known of a run before anything is decoded: `run` and `partition` both ask here."""

import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from common.checkpoint import read_object
from common.errors import InputError, Problem
from common.model import build_model
from common.plan import Plan
from simulations.experiment.folder import Request, check_folder
from simulations.experiment.prepare import load_prepared
from simulations.experiment.prospects import refuse_hopeless
from simulations.experiment.survey import Survey, survey
from simulations.flower.runtime import share_resources
from simulations.flower.surroundings import check_surroundings

MIB = 2**20


def preflight(plan: Plan, request: Request, out: Path | None) -> Survey:
    """Everything about a new run that can be known beforehand. Leaves nothing behind.

    out: the folder to be made; None when nothing is to be written.
    Raises InputError, with all that is wrong with the weights, the machine and the folder, and
    then with what is wrong with the data; NotEnoughSitesError for fewer sites than the plan's
    minimum; RefusedError for budgets that end before the plan does.
    """
    checks = machine_checks(plan)
    if out is not None:
        checks.append(lambda: check_folder(out, request))
    _raise_together(checks)
    found = survey(plan, request)
    refuse_hopeless(plan, found.cut.hospitals)
    if out is not None:
        check_space(plan, request, found, out)
    return found


def preflight_again(plan: Plan, request: Request, run: Path) -> Survey | None:
    """The same for an interrupted run; the survey if the run is still to be prepared.

    Nothing is asked of a run that has completed. Raises as `preflight`.
    """
    summary = run / "summary.json"
    if summary.exists() and read_object(summary).get("status") == "completed":
        return None
    _raise_together(machine_checks(plan))
    if load_prepared(run) is not None:
        return None
    found = survey(plan, request)
    refuse_hopeless(plan, found.cut.hospitals)
    check_space(plan, request, found, run)
    return found


def machine_checks(plan: Plan) -> list[Callable[[], object]]:
    """What does not depend on the data: weights, processors, surroundings."""
    return [
        lambda: check_weights(plan),
        lambda: share_resources(plan.simulation, 1),
        check_surroundings,
    ]


def _raise_together(checks: Iterable[Callable[[], object]]) -> None:
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def check_weights(plan: Plan) -> None:
    """Whether the weights that the plan starts from are there, fit its backbone, and are numbers.

    Weights of ImageNet are fetched now if they are not on this machine yet: the run needs them.
    Raises InputError.
    """
    source = plan.model.pretrained
    if source == "none":
        return
    for name, parameter in build_model(plan).encoder.named_parameters():
        if not torch.isfinite(parameter).all():
            found, step = "numbers that are not finite", "Use weights of a training that converged."
            raise InputError(Problem(source, f"weight {name!r}", found, "finite numbers", step))


def check_space(plan: Plan, request: Request, found: Survey, run: Path) -> None:
    """Raise InputError when the disk of the run folder has no room for the decoded images."""
    sources = found.sources
    tables = [each.table for each in (sources.archive, sources.masks) if each is not None]
    planes = sum(len(table) + int(table["mask"].ne("").sum()) for table in tables)
    if request.data is None and not (run / "archive").exists():
        planes += len(sources.archive.table)  # the phantom's pictures; its masks take next to none
    needed = planes * plan.model.image_size**2 - _held(run / "cache")
    place = next(folder for folder in (run.resolve(), *run.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        least = math.ceil(10 * needed / MIB) / 10
        raise InputError(
            Problem(
                str(run),
                "",
                f"{free / MIB:,.1f} MiB free on its disk",
                f"at least {least:,.1f} MiB, for {planes:,} decoded images and masks of "
                f"{plan.model.image_size} px",
                "Make room, choose another --out, or lower model.image_size.",
            )
        )


def _held(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk already."""
    files = folder.iterdir() if folder.is_dir() else []
    return sum(file.stat().st_blocks * 512 for file in files)
