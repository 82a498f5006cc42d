"""The two figures of a site's audit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.figures import COLOURS, INK, calm

BINS = 28
UNITS = {"training": "clipping norms", "metrics": "units of the score"}


def scores_figure(found: Mapping[str, Any]) -> Figure:
    """What each play showed, with the patient and without, and where the line was drawn."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    there, absent = found["scores"]["with"], found["scores"]["without"]
    edges = np.histogram_bin_edges([*there, *absent], BINS)
    for values, colour, name in ((absent, COLOURS[0], "without"), (there, COLOURS[1], "with")):
        axes.hist(values, edges.tolist(), color=colour, alpha=0.55, label=f"{name} the patient")
    for number, line in enumerate(found["lines"].values()):
        label = "from here on: there" if number == 0 else None
        axes.axvline(line, color=INK, linewidth=1.2, linestyle="--", label=label)
    axes.set_xlabel(f"what a play shows of the patient, in {UNITS[found['mechanism']['purpose']]}")
    axes.set_ylabel("plays", fontsize=9, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    calm(axes, "y")
    return figure


def curve_figure(found: Mapping[str, Any]) -> Figure:
    """What was charged and what is proven, over delta: the dots must stay below the line."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(found["curve"]))
    axes.plot(
        places, [point["accounted"] for point in found["curve"]], color=COLOURS[0], marker="_",
        markersize=14, markeredgewidth=2, linewidth=1.2, label="charged",
    )  # fmt: skip
    axes.plot(
        places, [point["lower"] for point in found["curve"]], color=COLOURS[1], marker="o",
        linestyle="none", label=f"at least ({found['confidence']:.0%} confidence)",
    )  # fmt: skip
    axes.set_xticks(places, [f"{point['delta']:g}" for point in found["curve"]])
    axes.set_xlabel("delta")
    axes.set_ylabel("epsilon", fontsize=9, color=INK)
    axes.set_ylim(bottom=0)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=9,
    )  # fmt: skip
    calm(axes, "y")
    return figure
