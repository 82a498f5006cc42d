"""`python -m tests.mutate`: breaks what privacy rests on, one line at a time, and asks who notices.

Each mutation of `tests/mutations.yaml` is applied to a copy of the checkout, and the tests that it
names run there: every one of them has to fail. What survives is a promise that no test holds. A
mutation whose text is not in its file any more is an error: mend the list with the code.
`tests/test_mutations.py` holds the list against `docs/privacy.md`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from rich.console import Console

from common.errors import InputError, Problem
from common.terminal import program
from common.yaml_file import read_mapping

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutations.yaml")
FAILED = 1  # pytest's exit code for tests that ran and failed
SECONDS = 900

app = program("Breaks what privacy rests on, and asks which test notices.")


class Mutation(BaseModel):
    """name: what is broken. file: where. old: text that stands there once; new: instead of it.

    tests: pytest's words for the tests that have to notice, each of them. row: how the row of the
    leak list in docs/privacy.md begins whose claim is broken; "" for what is in no row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = Field(min_length=1)
    row: str = ""


def mutations() -> list[Mutation]:
    """All of the list. Raises InputError for a text that is not there exactly once."""
    raw = read_mapping(LIST, "mutations", InputError, "See tests/mutate.py.")
    found = TypeAdapter(list[Mutation]).validate_python(raw["mutations"])
    problems = []
    for each in found:
        count = (ROOT / each.file).read_text().count(each.old)
        if count != 1:
            at, step = f"mutation {each.name!r}", "Mend the list: the code has changed."
            problems.append(Problem(each.file, at, f"its text {count} times", "once", step))
    if problems:
        raise InputError(problems)
    return found


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the files that git knows or does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="mutate-") as place:
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(place) / name)
        yield Path(place)


def run_tests(place: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit code in a copy (-1 when it did not end), and what it said."""
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    words = ["-m", "pytest", "-q", "-rf", "--tb=line", "-p", "no:cacheprovider", "-m", "", *tests]
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=place, env=environment, capture_output=True, text=True, check=False,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"not done in {SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def survives(mutation: Mutation | None, tests: tuple[str, ...]) -> str | None:
    """Why a mutation counts as alive (or, without one, why the tests are of no use); or None."""
    with copied() as place:
        if mutation is not None:
            file = place / mutation.file
            file.write_text(file.read_text().replace(mutation.old, mutation.new))
        code, said = run_tests(place, tests)
    last = "\n".join(said.splitlines()[-4:])
    if code != (0 if mutation is None else FAILED):
        return f"pytest ended with {code}: {last}"
    if mutation is None:
        return None
    failed = [line for line in said.splitlines() if line.startswith("FAILED ")]
    blind = [test for test in tests if not any(f" {test}" in line for line in failed)]
    return f"not noticed by {', '.join(blind)}: {last}" if blind else None


@app.command()
def mutate(
    only: Annotated[str, typer.Option(help="mutations whose names hold this text")] = "",
    jobs: Annotated[int, typer.Option(help="side by side")] = 2,
) -> None:
    """Apply every mutation and show which tests notice; ends with 1 if one survives."""
    say = partial(Console().print, markup=False, highlight=False, soft_wrap=True)
    chosen = [each for each in mutations() if only in each.name]
    everything = tuple(dict.fromkeys(test for each in chosen for test in each.tests))
    started = time.monotonic()
    alive = 0
    with ThreadPoolExecutor(jobs) as pool:
        shares = [everything[number::jobs] for number in range(min(jobs, len(everything)))]
        unsound = [why for why in pool.map(lambda some: survives(None, some), shares) if why]
        if unsound:
            say(f"the tests fail without any mutation: {unsound[0]}")
            raise typer.Exit(1)
        reasons = pool.map(lambda each: survives(each, each.tests), chosen)
        for each, why in zip(chosen, reasons, strict=True):
            alive += why is not None
            say(f"{'SURVIVES' if why else 'dies':9}{each.name}{f': {why}' if why else ''}")
    minutes = (time.monotonic() - started) / 60
    say(f"{len(chosen) - alive} of {len(chosen)} mutations die ({minutes:.0f} minutes)")
    if alive:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
