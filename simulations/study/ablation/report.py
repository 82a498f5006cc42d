"""The page of `consilium-sim ablate`: what helped, what did not, and how sure one can be.

Every sentence about a difference is worked out from its interval and its seeds
(simulations/study/ablation/words.py); nobody writes them by hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.page import render_page, write_page
from server.report import words
from simulations.study.ablation import plots
from simulations.study.ablation.questions import QUESTIONS
from simulations.study.ablation.run import HOME
from simulations.study.ablation.words import (
    headline,
    in_words,
    limits,
    methods,
    summary,
    verdict,
)

TEMPLATE = Path(__file__).parents[1] / "templates" / "ablation.html.j2"
NAMES = {"auroc": "Findings (mean AUROC)", "dice": "Lungs (Dice)"}

Result = Mapping[str, Any]
Line = Mapping[str, Any]


def write_ablation(result: Result, folder: Path) -> Path:
    """Write `ablation.json` and `ablation.html` into the folder, atomically; the page's path.

    result: as `run_ablation` returns it. Raises InputError when a file cannot be written.
    """
    page, _ = write_page(folder, "ablation", render_ablation(result), result)
    return page


def render_ablation(result: Result) -> str:
    """The page as text."""
    lines = result["results"]
    context = {
        "result": result,
        "spec": result["spec"],
        "questions": list(_questions(result["comparisons"])),
        "tables": list(_tables(lines)),
        "figures": list(_figures(lines)),
        "findings": _finding_table(lines),
        "methods": methods(result),
        "limits": limits(result),
        "identity": _identity(result),
    }
    return render_page(TEMPLATE, context)


def _questions(comparisons: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Every question that was asked: its answer in short, then place by place, then each number.

    The short answers are those of what trained on all kinds of images, at home and through
    other equipment: a part of the method may be worth nothing here and much there.
    """
    for question in QUESTIONS:
        own = [line for line in comparisons if line["question"] == question.key]
        if not own:
            continue
        groups: dict[tuple[str | None, str, str], list[Line]] = {}
        # Sorted, as "auroc" comes before "dice"; the order of the places is kept.
        for line in sorted(own, key=lambda line: str(line["measure"])):
            groups.setdefault((line["domain"], line["view"], line["measure"]), []).append(line)
        short = [
            (f"{NAMES[measure]}, {view}", headline(lines))
            for (domain, view, measure), lines in groups.items()
            if domain is None
        ]
        answers = [
            summary(lines, f"{NAMES[measure]}, {_place(domain, view)}")
            for (domain, view, measure), lines in groups.items()
        ]
        rows = [_comparison_row(line) for line in own]
        yield {"text": question.text, "short": short, "answers": answers, "rows": rows}


def _place(domain: str | None, view: str) -> str:
    return view if domain is None else f"{domain}, {view}"


def _comparison_row(line: Line) -> dict[str, Any]:
    name, against = plots.row_name(line["row"]), plots.row_name(line["against"])
    what = f"{name} minus {against}"
    if line["against"] == line["row"]:
        what = f"{name}: {line['arrangement']} minus {line['against_arrangement']}"
    elif line["arrangement"] != "pooled":
        what += f" ({line['arrangement']})"
    budgets = plots.label({**line, "row": ""}).removeprefix(", ")
    return {
        "what": what,
        "budgets": budgets,
        "where": _place(line["domain"], line["view"]),
        "measure": {"auroc": "AUROC", "dice": "Dice"}[line["measure"]],
        "value": _change(line),
        "sd": _spread(line["sd"]),
        "verdict": in_words(line),
        "kind": verdict(line),  # also the classes of its cell
    }


def _change(line: Line) -> str:
    if line["low"] is None or line["high"] is None:
        return words.change(line["mean"])
    low, high = words.change(line["low"]), words.change(line["high"])
    return f"{words.change(line['mean'])} ({low} to {high})"


def _spread(value: float | None) -> str:
    return words.DASH if value is None else f"{value:.3f}"


