"""The study commands of `consilium-sim`; simulations/cli.py registers them."""

import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from common.plan import Plan, load_plan, plan_from_json
from simulations.experiment.options import (
    AsJson,
    DataOption,
    MasksOption,
    SkipBad,
    output,
    print_remarks,
    refuse_with_resume,
    required,
    resumable,
)

if TYPE_CHECKING:  # torch is loaded only by the command that needs it
    from simulations.experiment.prepare import Prepared

Result = dict[str, Any]
Before = dict[str, Any] | None  # what an earlier command was asked; None without --resume
Out = Annotated[
    Path | None, typer.Option(help="folder of the study; a second start does what is left")
]
Resume = Annotated[Path | None, typer.Option(help="go on with an interrupted study")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="trainings side by side; default: one per core, or share of a GPU"),
]


@dataclass(frozen=True)
class Given:
    """The options of a study command, as they were given."""

    file: Path | None
    data: Path | None
    masks: Path | None
    out: Path | None
    resume: Path | None
    workers: int | None
    skip_bad: bool
    as_json: bool


@dataclass(frozen=True)
class Study:
    """What one command wants done.

    title: for people; name: of a new folder. asked: what `--resume` reads again. train: takes
    the prepared archive, the folder, how many trainings side by side, and the console; returns
    the result with the cells that `failed`. write: the result's files; the page's path.
    """

    title: str
    name: str
    plan: Plan
    asked: dict[str, Any]
    train: "Callable[[Prepared, Path, int, Console], Result]"
    write: Callable[[Result, Path], Path]
    show: Callable[[Result, Path, Console], None]


# What is to be done: from the file in Given, or from what was asked before (with --resume).
Reader = Callable[[Given, Before], Study]


def _command(argument: str, about: str) -> Callable[[Reader], Callable[..., None]]:
    """Make a command of a function that reads what is to be done: every study has these options.

    argument: the name of its file; about: what is in it. The command has name and help from the
    function.
    """

    def make(read: Reader) -> Callable[..., None]:
        def command(
            file: Annotated[Path | None, typer.Argument(metavar=argument, help=about)] = None,
            data: DataOption = None,
            masks: MasksOption = None,
            out: Out = None,
            resume: Resume = None,
            workers: Workers = None,
            skip_bad: SkipBad = False,
            as_json: AsJson = False,
        ) -> None:
            given = Given(file, data, masks, out, resume, workers, skip_bad, as_json)
            _conduct(command.__name__, argument, given, read)

        command.__name__, command.__doc__ = read.__name__, read.__doc__
        return command

    return make


@_command("SPEC", "rows, budgets, seeds and plan (YAML)")
def ablate(given: Given, asked: Before) -> Study:
    """Which part of the method helps? Train with and without each, and compare."""
    from simulations.study.ablation.report import print_result, write_ablation
    from simulations.study.ablation.run import run_ablation
    from simulations.study.ablation.spec import as_json, load_spec, spec_from_json

    if asked is None:
        spec = load_spec(required(given.file, "SPEC", "See simulations/studies."))
    else:
        spec = spec_from_json(json.dumps(asked), str(given.resume))
    return Study(
        f"study {spec.name}",
        spec.name,
        spec.plan,
        as_json(spec),
        lambda prepared, folder, at_once, console: run_ablation(
            spec, prepared, folder, at_once, console
        ),
        write_ablation,
        print_result,
    )


@_command("PLAN", "plan file (YAML)")
def tasks(given: Given, asked: Before) -> Study:
    """Is one network for all tasks as good as one for each, and what does it save?"""
    from simulations.study.tasks.report import print_tasks, write_tasks
    from simulations.study.tasks.run import check_plan, run_tasks

    if asked is None:
        plan = load_plan(required(given.file, "PLAN", "See simulations/plans."))
        check_plan(plan)
    else:
        plan = plan_from_json(json.dumps(asked))
    return Study(
        f"plan {plan.name}",
        plan.name,
        plan,
        plan.model_dump(mode="json"),
        lambda prepared, folder, at_once, console: run_tasks(plan, prepared, at_once, console),
        write_tasks,
        print_tasks,
    )


def _conduct(kind: str, argument: str, given: Given, read: Reader) -> None:
    """Open or reopen a study folder, do what is left, write, print.

    read: says what is to be done, from the file that was given, or, with `--resume`, from what
    was asked before. Exits with 1 when a cell failed.
    """
    from simulations.experiment.baselines import side_by_side
    from simulations.experiment.folder import Request
    from simulations.study.folder import at_work, open_study, prepare_study, reopen_study

    started = time.monotonic()
    with output(given.as_json) as console:
        if given.resume is not None:
            extra = {argument: given.file, "--data": given.data, "--masks": given.masks}
            refuse_with_resume(extra | {"--out": given.out})
            asked, request = reopen_study(given.resume, kind)
            request = replace(request, skip_bad=request.skip_bad or given.skip_bad)
            todo, folder = read(given, asked), given.resume
        else:
            todo = read(given, None)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = given.out or Path("runs") / f"{todo.name}-{stamp}"
            request = Request(given.data, given.masks, given.skip_bad)
        console.print(f"{todo.title}, folder {folder}")
        with at_work(folder), resumable(kind, folder):
            if given.resume is None:
                open_study(folder, kind, todo.plan, todo.asked, request)
            prepared = prepare_study(todo.plan, folder, request, console)
            # Every cell has one thread: many small trainings gain more side by side.
            at_once = given.workers or side_by_side(todo.plan, threads=1)
            result = todo.train(prepared, folder, at_once, console)
            result |= {
                "command": command_line(kind, given),
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(time.monotonic() - started, 1),
                "remarks": list(prepared.remarks),
            }
            page = todo.write(result, folder)
        todo.show(result, page, console)
        print_remarks(prepared.remarks, console)
    if given.as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    if result["failed"]:
        raise typer.Exit(1)


def command_line(kind: str, given: Given) -> str:
    """The command as it was given, without what was left out."""
    options: Mapping[str, Path | int | None] = {
        "--data": given.data,
        "--masks": given.masks,
        "--out": given.out,
        "--resume": given.resume,
        "--workers": given.workers,
    }
    parts = ["consilium-sim", kind, *([] if given.file is None else [str(given.file)])]
    for name, value in options.items():
        parts += [] if value is None else [name, str(value)]
    return shlex.join([*parts, *(["--skip-bad"] if given.skip_bad else [])])
