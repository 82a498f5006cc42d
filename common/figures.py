"""How figures look: colours that everyone can tell apart, few lines, SVG that never changes.

Matplotlib's object interface only: no pyplot, no global state.
"""

import io
import warnings
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, without yellow: told apart with any colour vision, dark on white.
COLOURS = ("#0072B2", "#D55E00", "#007A5E", "#A3437C", "#3B8FC2", "#8A6100")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, GREY, RULE = "#1c2b36", "#5b6770", "#d5dbe0"
LONGEST = 24  # letters of a name in a figure


def short(name: str) -> str:
    """A name that fits beside an axis: printable, at most LONGEST letters."""
    clean = "".join(letter for letter in name if letter.isprintable())
    return clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "…"


def calm(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Only the lines that one reads by: a pale grid along one axis, and the bottom."""
    axes.grid(axis=grid, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file; the same figure gives the same bytes."""
    file = io.BytesIO()
    # A fixed salt instead of a random one: the same run gives the same bytes.
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "consilium"}):
        # A site may be called anything; a letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
