"""A study's folder: what was asked, the archive as it was prepared, and the finished cells.

The same folder may be asked more later (other rows, more seeds): what is done stays done, as
long as the images, the hospitals and the tests are the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common.checkpoint import write_json
from common.entry import terminable
from common.errors import InputError, Problem
from common.plan import Plan
from simulations.experiment.folder import Request, read_record
from simulations.experiment.prepare import PREPARED, Prepared, load_prepared, prepare
from simulations.flower.runtime import hold

STUDY, LOCK = "study.json", ".study.lock"


@dataclass(frozen=True)
class Asked:
    """What the file study.json holds.

    basis: what may not change, by name. asked: what the command was asked, for `--resume`.
    """

    basis: dict[str, Any]
    asked: dict[str, Any]
    skip_bad: bool


def open_study(
    folder: Path, kind: str, plan: Plan, asked: Mapping[str, Any], request: Request
) -> None:
    """Make a study folder, or go on in one; asked: what the command was asked, for `--resume`.

    Call it within `at_work`: another process there reads what is written here when it resumes.
    Raises InputError when the folder holds something else, another kind of study, or one whose
    images, hospitals or tests would not be the same.
    """
    _refuse_other_files(folder)
    paths = {"data": request.data, "masks": request.masks}
    basis = {
        "kind": kind,
        **{key: None if path is None else str(path.absolute()) for key, path in paths.items()},
        "seed": plan.seed,
        "image_size": plan.model.image_size,
        "simulation": plan.simulation.model_dump(mode="json"),
    }
    file = folder / STUDY
    if file.exists():
        before = read_record(file, Asked, "what the study was asked").basis
        other = [key for key in basis if before.get(key) != basis[key]]
        if other and ("kind" in other or (folder / PREPARED).exists()):
            raise InputError(
                Problem(
                    str(folder),
                    "",
                    f"a study with another {', '.join(other)}",
                    "one of the same images, hospitals and tests",
                    "Choose another --out.",
                )
            )
    write_json(file, {"basis": basis, "asked": dict(asked), "skip_bad": request.skip_bad})


def _refuse_other_files(folder: Path) -> None:
    """Raise InputError for a folder that is no study's and not empty; a lock may lie in it."""
    if not folder.exists() or (folder / STUDY).exists():
        return
    if not folder.is_dir() or any(file.name != LOCK for file in folder.iterdir()):
        found, allowed = "a folder with other files in it", "a new folder, or one of a study"
        raise InputError(Problem(str(folder), "", found, allowed, "Choose another --out."))


def reopen_study(folder: Path, kind: str) -> tuple[dict[str, Any], Request]:
    """What an earlier command was asked. Raises InputError when the folder is no such study."""
    file = folder / STUDY
    known = read_record(file, Asked, "what the study was asked") if file.exists() else None
    if known is None or known.basis.get("kind") != kind:
        found, allowed = f"no {kind} study", f"a folder of `consilium-sim {kind}`"
        raise InputError(Problem(str(folder), "", found, allowed, "Check the path."))
    paths = (known.basis.get(key) for key in ("data", "masks"))
    data, masks = (None if path is None else Path(str(path)) for path in paths)
    return known.asked, Request(data, masks, known.skip_bad)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be; SIGTERM ends the work as Ctrl-C does.

    Raises InputError when another process is at work in it, when it holds something else than a
    study, or when it cannot be written.
    """
    _refuse_other_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        found = error.strerror or type(error).__name__
        problem = Problem(str(folder), "", found, "a writable folder", "Choose another --out.")
        raise InputError(problem) from None
    with lock as file, terminable():
        hold(file, folder, "one process per study")
        yield


def prepare_study(plan: Plan, folder: Path, request: Request, console: Console) -> Prepared:
    """Cache, hospitals and tests, made once. Raises as `prepare` does."""
    done = load_prepared(folder)
    if done is not None:
        return done
    return prepare(plan, folder, request.data, request.masks, request.skip_bad, console)
