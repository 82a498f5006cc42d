"""The report of a run: one self-contained HTML page that a physician can read and print.

No script, no outside resource: the two figures are embedded, the rest is text and tables.
Everything that comes from a site or a file is escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import write_bytes
from common.metrics import macro
from common.page import render_page, svg_source
from server.report import tables, words
from server.report.plots import ForestRow, forest, learning_curve
from server.report.summary import Estimate, Lungs, Round, Scores, Summary, read_rounds, read_summary

TEMPLATES = Path(__file__).parent / "templates"
REPORT = "report.html"
CURVES = {"val_macro_auroc": "Findings: mean AUROC", "val_dice": "Lungs: Dice"}

Row = dict[str, str]


def write_report(
    summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], out: Path
) -> Path:
    """Write `report.html` into the folder `out`, atomically; return its path.

    summary: as in `summary.json`; rounds: the lines of `rounds.jsonl`. Their shape is in
    server/report/summary.py, and only `status` is required, so a failed run gets a report too.
    Raises InputError with every problem when they have another shape, or on a failed write.
    """
    page = render(read_summary(summary), read_rounds(rounds))
    path = out / REPORT
    write_bytes(path, page.encode())
    return path


def render(summary: Summary, rounds: Sequence[Round]) -> str:
    """The page as text."""
    context = {
        "summary": summary,
        "rounds": rounds,
        "title": words.title(summary),
        "happened": words.what_happened(summary),
        "helped": words.did_it_help(summary),
        "pooled": words.against_pooled(summary),
        "cards": _cards(summary),
        "best_alone": tables.best_alone(summary)[0],
        "findings": tables.finding_rows(summary),
        "forest": _forest(summary),
        "hospitals": tables.hospital_rows(summary),
        "curve": _curve(rounds),
        "cost": tables.cost(summary, rounds),
        "troubles": tables.troubles(rounds),
        "lungs": _lungs(summary.lungs or Lungs()),
        "cross": tables.cross(summary),
        "thresholds": tables.threshold_rows(summary),
        "groups": tables.groups(summary.subgroups),
        "identity": tables.identity(summary),
        "limits": words.limits(summary),
        "glossary": words.GLOSSARY,
    }
    return render_page(TEMPLATES / "report.html.j2", context)


def _cards(summary: Summary) -> list[Row]:
    """The numbers at the top of the page."""
    alone = macro(words.local_means(summary).values())
    best, scores = tables.best_alone(summary)
    council = summary.federated.council.macro()
    cards = [
        {"name": "Council, mean AUROC", "value": words.score(council.value), "note": ""},
        {"name": "Hospitals alone, mean", "value": words.score(alone), "note": ""},
    ]
    if council.low is not None and council.high is not None:
        cards[0]["note"] = f"95 % interval {council.low:.3f} to {council.high:.3f}"
    if scores is not None:
        cards[1]["note"] = f"best: {best}, {words.score(scores.macro_auroc)}"
    if summary.pooled is not None:
        value = words.score(summary.pooled.macro_auroc)
        cards.append({"name": "All data pooled", "value": value, "note": "not a federation"})
    if summary.lungs is not None:
        note = f"{words.count(summary.lungs.images)} images" if summary.lungs.images else ""
        value = words.score(summary.lungs.dice)
        cards.append({"name": "Lungs, Dice", "value": value, "note": note})
    return cards


def _lungs(lungs: Lungs) -> Row:
    dice = Estimate(value=lungs.dice, low=lungs.dice_low, high=lungs.dice_high)
    iou = Estimate(value=lungs.iou, low=lungs.iou_low, high=lungs.iou_high)
    return {"dice": words.interval(dice), "iou": words.interval(iou)}


def _forest(summary: Summary) -> Row | None:
    """The forest plot, best finding on top; None when the council has no number."""
    council, local = summary.federated.council, words.local_means(summary)
    pooled = summary.pooled or Scores()
    rows = [
        ForestRow(
            words.finding_name(finding),
            estimate,
            local.get(finding),
            pooled.value(finding),
        )
        for finding, estimate in council.auroc.items()
        if estimate.value is not None
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: row.council.value or 0.0, reverse=True)
    best, worst = rows[0], rows[-1]
    alt = (
        f"Forest plot of the council's AUROC for {len(rows)} findings, from {best.label} "
        f"({words.score(best.council.value)}) down to {worst.label} "
        f"({words.score(worst.council.value)}). All values are in table 1."
    )
    alone = macro(local.values())
    rows.append(ForestRow("Mean", council.macro(), alone, pooled.macro_auroc))
    return {"source": svg_source(forest(rows)), "alt": alt}


def _curve(rounds: Sequence[Round]) -> Row | None:
    """Validation scores over the rounds; None when no site reported any."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for line in rounds:
        for name, site in line.sites.items():
            for metric, title in CURVES.items():
                value = site.metrics.get(metric)
                if value is not None:
                    panels.setdefault(title, {}).setdefault(name, {})[line.round] = value
    if not panels:
        return None
    parts = []
    for title, sites in panels.items():
        first, last = (macro(v[pick(v)] for v in sites.values()) for pick in (min, max))
        parts.append(f"{title} from {words.score(first)} to {words.score(last)}")
    alt = f"Validation scores of every hospital by round; means: {'; '.join(parts)}."
    ordered = {title: panels[title] for title in CURVES.values() if title in panels}
    return {"source": svg_source(learning_curve(ordered)), "alt": alt}
