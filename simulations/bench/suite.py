"""Runs the rows that need no GPU, one after the other."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import ConsiliumError, InputError, Problem
from simulations.bench import decoding, federation, intervals, privacy, training
from simulations.bench.material import FULL, Material, Scale
from simulations.bench.timing import Row, failed, machine

# In this order: row 8 also reads the bytes that the run of row 6 counted.
ROWS: dict[int, Callable[[Material, int], list[Row]]] = {
    1: training.feeding,
    2: decoding.gathering,
    3: decoding.building,
    4: training.bookkeeping,
    5: training.multitasking,
    6: federation.rounds,
    8: federation.traffic,
    9: privacy.private_steps,
    11: intervals.bootstrapping,
}


def run_rows(rows: list[int], repeats: int, scale: Scale | None) -> dict[str, Any]:
    """See `simulations.bench.measure`."""
    _check(rows, repeats)
    wanted = sorted(set(rows))
    console = Console(stderr=True, highlight=False)
    facts, measured = machine(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder:
        material = Material(Path(folder), scale or FULL)
        for number in wanted:
            console.print(f"measuring row {number}")
            try:
                measured += ROWS[number](material, repeats)
            except ConsiliumError as error:  # the other rows are worth having all the same
                measured.append(failed(number, str(error)))
    only = ",".join(str(number) for number in wanted)
    return {
        "rows": [asdict(row) for row in measured],
        "machine": facts,
        "command": f"consilium-sim bench --only {only} --repeats {repeats}",
    }


def _check(rows: list[int], repeats: int) -> None:
    problems = []
    unknown = sorted(set(rows) - set(ROWS))
    if unknown or not rows:
        found = ", ".join(map(str, unknown)) or "no row"
        allowed = "rows among " + ", ".join(map(str, ROWS))
        problems.append(Problem("bench", "--only", found, allowed, "Name other rows."))
    if repeats < 1:
        problems.append(Problem("bench", "--repeats", str(repeats), "1 or more", "Raise it."))
    if problems:
        raise InputError(problems)
