"""The site's privacy report: `privacy.html` to read and sign, `privacy.json` to check.

Never here: a charge, or anything that is sent to the coordinator.
"""

from pathlib import Path

from client.report.collect import collect
from client.report.facts import PrivacyFacts
from client.report.page import render
from common.page import write_page

__all__ = ["PrivacyFacts", "as_json", "collect", "render", "write_report"]


def as_json(facts: PrivacyFacts) -> dict[str, object]:
    """The facts as `privacy.json` holds them."""
    value: dict[str, object] = facts.model_dump(mode="json", by_alias=True)
    return value


def write_report(facts: PrivacyFacts, out: Path) -> tuple[Path, Path]:
    """Write page and JSON into the folder `out`, each atomically; return their paths.

    Raises InputError on a failed write.
    """
    return write_page(out, "privacy", render(facts), as_json(facts))
