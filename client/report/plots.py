"""The figure of the privacy report: epsilon, charge by charge, against the cap."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from client.report.facts import PrivacyFacts
from common.figures import COLOURS, INK, calm, short

MOST_NAMES = len(COLOURS)  # of runs in the legend; with more, one grey would say as much


def spending(facts: PrivacyFacts) -> Figure:
    """A step for every charge, coloured by run; the cap as a dashed line.

    Where charges were left out, the step is drawn at the value after them: never too low.
    """
    figure = Figure(figsize=(9.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(facts.runs))]
    at, value, named = 0, 0.0, set[int]()
    for point in facts.course:
        if point.epsilon is None:
            _no_bound(axes, at, facts.charges)
            break
        label = None
        if point.run not in named and point.run < MOST_NAMES:
            label = short(facts.runs[point.run].plan_name)
            named.add(point.run)
        epsilon = max(value, point.epsilon)
        axes.plot(
            [at, at, point.charges],
            [value, epsilon, epsilon],
            color=colours[point.run],
            linewidth=2.2,
            solid_joinstyle="miter",
            label=label,
        )
        at, value = point.charges, epsilon
    highest = value
    if facts.cap is not None:
        axes.axhline(facts.cap, color=INK, linewidth=1.4, linestyle="--", label="cap")
        highest = max(value, facts.cap)
    axes.set_ylim(0.0, 1.12 * highest if highest else 1.0)
    axes.set_xlim(0, max(facts.charges, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("charges, in the ledger’s order (one for each round or score)")
    axes.set_ylabel("epsilon, in total", color=INK, fontsize=9)
    calm(axes, "y")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            handlelength=1.6,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _no_bound(axes: Axes, start: int, end: int) -> None:
    """Shade what has no bound: there is no epsilon to draw."""
    axes.axvspan(start, max(end, start + 1), color=COLOURS[1], alpha=0.14, linewidth=0)
    axes.axvline(start, color=COLOURS[1], linewidth=1.4)
    axes.annotate(
        "no bound",
        ((start + max(end, start + 1)) / 2, 0.5),
        xycoords=("data", "axes fraction"),
        color=INK,
        fontsize=9,
        ha="center",
    )


def alternative(facts: PrivacyFacts, spent: str) -> str:
    """What the figure shows, for whoever cannot see it."""
    cap = "no cap is set" if facts.cap is None else f"the cap is {facts.cap:g}"
    return (
        f"Step plot of total epsilon over {facts.charges} charges of {len(facts.runs)} runs: it "
        f"ends at {spent}; {cap}. The values per run are in the table."
    )
