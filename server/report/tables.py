"""The tables of the report, as rows of text ready for its template. Undefined is a dash."""

from collections.abc import Sequence
from typing import Any

from common.findings import FINDINGS
from common.metrics import macro
from server.report import words
from server.report.summary import Cell, Round, Scores, Subgroup, Summary
from server.report.words import DASH

Row = dict[str, Any]
MOST_ROUNDS = 8  # round numbers listed for one trouble


def finding_names(summary: Summary) -> list[str]:
    """The 14 findings, then any further ones that the summary has."""
    return list(dict.fromkeys([*FINDINGS, *summary.federated.council.auroc]))


def best_alone(summary: Summary) -> tuple[str, Scores | None]:
    """The hospital alone with the highest macro AUROC."""
    scored = {n: s for n, s in summary.local_only.items() if s.macro_auroc is not None}
    if not scored:
        return "", None
    name = max(scored, key=lambda n: scored[n].macro_auroc or 0.0)
    return name, scored[name]


def finding_rows(summary: Summary) -> list[Row]:
    """AUROC per finding, and the mean in the last row."""
    council, personal = summary.federated.council, summary.federated.personal.values()
    local, alone = words.local_means(summary), best_alone(summary)[1] or Scores()
    pooled = summary.pooled or Scores()
    rows, columns = [], []
    for finding in finding_names(summary):
        estimate = council.auroc.get(finding)
        plain = (
            local.get(finding),
            alone.value(finding),
            words.column_mean(personal, finding),
            pooled.value(finding),
        )
        columns.append(plain)
        rows.append(
            _finding_row(
                words.finding_name(finding),
                words.count(estimate.positives if estimate else None),
                plain,
                words.interval(estimate) if estimate else DASH,
            )
            | {"key": finding}
        )
    means = tuple(macro(values) for values in zip(*columns, strict=True))
    whole = words.interval(council.macro())
    rows.append(_finding_row("Mean", "", means, whole) | {"key": "mean"})
    return rows


def _finding_row(name: str, positives: str, plain: Sequence[float | None], council: str) -> Row:
    local, best, personal, pooled = (words.score(value) for value in plain)
    return {
        "name": name,
        "positives": positives,
        "cells": (local, best, personal),
        "council": council,
        "pooled": pooled,
    }


def hospital_rows(summary: Summary) -> list[Row]:
    """What every hospital holds, and how its own model does alone and in the federation."""
    rows = []
    for name, facts in summary.sites.items():
        alone = summary.local_only.get(name, Scores())
        personal = summary.federated.personal.get(name, Scores())
        annotates = ", ".join(words.finding_name(finding) for finding in facts.annotates)
        if set(facts.annotates) >= set(FINDINGS):
            annotates = f"all {len(FINDINGS)}"
        rows.append(
            {
                "name": name,
                "numbers": (
                    words.count(facts.patients),
                    words.count(facts.images),
                    words.percent(facts.ap_share),
                    words.count(facts.labelled),
                    words.count(facts.masks),
                    words.score(alone.macro_auroc),
                    words.score(personal.macro_auroc),
                ),
                "annotates": annotates or "none",
            }
        )
    return rows


def cost(summary: Summary, rounds: Sequence[Round]) -> list[tuple[str, str]]:
    """What a round took, in time and bytes."""
    rows = [("Whole run", words.duration(summary.seconds))]
    rows.append(("A round, on average", words.duration(macro(line.seconds for line in rounds))))
    names = dict.fromkeys(name for line in rounds for name in line.sites)
    for name in names:
        trained = macro(line.sites[name].seconds for line in rounds if name in line.sites)
        rows.append((f"Training at {name}, each round", words.duration(trained)))
    up, down = macro(line.bytes_up for line in rounds), macro(line.bytes_down for line in rounds)
    rows.append(("Sent by the hospitals, each round", words.size(up)))
    rows.append(("Sent to the hospitals, each round", words.size(down)))
    rows.append(("Both together, each round", words.size(summary.bytes_per_round)))
    return rows


def troubles(rounds: Sequence[Round]) -> list[Row]:
    """Who gave nothing useful, in which rounds and why; one row per hospital and reason.

    A round that left the model as it was is a row of all hospitals.
    """
    found: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for line in rounds:
        if line.not_applied is not None:
            key = ("all", "round not applied", line.not_applied.code)
            found.setdefault(key, []).append((line.round, line.not_applied.detail))
        for rejected in line.rejected:
            key = (rejected.site, "update rejected", rejected.code)
            found.setdefault(key, []).append((line.round, rejected.detail))
        for failed in line.failed:
            key = (failed.site, "failed at the hospital", failed.code)
            found.setdefault(key, []).append((line.round, failed.detail))
        for site in line.missing:
            found.setdefault((site, "no answer in time", ""), []).append((line.round, ""))
    return [
        {
            "site": site,
            "what": what,
            "code": code or DASH,
            "detail": "; ".join(filter(None, (words.REASONS.get(code), cases[-1][1]))) or DASH,
            "rounds": _listed([number for number, _ in cases]),
        }
        for (site, what, code), cases in found.items()
    ]


