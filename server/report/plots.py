"""The two figures of the report: AUROC per finding with intervals, and learning over rounds.

Each returns SVG bytes. Matplotlib's object interface only: no pyplot, no global state. Names
come from sites and are drawn as they are, never as mathematics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.figures import COLOURS, GREY, INK, MARKERS, calm, short, svg
from server.report.summary import Estimate

MOST_LINES = 8  # more sites than this are drawn in one grey, with the mean on top


@dataclass(frozen=True)
class ForestRow:
    """One finding in the forest plot; None is undefined and not drawn."""

    label: str
    council: Estimate
    local: float | None
    pooled: float | None


def forest(rows: Sequence[ForestRow]) -> bytes:
    """Draw AUROC per row, first row on top: council with interval, hospitals alone, pooled."""
    figure = Figure(figsize=(9.8, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))[::-1]
    axes.set_yticks(places, [short(row.label) for row in rows], parse_math=False)
    council, low, high, local, pooled = _columns(rows)
    axes.errorbar(
        council,
        places,
        xerr=(council - low, high - council),
        fmt="s",
        color=COLOURS[0],
        markersize=6,
        linewidth=2,
        label="council, 95 % interval",
    )
    for values, marker, face, edge, label in (
        (local, "o", "none", GREY, "hospitals alone, mean"),
        (pooled, "D", COLOURS[1], COLOURS[1], "pooled data"),
    ):
        if not np.isnan(values).all():
            (dots,) = axes.plot(values, places, marker, markersize=5.5, label=label)
            dots.set(markerfacecolor=face, markeredgecolor=edge)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=labels.__getitem__)  # the council first
    axes.legend(
        [handles[n] for n in order],
        [labels[n] for n in order],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        frameon=False,
    )
    axes.axhline(0.5, color=GREY, linewidth=1)  # above the last row, the mean
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("AUROC (0.5, dotted: no better than chance; 1: perfect)")
    lowest = np.nanmin([0.5, *low, *council, *local, *pooled])
    axes.set_xlim(max(lowest - 0.03, 0.0), 1.0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    calm(axes, "x")
    return svg(figure)


def _columns(rows: Sequence[ForestRow]) -> npt.NDArray[np.float64]:
    """(5, rows): council value, low, high, local, pooled; NaN where undefined."""
    table = [(r.council.value, r.council.low, r.council.high, r.local, r.pooled) for r in rows]
    return np.array(table, dtype=np.float64).T


def learning_curve(panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> bytes:
    """Draw one panel per metric: a thin line per site, the mean over the sites in bold.

    panels: metric title -> site -> round -> value.
    """
    figure = Figure(figsize=(9.8, 3.4), layout="constrained")
    for axes, (title, sites) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        _curves(axes, sites)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        calm(axes, "y")
    return svg(figure)


def _curves(axes: Axes, sites: Mapping[str, Mapping[int, float]]) -> None:
    few = len(sites) <= MOST_LINES
    ends: list[tuple[float, str, str]] = []
    for number, (name, values) in enumerate(sites.items()):
        colour = COLOURS[number % len(COLOURS)] if few else "#9aa5ad"
        marker = MARKERS[number % len(MARKERS)] if few else ""
        rounds = sorted(values)
        axes.plot(
            rounds,
            [values[r] for r in rounds],
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1,
        )
        if few:
            ends.append((values[rounds[-1]], short(name), colour))
    every = sorted({r for values in sites.values() for r in values})
    means = [float(np.mean([v[r] for v in sites.values() if r in v])) for r in every]
    if len(sites) > 1:
        axes.plot(every, means, color=INK, linewidth=2.6)
        ends.append((means[-1], "mean", INK))
    low, high = axes.get_ylim()
    step = (high - low) * 0.075  # a line of text
    for place, (_, name, colour) in _spread(ends, step):
        axes.annotate(
            name,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontsize=8.5,
            fontweight="bold" if colour == INK else "normal",
            parse_math=False,
        )
    axes.set_ylim(low, high)


def _spread(
    ends: list[tuple[float, str, str]], step: float
) -> list[tuple[float, tuple[float, str, str]]]:
    """Places of the labels at the line ends, moved apart until none covers another."""
    ordered = sorted(ends)
    places: list[float] = []
    for value, _, _ in ordered:
        places.append(max(value, places[-1] + step) if places else value)
    shift = (sum(places) - sum(value for value, _, _ in ordered)) / max(len(places), 1)
    return list(zip([place - shift for place in places], ordered, strict=True))
