"""The federation's privacy report: only what the sites chose to disclose, as their own word."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.figures import COLOURS, INK, MARKERS, calm, short
from common.page import figure_source, render_page, write_page
from common.privacy_words import DASH, delta_text, epsilon_text, refusal
from server.report.privacy_facts import FederationPrivacy, SitePrivacy

TEMPLATE = Path(__file__).parent / "templates" / "privacy.html.j2"
FULL = 0.9  # of a cap: nearly spent
MOST_SITES = len(COLOURS)  # with a colour of their own in the figure

NOT_KNOWN = (
    "Every number about a site is that site’s own word. The server cannot see a site’s patients, "
    "so it cannot check an epsilon; it can only check that a ledger never went backwards.",
    "A site that tells nothing may have spent anything, or have no limit at all. Its own privacy "
    "report (consilium-site report privacy) says it to those whom the site shows it to.",
    "Epsilon of two sites must not be compared as risk to the same people: it speaks of each "
    "site’s own patients. A patient whose records lie at two sites bears the sum of both.",
    "Each site’s epsilon counts everything in that site’s ledger, runs of other federations too, "
    "at that site’s own delta.",
    "Which sites take part, in which rounds, and which codes they answer are not hidden.",
    "Whether a site fits heads without noise for its own use is its own wish. They stay there, "
    "which is their only protection.",
)


def as_json(facts: FederationPrivacy) -> dict[str, Any]:
    """The facts as `privacy.json` holds them."""
    return facts.model_dump(mode="json", by_alias=True)


def write_privacy_report(facts: FederationPrivacy, out: Path) -> tuple[Path, Path]:
    """Write `privacy.html` and `privacy.json` into `out`, atomically; return their paths.

    Raises InputError on a failed write.
    """
    return write_page(out, "privacy", render(facts), as_json(facts))


def render(facts: FederationPrivacy) -> str:
    """The page as text; the same facts give the same page."""
    return render_page(
        TEMPLATE,
        {
            "facts": facts,
            "verdict": verdict(facts),
            "asked": asked(facts),
            "figure": _figure(facts.sites),
            "rows": [_row(site) for site in facts.sites],
            "refused": [row for site in facts.sites for row in _refused(site)],
            "warnings": [(site.name, text) for site in facts.sites for text in site.warnings],
            "not_known": NOT_KNOWN,
        },
    )


def verdict(facts: FederationPrivacy) -> str:
    """The answer in short."""
    number = len(facts.sites)
    if number == 0:
        return "No site has answered in this run yet."
    if not facts.private:
        return (
            "This run trained without differential privacy. What the sites sent may reveal single "
            "patients, and no number limits how much."
        )
    told = [site for site in facts.sites if site.told]
    bounded = [site.last.epsilon for site in told if site.last and site.last.epsilon is not None]
    text = (
        f"This run asked every site for differential privacy per {facts.privacy['unit']}. "
        f"{len(told)} of {number} sites told what they have spent"
    )
    if bounded:
        text += f": epsilon {epsilon_text(min(bounded))} to {epsilon_text(max(bounded))}"
    if len(bounded) < len(told):
        text += f"; {len(told) - len(bounded)} of them say that there is no bound"
    return text + "."


def asked(facts: FederationPrivacy) -> list[tuple[str, str]]:
    """The plan's privacy section, a name and a value a row."""
    plan = facts.privacy
    if not facts.private:
        return [("Differential privacy", "none")]
    if plan["epsilon"] is None:
        noise = f"noise multiplier {plan['noise_multiplier']:g}, the same at every site"
    else:
        noise = (
            f"so much that a site's training, each round once, costs epsilon {plan['epsilon']:g}"
        )
    return [
        ("Mechanism", "DP-SGD over encoder and heads together, at every site by itself"),
        ("Unit", f"one {plan['unit']}, added or removed"),
        ("Noise", noise),
        ("Delta of the plan", delta_text(plan["delta"])),
        ("Clipping norm", f"{plan['clipping_norm']:g}"),
        ("Images of a unit in a step, at most", f"{plan['images_per_unit']}"),
    ]


def _row(site: SitePrivacy) -> dict[str, Any]:
    last = site.last
    row: dict[str, Any] = {"name": site.name, "rounds": f"{len(site.rounds)}", "told": last}
    if last is None:
        return row | {"cells": [DASH] * 6, "head": "not disclosed", "state": ""}
    cap = DASH if last.cap is None else f"{last.cap:g}"
    state = ""
    if last.cap is not None and (last.epsilon is None or last.epsilon >= FULL * last.cap):
        state = "no bound" if last.epsilon is None else "nearly spent"
    return row | {
        "cells": [
            epsilon_text(last.epsilon),
            cap,
            f"{last.delta:g}",
            f"{last.noise_multiplier:g}",
            f"{last.sampling_rate:.4g}",
            f"{last.steps:,}",
        ],
        "head": f"{last.entries}:{last.head}",
        "state": state,
    }


def _refused(site: SitePrivacy) -> list[tuple[str, str, str, str]]:
    """Name, code, meaning and rounds, a row for every code."""
    rounds: dict[str, list[str]] = {}
    for item in site.refused:
        number = "the finish" if item.round is None else str(item.round)
        rounds.setdefault(item.code, []).append(number)
    return [(site.name, code, refusal(code), ", ".join(at)) for code, at in rounds.items()]


def _figure(sites: Sequence[SitePrivacy]) -> dict[str, str] | None:
    """Epsilon as told, over the rounds, one line a site."""
    curves = {
        site.name: [(t.round, t.spent.epsilon) for t in site.told if t.spent.epsilon is not None]
        for site in sites
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure = Figure(figsize=(9.8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        named = number < MOST_SITES
        axes.plot(
            [round_number for round_number, _ in points],
            [epsilon for _, epsilon in points],
            drawstyle="steps-post",
            color=COLOURS[number] if named else "#9aa5ad",
            marker=MARKERS[number] if named else ".",
            markersize=4,
            linewidth=1.6,
            label=short(name) if named else None,
        )
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("round of this run")
    axes.set_ylabel("epsilon, as told", color=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    calm(axes, "y")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=MOST_SITES, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    alt = (
        f"Epsilon as told by {len(curves)} sites over the rounds of this run, one line a site. "
        "The last values are in the table."
    )
    return {"source": figure_source(figure), "alt": alt}
