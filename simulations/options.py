"""What the commands of `consilium-sim` share: options, the quiet console, the refusals."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.errors import InputError, Problem

INTERRUPTED = 130  # what a shell expects after Ctrl-C

DataOption = Annotated[
    Path | None, typer.Option(help="archive in the NIH layout; without it, a phantom is made")
]
MasksOption = Annotated[
    Path | None,
    typer.Option(help="lung masks of the archive, or a folder with images/ and masks/"),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="leave out bad images and say which")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


@contextmanager
def output(as_json: bool) -> Iterator[Console]:
    """The console for progress: nothing at all when JSON is asked for."""
    if not as_json:
        yield Console(highlight=False)
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        yield Console(file=nowhere)


@contextmanager
def resumable(command: str, folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into a word on how to go on, and the exit code that a shell expects."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with `consilium-sim {command} --resume {folder}`", err=True)
        raise typer.Exit(INTERRUPTED) from None


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
