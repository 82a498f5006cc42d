"""The study commands of `consilium-sim`; simulations/cli.py registers them."""

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.plan import load_plan, plan_from_json
from simulations.options import (
    AsJson,
    DataOption,
    MasksOption,
    SkipBad,
    output,
    refuse_with_resume,
    required,
    resumable,
)

Out = Annotated[
    Path | None, typer.Option(help="folder of the study; a second start does what is left")
]
Resume = Annotated[Path | None, typer.Option(help="go on with an interrupted study")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="trainings side by side; default: one per core, or share of a GPU"),
]


def ablate(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="rows, budgets, seeds and plan (YAML)")
    ] = None,
    data: DataOption = None,
    masks: MasksOption = None,
    out: Out = None,
    resume: Resume = None,
    workers: Workers = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Which part of the method helps? Train with and without each, and compare."""
    # torch is loaded only by the command that needs it.
    from simulations.experiment import Request
    from simulations.study.ablation.report import print_result, write_ablation
    from simulations.study.ablation.run import run_ablation
    from simulations.study.ablation.spec import as_json as spec_values
    from simulations.study.ablation.spec import load_spec, spec_from_json
    from simulations.study.folder import (
        at_work,
        open_study,
        prepare_study,
        reopen_study,
        side_by_side,
    )

    started = time.monotonic()
    with output(as_json) as console:
        if resume is not None:
            given = {"SPEC": spec_file, "--data": data, "--masks": masks, "--out": out}
            refuse_with_resume(given)
            asked, request = reopen_study(resume, "ablate")
            request = replace(request, skip_bad=request.skip_bad or skip_bad)
            spec, folder = spec_from_json(json.dumps(asked), str(resume)), resume
        else:
            spec = load_spec(required(spec_file, "SPEC", "The README shows one."))
            folder = out or Path("runs") / f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            request = Request(data, masks, skip_bad)
        console.print(f"study {spec.name}, folder {folder}")
        words: dict[str, Path | int | None]
        words = {"": spec_file, "--data": data, "--masks": masks, "--out": out}
        words |= {"--resume": resume, "--workers": workers, "--skip-bad": skip_bad}
        with at_work(folder), resumable("ablate", folder):
            if resume is None:
                open_study(folder, "ablate", spec.plan, spec_values(spec), request)
            prepared = prepare_study(spec.plan, folder, request, console)
            at_once = workers or side_by_side(spec.plan)
            result = run_ablation(spec, prepared, folder, at_once, console)
            result |= {
                "command": command_line("ablate", words),
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(time.monotonic() - started, 1),
            }
            page = write_ablation(result, folder)
        print_result(result, page, console)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    if result["failed"]:
        raise typer.Exit(1)


def tasks(
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="PLAN", help="plan file (YAML)")
    ] = None,
    data: DataOption = None,
    masks: MasksOption = None,
    out: Out = None,
    resume: Resume = None,
    workers: Workers = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Is one network for all tasks as good as one for each, and what does it save?"""
    from simulations.experiment import Request
    from simulations.study.folder import (
        at_work,
        open_study,
        prepare_study,
        reopen_study,
        side_by_side,
    )
    from simulations.study.tasks.report import print_tasks, write_tasks
    from simulations.study.tasks.run import check_plan, run_tasks

    started = time.monotonic()
    with output(as_json) as console:
        if resume is not None:
            given = {"PLAN": plan_file, "--data": data, "--masks": masks, "--out": out}
            refuse_with_resume(given)
            asked, request = reopen_study(resume, "tasks")
            request = replace(request, skip_bad=request.skip_bad or skip_bad)
            plan, folder = plan_from_json(json.dumps(asked)), resume
        else:
            plan = load_plan(required(plan_file, "PLAN", "See simulations/plans."))
            check_plan(plan)
            folder = out or Path("runs") / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            request = Request(data, masks, skip_bad)
        console.print(f"plan {plan.name}, folder {folder}")
        words: dict[str, Path | int | None]
        words = {"": plan_file, "--data": data, "--masks": masks, "--out": out}
        words |= {"--resume": resume, "--workers": workers, "--skip-bad": skip_bad}
        with at_work(folder), resumable("tasks", folder):
            if resume is None:
                open_study(folder, "tasks", plan, plan.model_dump(mode="json"), request)
            prepared = prepare_study(plan, folder, request, console)
            result = run_tasks(plan, prepared, workers or side_by_side(plan), console)
            result |= {
                "command": command_line("tasks", words),
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(time.monotonic() - started, 1),
            }
            page = write_tasks(result, folder)
        print_tasks(result, page, console)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    if result["failed"]:
        raise typer.Exit(1)


def command_line(command: str, given: Mapping[str, Path | int | None]) -> str:
    """The command as it was given, without what was left out; True is a word of its own."""
    parts = [
        part
        for name, value in given.items()
        if value is not None and value is not False
        for part in ((name,) if value is True else (name, str(value)))
        if part
    ]
    return shlex.join(["consilium-sim", command, *parts])
