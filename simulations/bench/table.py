"""The benchmark table for a person to read."""

from typing import Any

from rich.console import Console
from rich.table import Table

_MET = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "-"}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the rows, what was compared in each, and where and when it was measured."""
    table = Table(title="benchmarks: median (smallest to largest) of the repeats")
    for heading in ("row", "what", "value", "range", "goal", "met"):
        left = heading == "what"
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=not left, min_width=None
        )
    for line in result["rows"]:
        spread = f"{number(line['low'])} to {number(line['high'])}"
        table.add_row(
            str(line["row"]),
            line["what"],
            f"{number(line['value'])} {line['unit']}".strip(),
            "-" if line["value"] is None else spread,
            line["goal"] or "-",
            _MET[line["met"]],
        )
    console.print(table)
    for line in result["rows"]:
        text = f"row {line['row']}, {line['what']}: {line['note']}"
        console.print(text, markup=False, highlight=False)
    facts = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    console.print(f"{result['command']}\n{facts}", markup=False, highlight=False)


def number(value: float | None) -> str:
    """Three decimals for ratios, whole numbers from 100 on, "-" for nothing."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