def _listed(numbers: Sequence[int]) -> str:
    text = ", ".join(str(number) for number in numbers[:MOST_ROUNDS])
    return text if len(numbers) <= MOST_ROUNDS else f"{text} … ({len(numbers)} in all)"


def cross(summary: Summary) -> Row | None:
    """The cross-site matrix with a shade per cell; None without one.

    A hospital without any number, as model and as population, is named below instead.
    """
    if not summary.cross_site:
        return None
    everyone = list(enumerate(summary.cross_names()))
    kept = [(n, name) for n, name in everyone if _measured(summary.cross_site, n)]
    lines = []
    for row, model in kept:
        cells = []
        for column, _ in kept:
            value = summary.cross_site[row][column]
            own = row == column
            cells.append({"text": words.score(value), "shade": _shade(value), "own": own})
        lines.append({"name": model, "cells": cells})
    left_out = ", ".join(name for n, name in everyone if (n, name) not in kept)
    return {"names": [name for _, name in kept], "lines": lines, "left_out": left_out}


def _measured(matrix: Sequence[Sequence[float | None]], number: int) -> bool:
    """Whether a hospital has a number as model (row) or as population (column)."""
    return any(value is not None for value in [*matrix[number], *(row[number] for row in matrix)])


def _shade(value: float | None) -> str:
    """White at chance level, blue at 1, light enough for dark text; grey when undefined."""
    if value is None:
        return "#f1f3f5"
    part = min(max((value - 0.5) / 0.5, 0.0), 1.0)
    red, green, blue = (round(255 + part * (end - 255)) for end in (126, 181, 222))
    return f"#{red:02x}{green:02x}{blue:02x}"


def threshold_rows(summary: Summary) -> list[Row]:
    """Frozen thresholds, what they do on the test, and calibration; [] without either."""
    if not summary.operating_points and not summary.calibration:
        return []
    rows = []
    for finding in finding_names(summary):
        point, fit = summary.operating_points.get(finding), summary.calibration.get(finding)
        rates = (point.sensitivity, point.specificity, point.ppv, point.npv) if point else ()
        errors = (fit.ece, fit.brier) if fit else (None, None)
        rows.append(
            {
                "name": words.finding_name(finding),
                "numbers": [
                    words.threshold(point.threshold) if point else DASH,
                    *(words.score(value) for value in rates or (None,) * 4),
                    *(words.score(value) for value in errors),
                ],
            }
        )
    return rows


def groups(table: Sequence[Subgroup]) -> Row | None:
    """AUROC, and the rates at the frozen threshold, by finding and subgroup; None without any."""
    if not table:
        return None
    findings = dict.fromkeys([*FINDINGS, *(name for group in table for name in group.auroc)])
    cells = {finding: [group.auroc.get(finding) for group in table] for finding in findings}
    average = [words.score(group.macro_auroc) for group in table]
    rates = [
        {"name": words.finding_name(finding), "cells": [_rates(cell) for cell in row]}
        for finding, row in cells.items()
    ]
    measured = any(cell and cell.sensitivity is not None for row in cells.values() for cell in row)
    return {
        "columns": [
            {"kind": group.kind, "label": group.label, "images": words.count(group.images)}
            for group in table
        ],
        "auroc": [
            *(
                {
                    "name": words.finding_name(finding),
                    "cells": [words.score(cell.value if cell else None) for cell in row],
                }
                for finding, row in cells.items()
            ),
            {"name": "Mean", "cells": average},
        ],
        "rates": rates if measured else [],
    }


def _rates(cell: Cell | None) -> str:
    if cell is None or cell.sensitivity is None or cell.specificity is None:
        return DASH
    return f"{100 * cell.sensitivity:.0f} / {100 * cell.specificity:.0f}"


def identity(summary: Summary) -> list[tuple[str, str]]:
    """What names this run: plan, model, encoder, data."""
    plan = summary.plan or {}
    keys = (
        ("Plan", ("name",)),
        ("Network", ("model", "backbone")),
        ("Image side, pixels", ("model", "image_size")),
        ("Heads", ("heads",)),
        ("Aggregation", ("federation", "strategy", "name")),
        ("Weighting of the hospitals", ("federation", "weighting")),
        ("Seed", ("seed",)),
    )
    rows = [("Status", summary.status), ("Data", summary.data.name or DASH)]
    for label, path in keys:
        value: Any = plan
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            rows.append((label, str(value)))
    rows.append(("Plan, SHA-256", summary.plan_sha256 or DASH))
    rows.append(("Encoder, SHA-256", summary.encoder_sha256 or DASH))
    return rows
