"""What the commands of `consilium-sim` share: options, the quiet console, the refusals."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.errors import InputError, Problem
from common.model_plan import WEIGHTS_BY_NAME
from common.plan import Plan, plan_from_json

INTERRUPTED = 130  # what a shell expects after Ctrl-C

DataOption = Annotated[
    Path | None, typer.Option(help="archive in the NIH layout; without it, a phantom is made")
]
MasksOption = Annotated[
    Path | None,
    typer.Option(help="lung masks of the archive, or a folder with images/ and masks/"),
]
SitesOption = Annotated[int | None, typer.Option(help="hospitals, instead of the plan's number")]
PretrainedOption = Annotated[
    Path | None, typer.Option(help="weights to start from; for privacy, of other patients")
]
WithoutPrivacy = Annotated[
    bool, typer.Option("--without-privacy", help="the plan with privacy.mode off, to compare")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="leave out bad images and say which")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


@contextmanager
def output(as_json: bool) -> Iterator[Console]:
    """The console for progress: nothing at all when JSON is asked for."""
    if not as_json:
        yield Console(highlight=False, markup=False, emoji=False)
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        yield Console(file=nowhere)


def bar(console: Console) -> Progress:
    """A progress bar of counted steps; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


@contextmanager
def resumable(command: str, folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into a word on how to go on, and the exit code that a shell expects."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with `consilium-sim {command} --resume {folder}`", err=True)
        raise typer.Exit(INTERRUPTED) from None


def print_remarks(remarks: Sequence[str], console: Console) -> None:
    """Print what a person should know of the data, each remark on a line, as it is written."""
    if remarks:
        console.print("notes on the data:")
    for remark in remarks:
        console.print(f"  - {remark}", markup=False, emoji=False, highlight=False, soft_wrap=True)


def changed(
    plan: Plan,
    sites: int | None = None,
    pretrained: Path | None = None,
    without_privacy: bool = False,
) -> Plan:
    """The plan with what the command line asks for instead, checked like any plan."""
    value = plan.model_dump(mode="json")
    if sites is not None:
        value["simulation"]["sites"] = sites
    if pretrained is not None:
        named = str(pretrained) in WEIGHTS_BY_NAME
        value["model"]["pretrained"] = str(pretrained if named else pretrained.absolute())
    if without_privacy:
        value |= {"name": f"{plan.name}-open", "privacy": {"mode": "off"}}
        value["training"]["unit"] = plan.privacy.unit
    return plan_from_json(json.dumps(value))


def refuse_with_resume(given: Mapping[str, object]) -> None:
    """A run goes on as it was begun. Raises InputError for what would silently be ignored."""
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        found, allowed = f"{', '.join(extra)} too", "--resume RUN alone, or with --skip-bad"
        step = "Leave them out, or start a new run."
        raise InputError(Problem("command line", "--resume", found, allowed, step))


def required(path: Path | None, what: str, see: str) -> Path:
    """A file that the command cannot do without. Raises InputError."""
    if path is None:
        raise InputError(Problem("command line", what, "nothing", f"a {what.lower()} file", see))
    return path
