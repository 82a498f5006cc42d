"""The figures of the ablation page, as SVG in data URLs. Names are drawn as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.figures import COLOURS, GREY, INK, MARKERS, calm
from common.page import figure_source

Line = Mapping[str, Any]
MEASURES = {"auroc": "mean AUROC", "dice": "Dice of the lungs"}


def measure(line: Line, name: str) -> Mapping[str, Any] | None:
    """The mean, interval, sd and seeds of one measure in a line of the table; None if undefined."""
    value = line[name]
    if value is not None and name == "auroc":
        value = value["macro"]
    return value if value is not None and value["mean"] is not None else None


def row_name(row: str) -> str:
    """A row's name as people read it."""
    return row.replace("+", " + ")


def label(line: Line) -> str:
    """A row with its budgets, e.g. "multitask, 100 labels, 10 masks"."""
    parts = [row_name(line["row"])]
    for key, one, many in (("findings", "label", "labels"), ("masks", "mask", "masks")):
        if line[key] is not None:
            parts.append(f"{line[key]} {one if line[key] == 1 else many}")
    return ", ".join(parts)


def dots(lines: Sequence[Line], name: str) -> str | None:
    """Every row as a line of dots, one for each seed, its mean as a bar; colour: arrangement."""
    chosen = [line for line in lines if measure(line, name) is not None]
    if not chosen:
        return None
    labels = list(dict.fromkeys(label(line) for line in chosen))
    kinds = list(dict.fromkeys(line["arrangement"] for line in chosen))
    figure = Figure(figsize=(9.8, 1.1 + 0.34 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for line in chosen:
        found = measure(line, name)
        assert found is not None
        number = kinds.index(line["arrangement"])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        shift = 0.22 * (number - (len(kinds) - 1) / 2)
        place = len(labels) - 1 - labels.index(label(line)) - shift
        seeds = [value for value in found["seeds"].values() if value is not None]
        axes.plot(seeds, [place] * len(seeds), marker, color=colour, alpha=0.55, markersize=5)
        axes.plot([found["mean"]] * 2, [place - 0.16, place + 0.16], color=colour, linewidth=2.6)
    if len(kinds) > 1:
        for number, kind in enumerate(kinds):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot([], [], marker, color=colour, label=kind)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    _rows(axes, labels)
    axes.set_xlabel(f"{MEASURES[name]}; dots: seeds, bar: their mean")
    return figure_source(figure)


def against_masks(lines: Sequence[Line], views: Sequence[str]) -> str | None:
    """Dice against the number of masks, a line for each row, a panel for each view."""
    chosen = [line for line in lines if measure(line, "dice") and isinstance(line["masks"], int)]
    budgets = sorted({line["masks"] for line in chosen})
    shown = [view for view in views if any(line["view"] == view for line in chosen)]
    if len(budgets) < 2 or not shown:
        return None
    figure = Figure(figsize=(9.8, 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    for axes, view in zip(panels, shown, strict=True):
        here = [line for line in chosen if line["view"] == view]
        names = list(dict.fromkeys(_without_masks(line) for line in here))
        for number, name in enumerate(names):
            own = [line for line in here if _without_masks(line) == name]
            _curve(axes, own, name, number, budgets)
        axes.set_title(view, loc="left", fontsize=10, color=INK)
        axes.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
        axes.set_xlabel("masks")
        calm(axes, "y")
    panels[0].set_ylabel("Dice", color=INK, fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)
    return figure_source(figure)


def _curve(
    axes: Axes, lines: Sequence[Line], name: str, number: int, budgets: Sequence[int]
) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    points = {budgets.index(line["masks"]): line["dice"] for line in lines}
    places = sorted(points)
    means = [points[place]["mean"] for place in places]
    axes.plot(places, means, color=colour, marker=marker, markersize=5, linewidth=1.6, label=name)
    for place in places:
        seeds = list(points[place]["seeds"].values())
        axes.plot([place] * len(seeds), seeds, marker, color=colour, alpha=0.35, markersize=3.5)


def _without_masks(line: Line) -> str:
    name = label({**line, "masks": None})
    return name if line["arrangement"] == "pooled" else f"{name}, {line['arrangement']}"


def shift(lines: Sequence[Line], home: str, away: str) -> str | None:
    """What each row loses elsewhere: a filled dot at home, a hollow one away, a line between."""
    figure = Figure(layout="constrained")
    pairs = {name: _pairs(lines, name, home, away) for name in MEASURES}
    pairs = {name: found for name, found in pairs.items() if found}
    if not pairs:
        return None
    figure.set_size_inches(9.8, 0.9 + sum(0.5 + 0.32 * len(found) for found in pairs.values()))
    heights = [1 + len(found) for found in pairs.values()]
    panels = np.atleast_1d(figure.subplots(len(pairs), 1, height_ratios=heights))
    for axes, (name, found) in zip(panels, pairs.items(), strict=True):
        for number, (at_home, elsewhere) in enumerate(found.values()):
            place = len(found) - 1 - number
            axes.plot([at_home, elsewhere], [place, place], color=GREY, linewidth=1.2)
            axes.plot(at_home, place, "o", color=COLOURS[0], markersize=6)
            (hollow,) = axes.plot(elsewhere, place, "o", color=COLOURS[1], markersize=6)
            hollow.set_markerfacecolor("white")
        _rows(axes, list(found))
        axes.set_xlabel(f"{MEASURES[name]}; filled: {home}, hollow: {away}")
    return figure_source(figure)


def _pairs(
    lines: Sequence[Line], name: str, home: str, away: str
) -> dict[str, tuple[float, float]]:
    """By row and budgets: the measure at home and away."""
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        value = measure(line, name)
        if value is not None and line["view"] in (home, away):
            suffix = "" if line["arrangement"] == "pooled" else f", {line['arrangement']}"
            found.setdefault(label(line) + suffix, {})[line["view"]] = value["mean"]
    return {key: (both[home], both[away]) for key, both in found.items() if len(both) == 2}


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names at the left, the first on top."""
    axes.set_yticks(range(len(labels) - 1, -1, -1), labels, parse_math=False)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    calm(axes, "x")
