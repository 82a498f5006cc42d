"""What all pages share: how a template becomes a page, its style, and its figures.

Everything that is put into a page is escaped, and what would not print is dropped.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from common.figures import svg

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: Path, context: Mapping[str, Any]) -> str:
    """A page as text. The template finds style.css beside its own folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)


def _printable(value: Any) -> Any:
    """Drop control characters from a text: some turn the direction of what follows them."""
    if type(value) is not str:
        return value
    return "".join(letter for letter in value if letter.isprintable() or letter == "\n")


def figure_source(figure: Figure) -> str:
    """The figure as SVG inside a data URL; the same figure gives the same text."""
    return svg_source(svg(figure))


def svg_source(picture: bytes) -> str:
    """An SVG file as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
