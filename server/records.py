"""What is written down about a round, and the score by which encoders are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import read_json_lines
from common.errors import REFUSALS, UpdateRejectedError
from common.update import Update
from server.firewall import update_norm
from server.run_folder import Best
from server.shares import capped_shares

SCORES = ("val_macro_auroc", "val_dice")  # what chooses the best encoder, in this order
BEST_QUORUM = 3  # scores, whose median no single one can move beyond the others'
HEAVY = 0.9  # of a round's weight: more than one hospital is likely to have


@dataclass(eq=False)
class Answers:
    """What came of asking all sites one thing. Keys are site names.

    fits: training steps that a refusing site's budget still allows, where it says so.
    unasked: who sent an answer more than were asked for.
    """

    updates: list[Update] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: list[UpdateRejectedError] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    fits: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unasked: set[str] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0

    def record(self) -> dict[str, Any]:
        """The part of a line in rounds.jsonl that says what did not go well, and the bytes."""
        return {
            "rejected": [
                {"site": r.site, "code": r.code, "detail": r.detail}
                for r in sorted(self.rejected, key=lambda error: error.site)
            ],
            "failed": [
                {"site": site, "code": code}
                | ({"fits": self.fits[site]} if site in self.fits else {})
                for site, code in sorted(self.failed.items())
            ],
            "missing": self.missing,
            "unasked": sorted(self.unasked),
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
        }

    def _words(self, site: str) -> str:
        if site in self.fits:
            return f"its budget allows {self.fits[site]} more steps"
        policy = self.failed[site] in REFUSALS
        return "refused by the site's policy" if policy else "error at the site"

    def refused(self) -> bool:
        """Whether the sites' own policies and budgets are all that stood in the way."""
        refused = all(code in REFUSALS for code in self.failed.values())
        return bool(self.failed) and refused and not self.rejected and not self.missing

    def troubles(self, timeout: float) -> str:
        """Every site that gave nothing useful, by name and reason, in one line."""
        parts = [
            f"{site}: {code} ({self._words(site)})" for site, code in sorted(self.failed.items())
        ]
        parts += [f"{r.site}: {r.code} ({r.detail})" for r in self.rejected]
        parts += [f"{site}: no answer within {timeout:g} s" for site in self.missing]
        return "; ".join(parts) or "no site answered"


def round_record(
    number: int, good: Sequence[Update], answers: Answers, seconds: float
) -> dict[str, Any]:
    """A line of rounds.jsonl."""
    sites = {
        update.site: {
            "seconds": update.seconds,
            "weight": update.weight,
            "norm": update_norm(update.delta),
            "covers": list(update.covers),
            "metrics": update.metrics,
            "spent": None if update.spent is None else asdict(update.spent),
        }
        for update in sorted(good, key=lambda update: update.site)
    }
    score = mean_score(good)
    return {
        "round": number,
        "status": "done",
        "seconds": seconds,
        "sites": sites,
        "score": None if score is None else {"metric": score[0], "mean": score[1]},
        "not_applied": None,  # or why the model stayed as it was
        **answers.record(),
    }


def first_weights(file: Path) -> dict[str, float]:
    """What each site weighed when it was first accepted, from the finished rounds.jsonl."""
    weights: dict[str, float] = {}
    for record in read_json_lines(file):
        for site, said in record["sites"].items():
            weights.setdefault(site, said["weight"])
    return weights


def accepted_norms(file: Path) -> list[float]:
    """L2 norms of all updates that have changed the model, from the finished rounds.jsonl."""
    return [
        said["norm"]
        for record in read_json_lines(file)
        if record["not_applied"] is None
        for said in record["sites"].values()
    ]


def heavy_site(updates: Sequence[Update], max_share: float = 0.5) -> str | None:
    """A warning that names the site that claims more than HEAVY of the round's weight, if any."""
    heaviest = max(updates, key=lambda update: update.weight)
    claimed = heaviest.weight / sum(update.weight for update in updates)
    if len(updates) == 1 or claimed <= HEAVY:
        return None
    given = max(capped_shares([update.weight for update in updates], max_share))
    return f"  {heaviest.site}: claims {claimed:.1%} of the weight of this round, has {given:.1%}"


def mean_score(updates: Sequence[Update]) -> tuple[str, float] | None:
    """The round's validation score: its metric, and the plain mean over the sites that have it.

    It speaks of the models that the sites trained in this round, just before averaging.
    """
    for metric in SCORES:
        values = [update.metrics[metric] for update in updates if metric in update.metrics]
        if values:
            return metric, float(np.mean(sorted(values)))
    return None


def better(best: Best | None, number: int, updates: Sequence[Update]) -> Best | None:
    """The better of the best round so far and this one; a tie keeps the earlier.

    Rounds are compared by the median of the sites' scores, where BEST_QUORUM or more report one:
    then no site's own word chooses. A round with fewer is not compared.
    """
    for metric in SCORES:
        values = [update.metrics[metric] for update in updates if metric in update.metrics]
        if len(values) >= BEST_QUORUM:
            score = float(np.median(values))
            rank = SCORES.index(metric)
            if (
                best is None
                or rank < SCORES.index(best.metric)
                or (metric == best.metric and score > best.score)
            ):
                return Best(number, metric, score)
            return best
    return best


def progress_line(record: Mapping[str, Any], rounds: int) -> str:
    """The line that a person reads after each round."""
    score = record["score"]
    shown = "" if score is None else f", mean {score['metric']} {score['mean']:.4f}"
    megabytes = (record["bytes_down"] + record["bytes_up"]) / 1e6
    return (
        f"round {record['round']}/{rounds}: {record['seconds']:.1f} s, "
        f"{len(record['sites'])} sites ok, {len(record['rejected'])} rejected, "
        f"{len(record['failed'])} failed, {len(record['missing'])} missing{shown}, "
        f"{megabytes:.1f} MB"
    )
