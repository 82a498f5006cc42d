"""Interleaved timing, and the rows that come of it. Needs nothing but the standard library."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

Work = Callable[[], object]


@dataclass(frozen=True)
class Goal:
    """What a value has to reach."""

    side: Literal[">=", "<="]
    limit: float

    def met(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return value >= self.limit if self.side == ">=" else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.side == '>=' else '≤'} {self.limit:,g}"


@dataclass(frozen=True)
class Row:
    """One line of the benchmark table. met is None for a figure without a goal.

    value: the median of the repeats (None: it could not be measured); low, high: the smallest
    and largest of them. note: what exactly was compared, and on what.
    """

    row: int
    what: str
    value: float | None
    unit: str
    goal: str | None
    met: bool | None
    low: float | None
    high: float | None
    note: str


def row(
    number: int, what: str, values: Sequence[float], unit: str, goal: Goal | None, note: str
) -> Row:
    """A row from the values of all repeats. Raises ValueError when one is not finite."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"row {number}: {values} are not finite values")
    value = statistics.median(values)
    met = None if goal is None else goal.met(value)
    shown = None if goal is None else str(goal)
    return Row(number, what, value, unit, shown, met, min(values), max(values), note)


def failed(number: int, reason: str) -> Row:
    """The row of a measurement that ended in an error: not met."""
    return Row(number, "not measured", None, "", None, False, None, None, reason)


def interleave(
    arms: Mapping[str, Work],
    repeats: int,
    turns: int = 1,
    settle: Work = lambda: None,
) -> dict[str, list[float]]:
    """Time several pieces of work in turn: seconds per arm, one number a repeat.

    Every arm runs once unmeasured. Then each repeat runs all arms `turns` times and adds up
    each arm's seconds. The order rotates from turn to turn, so that whatever else the machine
    does, and whatever one arm leaves in the caches, meets all arms alike. settle: called
    before each look at the clock (on a GPU: wait for it).
    """
    for work in arms.values():
        work()
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        total = dict.fromkeys(names, 0.0)
        for turn in range(turns):
            shift = (repeat * turns + turn) % len(names)
            for name in names[shift:] + names[:shift]:
                settle()
                started = time.perf_counter()
                arms[name]()
                settle()
                total[name] += time.perf_counter() - started
        for name in names:
            seconds[name].append(total[name])
    return seconds


def quotients(above: Sequence[float], below: Sequence[float], factor: float = 1.0) -> list[float]:
    """factor * above / below, repeat by repeat: both were measured at about the same time."""
    return [factor * a / b for a, b in zip(above, below, strict=True)]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, str | int | float]:
    """What a figure was measured on, and when. load: of the last minute, before the start."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """The processor's model name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
