"""The site's privacy report: `privacy.html` to read and sign, `privacy.json` to check."""

from pathlib import Path

from client.report.collect import collect
from client.report.facts import PrivacyFacts
from client.report.page import render
from common.checkpoint import write_bytes, write_json

__all__ = ["PrivacyFacts", "as_json", "collect", "render", "write_report"]

HTML, JSON = "privacy.html", "privacy.json"


def as_json(facts: PrivacyFacts) -> dict[str, object]:
    """The facts as `privacy.json` holds them."""
    value: dict[str, object] = facts.model_dump(mode="json", by_alias=True)
    return value


def write_report(facts: PrivacyFacts, out: Path) -> tuple[Path, Path]:
    """Write page and JSON into the folder `out`, each atomically; return their paths.

    Raises InputError on a failed write.
    """
    page, data = out / HTML, out / JSON
    write_bytes(page, render(facts).encode())
    write_json(data, as_json(facts))
    return page, data
