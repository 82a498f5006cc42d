"""What the pages of all studies share: templates, style and figures."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from server.plots import svg


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
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode()
