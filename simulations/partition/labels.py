"""Partial labels: which findings a hospital annotates, and whose labels may be used."""

import numpy as np
import pandas as pd

from common.errors import Problem
from common.findings import FINDINGS
from common.simulated import PartitionPlan
from simulations.partition.result import cannot


def label_problems(spec: PartitionPlan, sites: int) -> list[Problem]:
    """What keeps label_fraction and findings_per_site from being met."""
    problems = []
    if spec.label_fraction is not None and len(spec.label_fraction) != sites:
        found = f"{len(spec.label_fraction)} numbers"
        step = "Give as many fractions as there are sites."
        problems.append(cannot("partition.label_fraction", found, f"{sites}, one a site", step))
    if spec.findings_per_site and sites * spec.findings_per_site[1] < len(FINDINGS):
        low, high = spec.findings_per_site
        needed = -(-len(FINDINGS) // sites)
        found = f"[{low}, {high}], so that {sites} sites annotate at most {sites * high} findings"
        allowed = f"an upper number of at least {needed}, to cover all {len(FINDINGS)}"
        step = "Raise the upper number, or ask for more sites."
        problems.append(cannot("partition.findings_per_site", found, allowed, step))
    return problems


def share_findings(
    names: list[str], per_site: tuple[int, int] | None, rng: np.random.Generator
) -> dict[str, tuple[str, ...]]:
    """Hospital -> the findings that it annotates; together they cover all of them.

    `per_site` (low, high), None for all findings everywhere: each hospital's number is drawn
    between the two, and raised where the numbers drawn would not cover. Each finding first
    goes to the hospital with most room left; then the rest of the room is filled at random.
    """
    if per_site is None:
        return dict.fromkeys(names, FINDINGS)
    low, high = per_site
    room = rng.integers(low, high + 1, size=len(names))
    while room.sum() < len(FINDINGS):
        room[rng.choice(np.flatnonzero(room < high))] += 1
    chosen: list[set[str]] = [set() for _ in names]
    for finding in rng.permutation(len(FINDINGS)):
        left = room - np.array([len(findings) for findings in chosen])
        chosen[rng.choice(np.flatnonzero(left == left.max()))].add(FINDINGS[finding])
    for findings, number in zip(chosen, room, strict=True):
        others = [finding for finding in FINDINGS if finding not in findings]
        extra = rng.choice(len(others), size=number - len(findings), replace=False)
        findings.update(others[position] for position in extra)
    return {
        name: tuple(finding for finding in FINDINGS if finding in findings)
        for name, findings in zip(names, chosen, strict=True)
    }


def hide_labels(rows: pd.DataFrame, fraction: float, rng: np.random.Generator) -> "pd.Series[bool]":
    """Per row (bool): may its labels be used? Only training patients lose theirs.

    rows: DataFrame(patient, split, labelled). `fraction` of the training patients that have
    labels keep them (at least one patient if the fraction is not 0), whole patients at a time.
    """
    training = rows["split"] == "train"
    holders = np.unique(rows.loc[training & rows["labelled"], "patient"].to_numpy(dtype=object))
    keep = int(np.floor(fraction * len(holders) + 0.5))
    keep = min(len(holders), max(keep, 1 if fraction > 0 else 0))
    kept = rng.permutation(holders)[:keep]
    return rows["labelled"] & (~training | rows["patient"].isin(kept))
