"""What the pages of all studies share: templates, style and the look of figures."""

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.plots import GREY, INK, RULE


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """A page of simulations/study/templates as text; all that is put into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def figure_source(figure: Figure) -> str:
    """The figure as SVG inside a data URL; the same figure gives the same text."""
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "consilium"}):
        # A plan may be called anything; a letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def calm(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Only the lines that one reads by: a pale grid along one axis, and the bottom."""
    axes.grid(axis=grid, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
