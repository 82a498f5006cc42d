"""The planner's two figures."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from common.figures import COLOURS, GREY, INK, MARKERS, calm
from simulations.privacy.planner import (
    GIVEN,
    POOLED,
    TARGETS,
    Answer,
    epsilon_curve,
    nearby_batches,
    noise_curve,
    target_name,
)


def spending_figure(answer: Answer) -> Figure:
    """Epsilon after each round, one line for each noise multiplier, and the cap."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for choice in answer.choices:
        points = epsilon_curve(answer.question, choice.noise_multiplier)
        rounds, values = zip(*points, strict=True)
        look = _look(choice.name)
        axes.plot(rounds, values, **look)
        ends.append((values[-1], f"noise {choice.noise_multiplier:g}", look["color"]))
    _label_ends(axes, answer.question.rounds, ends)
    if answer.question.cap is not None:
        axes.axhline(answer.question.cap, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"cap {answer.question.cap:g}",
            (0, answer.question.cap),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    axes.set_xlabel("round")
    axes.set_ylabel("epsilon spent", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=0)
    calm(axes, "y")
    return figure


def noise_figure(answer: Answer) -> Figure:
    """Relative noise over the batch size, one line for each target, and what pooled data carry.

    Both axes are logarithmic.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    question, batches = answer.question, nearby_batches(answer.question)
    ends = []
    for target in TARGETS:
        values, name = noise_curve(question, target, batches), target_name(target)
        look = _look(name)
        axes.plot(batches, values, **look)
        ends.append((values[-1], name, look["color"]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label_ends(axes, batches[-1], ends)
    for target, level in POOLED.items():
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            f"75,312 pooled images at epsilon {target:g}",
            (0, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
        )
    axes.axvline(question.batch, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("patients in a step, on average (dashed: the plan's)")
    axes.set_ylabel("noise / clipping norm × 10⁴", fontsize=9, color=INK)
    calm(axes, "y")
    return figure


def _look(name: str) -> dict[str, Any]:
    """How the line of a choice looks, the same in both figures."""
    names = [target_name(target) for target in TARGETS]
    # What is not among the targets, the cap or a noise that was given, takes the next colours.
    number = names.index(name) if name in names else len(names) + (name == GIVEN)
    return {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.6}


def _label_ends(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Name each line at its right end, in its colour: no legend to look up."""
    for y, text, colour in ends:
        axes.annotate(
            text,
            (x, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )
