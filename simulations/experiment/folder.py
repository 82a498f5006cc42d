"""The folder of a run: what was asked lies in it, and a run that is refused leaves none behind."""

import errno
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from common.checkpoint import read_json, read_json_lines, write_bytes, write_json
from common.errors import InputError, Problem, escaped
from common.plan import Plan, load_plan

PLAN_FILE, REQUEST_FILE = "experiment.yaml", "request.json"
LOCK = ".experiment.lock"
REPORTS = ("summary.json", "report.html")
# What a run makes and would have to make again; while there is some, the folder stays.
WORK = ("archive", "cache", "sites")
_LONGEST = 4096 - 256  # bytes: Linux' longest path, less the longest of ours below the folder
Record = TypeVar("Record")
_OTHER = "Choose another --out."


@dataclass(frozen=True)
class Request:
    """What `consilium-sim run` was asked. data None: make a phantom archive."""

    data: Path | None
    masks: Path | None
    skip_bad: bool = False


def check_folder(run: Path, request: Request) -> None:
    """Whether a run could be made in this folder; leaves nothing behind.

    Raises InputError when it is in use or no folder, lies in what is read (the archive, the
    masks), has a path that is too long or no text, or cannot be written.
    """
    try:
        str(run).encode()
        if "\n" in str(run) or "\r" in str(run):
            allowed = "a name on one line"
            raise InputError(Problem(escaped(str(run)), "", "a line break", allowed, _OTHER))
        path = run.resolve()
        if len(os.fsencode(path)) > _LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            found = "a folder with files in it" if run.is_dir() else "a file"
            step = "Choose another --out, or go on with --resume."
            raise InputError(Problem(str(run), "", found, "a new or empty folder", step))
        for option, read in (("--data", request.data), ("--masks", request.masks)):
            if read is not None and path.is_relative_to(read.resolve()):
                found = f"a folder in that of {option}, {read}"
                raise InputError(Problem(str(run), "", found, "a folder outside of it", _OTHER))
        made = make_folder(run)
        try:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"\0")
        finally:
            remove_folders(made)
    except UnicodeEncodeError:
        allowed = "a name in the encoding of this machine's terminal"
        problem = Problem(str(run), "", "bytes that are no text", allowed, _OTHER)
        raise InputError(problem) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise InputError(unwritable(run, error)) from None


def open_run(plan: Plan, run: Path, request: Request) -> list[Path]:
    """Make a new run folder with what was asked; the folders that were made, outermost first.

    Raises InputError, and leaves nothing, when it is taken or cannot be made (`check_folder`).
    """
    check_folder(run, request)
    made = make_folder(run)
    text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
    paths = {"data": request.data, "masks": request.masks}
    asked = {key: None if path is None else str(path.absolute()) for key, path in paths.items()}
    try:
        write_bytes(run / PLAN_FILE, text.encode())
        write_json(run / REQUEST_FILE, asked | {"skip_bad": request.skip_bad})
    except InputError:
        discard_empty_run(run, made)
        raise
    return made


def discard_empty_run(run: Path, made: list[Path]) -> None:
    """Remove a new run folder in which nothing was prepared, so that its name stays free.

    made: what `open_run` returned. A folder that was there before stays, as empty as it was.
    """
    if any((run / part).exists() for part in WORK):
        return
    with suppress(OSError):
        for name in (PLAN_FILE, REQUEST_FILE, LOCK, *REPORTS):
            (run / name).unlink(missing_ok=True)
    remove_folders(made)


def resume_run(run: Path) -> tuple[Plan, Request]:
    """The plan of an interrupted run and what it was asked, so that `--resume` needs no more.

    Raises InputError when the folder is no run, or when one of these files is damaged.
    """
    if not (run / PLAN_FILE).is_file():
        raise InputError(
            Problem(str(run), "", "no run", "a folder of `consilium-sim run`", "Check the path.")
        )
    request = read_record(run / REQUEST_FILE, Request, "what the run was asked")
    return load_plan(run / PLAN_FILE), request


def read_rounds_file(run: Path) -> list[dict[str, Any]]:
    """The lines of the run's rounds.jsonl; none before the first round."""
    file = run / "rounds.jsonl"
    return read_json_lines(file) if file.exists() else []


def read_record(file: Path, kind: type[Record], what: str) -> Record:
    """Read a JSON file of a run folder into a dataclass. what: it holds, in words.

    Raises InputError when it is missing, damaged, or lacks a field.
    """
    value = read_json(file)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in detail["loc"])
        step = "Restore the file, or start a new run."
        problem = Problem(str(file), at and f"key {at!r}", detail["msg"], what, step)
        raise InputError(problem) from None


def unwritable(run: Path, error: Exception) -> Problem:
    """The problem of a run folder in which the system does not let us write."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    step = "Free space or choose another --out."
    return Problem(str(run), "", reason, "a folder that can be written", step)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents; those that were made, outermost first.

    Raises InputError, and leaves none of them, when that cannot be done.
    """
    made: list[Path] = []
    try:
        whole = path.resolve()
        for folder in [*reversed(whole.parents), whole]:
            if not folder.exists():
                with suppress(FileExistsError):  # another run made it just now
                    folder.mkdir()
                    made.append(folder)
        if not whole.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        remove_folders(made)
        raise InputError(unwritable(path, error)) from None
    return made


def remove_folders(made: list[Path]) -> None:
    """Remove folders again, the innermost first; one that is in use by now stays."""
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()
