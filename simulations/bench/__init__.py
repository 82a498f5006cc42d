"""`make bench`: the ratios that this project holds itself to, measured A against B.

simulations/bench/gpu.py has the rows for a GPU; it runs by itself (`python -m`), and so this
package loads what the other rows need only when they are asked for.
Never here: code that a user's run needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from simulations.bench.material import Scale

__all__ = ["measure", "print_rows"]


def measure(rows: list[int], repeats: int, scale: "Scale | None" = None) -> dict[str, Any]:
    """Measure rows of the benchmark table, in their order; progress goes to standard error.

    rows: numbers among 1, 2, 3, 4, 5, 6, 8, 9, 11. repeats: how often every comparison is made;
    its median counts. scale: amounts of work; None is the full ones. Returns {"rows": [...],
    "machine": {...}, "command": str}, ready for JSON: a row has "row", "what", "value", "unit",
    "goal", "met" (None without a goal), "low" and "high" over the repeats, and "note". A row
    that failed has no value, is not met, and its note says why. Raises InputError for an
    unknown row or no repeats.
    """
    from simulations.bench.suite import run_rows

    return run_rows(rows, repeats, scale)


def print_rows(result: dict[str, Any], console: "Console") -> None:
    """Print the result of `measure` as one table, with what was compared below it."""
    from simulations.bench.table import show

    show(result, console)