def _tables(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """One table for what trained on all kinds of images, one for each domain.

    A line is a row with its budgets; its columns are the views, for both measures.
    """
    for domain in dict.fromkeys(line["domain"] for line in lines):
        own = [line for line in lines if line["domain"] == domain]
        views = list(dict.fromkeys(line["view"] for line in own))
        rows: dict[tuple[Any, ...], dict[str, Line]] = {}
        for line in own:
            key = tuple(line[name] for name in ("row", "findings", "masks", "arrangement"))
            rows.setdefault(key, {})[line["view"]] = line
        yield {
            "domain": domain,
            "views": views,
            "rows": [_table_row(key, by_view, views) for key, by_view in rows.items()],
        }


def _table_row(
    key: tuple[Any, ...], by_view: Mapping[str, Line], views: Sequence[str]
) -> dict[str, Any]:
    name, findings, masks, arrangement = key
    numbers = [
        _mean(plots.measure(by_view[view], measure) if view in by_view else None)
        for measure in NAMES
        for view in views
    ]
    budgets = [words.DASH if budget is None else str(budget) for budget in (findings, masks)]
    return {
        "name": plots.row_name(name),
        "budgets": budgets,
        "trained": arrangement,
        "numbers": numbers,
    }


def _mean(found: Mapping[str, Any] | None) -> str:
    """E.g. "0.812 ± 0.011": the sd is over the seeds."""
    if found is None:
        return words.DASH
    if found["sd"] is None:
        return words.score(found["mean"])
    return f"{found['mean']:.3f} ± {found['sd']:.3f}"


def _figures(lines: Sequence[Line]) -> Iterator[dict[str, str]]:
    """The figures that the results allow, each with what it shows."""
    whole = [line for line in lines if line["domain"] is None]
    home = [line for line in whole if line["view"] == HOME]
    for name, title in NAMES.items():
        source = plots.dots(home, name)
        if source is not None:
            text = f"{title} of every row, in-domain. The dots are the seeds, the bar their mean."
            yield {"source": source, "text": text}
    views = list(dict.fromkeys(line["view"] for line in whole))
    pooled = [line for line in whole if line["arrangement"] == "pooled"] or whole
    source = plots.against_masks(pooled, views)
    if source is not None:
        yield {"source": source, "text": "How many outlined lungs are needed: Dice against masks."}
    for domain in dict.fromkeys(line["domain"] for line in lines):
        own = [line for line in lines if line["domain"] == domain]
        for away in dict.fromkeys(line["view"] for line in own if line["view"] != HOME):
            source = plots.shift(own, HOME, away)
            if source is not None:
                where = _place(domain, away)
                text = f"What is lost away from home: {where} (hollow) against in-domain (filled)."
                yield {"source": source, "text": text}


def _finding_table(lines: Sequence[Line]) -> dict[str, Any] | None:
    """AUROC of each finding, in-domain, for every row of the table that has any."""
    home = [line for line in lines if line["view"] == HOME and line["auroc"] is not None]
    if not home:
        return None
    first = home[0]["auroc"]
    return {
        "columns": [
            {"name": words.finding_name(name), "positives": value["positives"]}
            for name, value in first["findings"].items()
        ],
        "rows": [
            {
                "name": plots.label(line),
                "where": line["domain"] or line["arrangement"],
                "cells": [_mean(value) for value in line["auroc"]["findings"].values()],
            }
            for line in home
        ],
    }


def _identity(result: Result) -> list[tuple[str, str]]:
    seconds = sum(result["cell_seconds"].values())
    facts = {
        "command": result.get("command", words.DASH),
        "date": result.get("date", words.DASH),
        "archive": result["data"]["name"],
        "hospitals": ", ".join(result["data"]["hospitals"]),
        "plan": f"{result['spec']['plan']['name']}, {result['plan_sha256']}",
        "seeds": ", ".join(map(str, result["spec"]["seeds"])),
        "cells": f"{len(result['cell_seconds'])}, {words.duration(seconds)} of training together",
        "this call": words.duration(result.get("seconds")),
    }
    return [*facts.items(), *((key, str(value)) for key, value in result["machine"].items())]


def print_result(result: Result, page: Path, console: Console) -> None:
    """Print the table, the answers in short, and where the page lies."""
    for each in _tables(result["results"]):
        table = Table(title=f"{each['domain'] or 'all images'}: mean ± sd over the seeds")
        for heading in ("row", "labels", "masks", "trained"):
            table.add_column(heading, min_width=10 if heading in ("row", "trained") else None)
        for measure in ("AUROC", "Dice"):
            for view in each["views"]:
                table.add_column(f"{measure}, {view}", justify="right")
        for row in each["rows"]:
            table.add_row(row["name"], *row["budgets"], row["trained"], *row["numbers"])
        console.print(table)
    for question in _questions(result["comparisons"]):
        console.print(question["text"], markup=False)
        for name, answer in question["short"]:
            console.print(f"  {name}: {answer}", markup=False)
    for name, reason in result["failed"].items():
        console.print(f"failed, and left out: {name}: {reason}", markup=False)
    console.print(f"page: {page}")
