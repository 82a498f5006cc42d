"""What all pages share: how a template becomes a page, its style, and its figures.

Everything that is put into a page is escaped, and what would not print is dropped.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from common.checkpoint import write_bytes, write_json
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


def write_page(folder: Path, name: str, page: str, facts: Any) -> tuple[Path, Path]:
    """Write NAME.html and NAME.json into a folder, each atomically; return their paths.

    page: as text; facts: JSON values, what the page was made from. The page is written last: where
    it lies, its facts lie beside it. Raises InputError on a failed write, ValueError for NaN.
    """
    html, data = folder / f"{name}.html", folder / f"{name}.json"
    write_json(data, facts)
    write_bytes(html, page.encode())
    return html, data


def figure_source(figure: Figure) -> str:
    """The figure as SVG inside a data URL; the same figure gives the same text."""
    return svg_source(svg(figure))


def svg_source(picture: bytes) -> str:
    """An SVG file as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
