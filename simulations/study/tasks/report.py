"""The page of `consilium-sim tasks`: what one network for all tasks gains and costs, in words.

Every sentence is worked out from `tasks.json` (simulations/study/tasks/run.py:run_tasks); an
undefined number is a dash, and what hangs on it is said to be open.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from common.figures import COLOURS, GREY, calm
from common.findings import FINDINGS
from common.page import figure_source, render_page, write_page
from server.report import words
from server.report.summary import Estimate
from simulations.study.tasks import words as task_words
from simulations.study.tasks.cost import FINDINGS_ONLY, LUNGS_ONLY, MULTITASK, SINGLE
from simulations.study.tasks.run import MIN_POSITIVES

TEMPLATE = Path(__file__).parents[1] / "templates" / "tasks.html.j2"
VS_SINGLE = f"{MULTITASK}_vs_{SINGLE}"

Result = Mapping[str, Any]
Row = dict[str, Any]


def write_tasks(result: Result, folder: Path) -> Path:
    """Write `tasks.json` and `tasks.html` into the folder, each atomically; the page's path.

    result: as `run_tasks` returns it. Raises InputError when a file cannot be written.
    """
    page, _ = write_page(folder, "tasks", render_tasks(result), result)
    return page


def print_tasks(result: Result, page: Path, console: Console) -> None:
    """Print what the page says first, what failed, and where the page lies."""
    lungs = task_words.lungs_sentence(result["lungs"])
    accuracy = task_words.accuracy_sentence(task_words.leading(result), SINGLE)
    for sentence in (accuracy, lungs, *task_words.cost_sentences(result["cost"])):
        console.print(sentence, markup=False)
    for name, reason in result["failed"].items():
        console.print(f"{name} failed, and is left out: {reason}", markup=False)
    console.print(f"report: {page}", markup=False)


def render_tasks(result: Result) -> str:
    """The page as text."""
    line = task_words.leading(result)
    context = {
        "result": result,
        "accuracy": task_words.accuracy_sentence(line, SINGLE),
        "against_findings": task_words.accuracy_sentence(line, FINDINGS_ONLY),
        "lungs": task_words.lungs_sentence(result["lungs"]),
        "cost": task_words.cost_sentences(result["cost"]),
        "cards": _cards(line, result["cost"]),
        "over": [words.finding_name(name) for name in line["over"]],
        "enough": bool(result["accuracy"]["macro"]["over"]),
        "min_positives": MIN_POSITIVES,
        "findings": _finding_rows(result["accuracy"]),
        "figure": _figure(result["accuracy"]),
        "costs": _cost_rows(result["cost"]),
        "batches": list(result["cost"]["kinds"][MULTITASK]["seconds"]),
        "methods": task_words.methods(result),
        "limits": task_words.limits(result),
        "identity": _identity(result),
    }
    return render_page(TEMPLATE, context)


def _identity(result: Result) -> list[tuple[str, str]]:
    """What one needs to do the study again."""
    facts = {
        "command": result.get("command", words.DASH),
        "date": result.get("date", words.DASH),
        "plan": f"{result['name']}, {result['plan_sha256']}",
        "archive": result["data"]["name"],
        "time of this start": words.duration(result.get("seconds")),
    }
    return [(name, str(value)) for name, value in (facts | result["machine"]).items()]


def _cards(line: Mapping[str, Any], cost: Mapping[str, Any]) -> list[Row]:
    """The numbers at the top of the page."""
    ratios = {ratio["key"]: ratio for ratio in cost["ratios"] if ratio["over"] == SINGLE}
    single = f"single-task: {words.score(line[SINGLE]['value'])}"
    change = f"difference: {words.change(line[VS_SINGLE]['value'])}"
    ours = words.score(line[MULTITASK]["value"])
    cards = [{"name": "Mean AUROC, multitask", "value": ours, "note": f"{single}, {change}"}]
    for key, ratio in ratios.items():
        if ratio["goal"] is not None:
            name = "Size" if key == "size" else f"Time, {task_words.batch_name(key)}"
            note = f"goal {_goal(ratio)}"
            cards.append({"name": name, "value": task_words.part(ratio["value"]), "note": note})
    return cards


def _finding_rows(accuracy: Mapping[str, Any]) -> list[Row]:
    """AUROC per finding, and both means below."""
    counted = set(accuracy["macro"]["over"])
    lines = [(name, accuracy["findings"][name]) for name in FINDINGS]
    rows = [
        _finding_row(words.finding_name(name), line)
        | {"few": name not in counted, "positives": words.count(line[MULTITASK]["positives"])}
        for name, line in lines
    ]
    for label, key in (
        (f"Mean, at least {MIN_POSITIVES} positives", "macro"),
        ("Mean, all defined", "macro_defined"),
    ):
        line = accuracy[key]
        more = {"few": False, "positives": f"{len(line['over'])} findings", "mean": True}
        rows.append(_finding_row(label, line) | more)
    return rows


def _finding_row(name: str, line: Mapping[str, Any]) -> Row:
    kinds = (MULTITASK, FINDINGS_ONLY, SINGLE)
    cells = [words.interval(Estimate(**line[kind])) for kind in kinds]
    cells.append(_change(line[VS_SINGLE]))
    # The interval goes below its value.
    pairs = [cell.partition(" ")[::2] for cell in cells]
    return {"name": name, "cells": pairs[:-1], "difference": pairs[-1], "mean": False}


def _change(interval: Mapping[str, Any]) -> str:
    """E.g. "+0.012 (−0.003 to +0.027)"."""
    value = words.change(interval["value"])
    if interval["value"] is None or interval["low"] is None or interval["high"] is None:
        return value
    return f"{value} ({words.change(interval['low'])} to {words.change(interval['high'])})"


def _cost_rows(cost: Mapping[str, Any]) -> list[Row]:
    """What one answer costs each kind of network, and the ratios to the multitask one."""
    kinds = cost["kinds"]
    ratios = {(ratio["over"], ratio["key"]): ratio for ratio in cost["ratios"]}
    columns = (MULTITASK, FINDINGS_ONLY, LUNGS_ONLY, SINGLE)
    lines: list[tuple[str, str, list[str]]] = []
    for batch in kinds[MULTITASK]["seconds"]:
        key = f"seconds at batch {batch}"
        cells = [f"{1000 * kinds[kind]['seconds'][batch]:,.2f}" for kind in columns]
        lines.append((f"Time per image, {task_words.batch_name(key)} (ms)", key, cells))
    for label, key, field, scale in (
        ("Operations per image (million)", "flops", "flops", 1e6),
        ("Parameters (million)", "parameters", "parameters", 1e6),
        ("Size of the weights (MB)", "size", "megabytes", 1.0),
    ):
        lines.append((label, key, [f"{kinds[kind][field] / scale:,.2f}" for kind in columns]))
    return [
        {
            "name": label,
            "cells": [*cells, f"{ratios[FINDINGS_ONLY, key]['value']:.2f}"],
            "ratio": f"{ratios[SINGLE, key]['value']:.3f}",
            "spread": _spread(ratios[SINGLE, key]),
            "goal": _goal(ratios[SINGLE, key]),
        }
        for label, key, cells in lines
    ]


def _spread(ratio: Mapping[str, Any]) -> str:
    if ratio["low"] == ratio["high"]:
        return ""
    return f"({ratio['low']:.3f} to {ratio['high']:.3f})"


def _goal(ratio: Mapping[str, Any]) -> str:
    if ratio["goal"] is None:
        return words.DASH
    return f"1/{1 / ratio['goal']:.0f}: {'met' if ratio['met'] else 'missed'}"


def _figure(accuracy: Mapping[str, Any]) -> Row | None:
    """The paired difference of every finding and of the mean; None without any."""
    rows = [
        (words.finding_name(name), Estimate(**line[VS_SINGLE]))
        for name, line in accuracy["findings"].items()
        if line[VS_SINGLE]["value"] is not None
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: row[1].value or 0.0, reverse=True)
    rows.append(("Mean", Estimate(**task_words.leading({"accuracy": accuracy})[VS_SINGLE])))
    alt = (
        f"Difference in AUROC, multitask minus single-task, for {len(rows) - 1} findings, from "
        f"{rows[0][0]} ({words.change(rows[0][1].value)}) to {rows[-2][0]} "
        f"({words.change(rows[-2][1].value)}). All values are in table 1."
    )
    return {"source": figure_source(_differences(rows)), "alt": alt}


def _differences(rows: Sequence[tuple[str, Estimate]]) -> Figure:
    """A forest plot, first row on top; without an interval the dot is hollow."""
    figure = Figure(figsize=(6.4, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows) - 1, -1, -1)
    axes.set_yticks(list(places), [name for name, _ in rows])
    for place, (name, estimate) in zip(places, rows, strict=True):
        colour = COLOURS[1] if name == "Mean" else COLOURS[0]
        face = "none"
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2)
            face = colour
        axes.plot([estimate.value or 0.0], [place], "s", color=colour, markerfacecolor=face)
    axes.axvline(0.0, color=GREY, linewidth=1, linestyle=":")
    axes.axhline(0.5, color=GREY, linewidth=1)  # above the last row, the mean
    axes.set_xlabel("difference in AUROC: right of 0 the multitask network is better")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    calm(axes, "x")
    return figure
