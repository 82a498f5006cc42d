"""The audit of a site's mechanism: plays, what they show, and what is proven by it.

What leaves is looked at in three ways. Keys, codes and sizes must be the same in every play.
Times are guessed from in plays with a deadline, of a target that takes many times as long as the
others. Updates are guessed from in two ways: by their projection on the target's direction, and
by whichever other number tells best. A site keeps its promise at every delta at once, and of few
plays those at large deltas say most; so the bounds are compared at several.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from client.privacy.accounting import Charge, accountant, epsilon
from common.errors import InputError, Problem
from simulations.privacy.bound import Guesses, at_least
from simulations.privacy.membership.attack import Opening
from simulations.privacy.membership.game import guessed
from simulations.privacy.membership.mechanism import Mechanism
from simulations.privacy.membership.plays import (
    TICK,
    Seen,
    different,
    late,
    shown,
    watch_clock,
    watch_updates,
)

CONFIDENCE = 0.95
DELTAS = (1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)  # beside the site's own
CHANCE = 1e-4  # that times which tell nothing are found to tell
MOST_PLAYS, MOST_STEPS = 100_000, 10_000
LEAST_CLOCK, MOST_CLOCK = 14, 40  # 14 right of 14 come by chance in 1 of 16,384 games


@dataclass(frozen=True)
class Effort:
    """How much is played.

    plays: that look at updates, half of them with the target. steps: the most of a round; more
    are left out.
    """

    plays: int = 140
    steps: int = 20
    confidence: float = CONFIDENCE

    @property
    def clock(self) -> int:
        """Plays that count for times, after as many that are told: they take a deadline each.

        0 where they would be too few to tell anything.
        """
        return 0 if self.plays < 10 * LEAST_CLOCK else min(self.plays // 10, MOST_CLOCK)

    def checked(self, rounds: int, charges: int) -> "Effort":
        """Itself. Raises InputError with everything that is out of range."""
        ranges = (
            ("--plays", self.plays, 20, MOST_PLAYS),
            ("--steps", self.steps, 1, MOST_STEPS),
            ("--rounds", rounds, 1, charges),
        )
        problems = [
            Problem("audit", option, f"{value}", f"{low} to {high}", "Change it.")
            for option, value, low, high in ranges
            if not low <= value <= high
        ]
        if problems:
            raise InputError(problems)
        return self


def audit_mechanism(
    mechanism: Mechanism,
    opening: Opening,
    effort: Effort,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Attack one mechanism. Returns a dict that is ready for JSON; it is random, like the noise.

    advance: called after every play. leaks: what was found, in words; holds: whether nothing
    was. epsilon_lower: at the site's delta and `confidence`; accounted: what a play's ledger
    charged; both again at every delta in `curve`. Raises InputError for settings out of range,
    BlindError when the played sites do not answer.
    """
    effort.checked(opening.rounds, mechanism.charges)
    started = time.monotonic()
    played = replace(mechanism, steps=min(mechanism.steps, effort.steps))
    with TemporaryDirectory(prefix="consilium-audit-") as place:
        loud = watch_updates(Path(place), played, opening, effort.plays, advance)
        differ, times = different(loud), None
        if effort.clock:
            clock, deadline = watch_clock(Path(place), played, opening, effort.clock, advance)
            differ, times = [*differ, *different(clock)], timing(clock, deadline)
    scores = np.array([loud.attack.score(loud.answers(n)) for n in range(effort.plays)])
    ways = {name: Guesses.of(scores > line, loud.coins) for name, line in loud.attack.lines.items()}
    other = guessed([shown(loud.answers(n)) for n in range(effort.plays)], loud.coins)
    ways[f"what told most: answer {other.feature}"] = other.guesses
    curve = bounds(list(ways.values()), loud.charges, opening.policy.delta, effort.confidence)
    leaks = [f"{what} tell whether the patient is there" for what in differ]
    if times is not None and times["right"] > times["allowed"]:
        leaks.append("the times of answers tell whether the patient is there")
    over = [point for point in curve if point["lower"] > point["accounted"]]
    if over:
        worst = max(over, key=lambda point: float(point["lower"] - point["accounted"]))
        leaks.append(
            f"the {_WHAT[mechanism.purpose]} shows epsilon of at least {worst['lower']:.2f} at "
            f"delta {worst['delta']:g}, but only {worst['accounted']:.2f} is charged"
        )
    return {
        "mechanism": _as_json(mechanism, played, opening),
        "epsilon_lower": curve[0]["lower"],
        "accounted": curve[0]["accounted"],
        "delta": opening.policy.delta,
        "confidence": effort.confidence,
        "curve": curve,
        "holds": not leaks,
        "leaks": leaks,
        "words": {"plays": plays_of(effort), "differ": differ},
        "times": times,
        "guesses": [{"by": name, "right": each.right, **vars(each)} for name, each in ways.items()],
        "plays": effort.plays,
        "length": loud.attack.length,
        "lines": loud.attack.lines,
        "scores": {
            "with": np.sort(scores[loud.coins]).round(4).tolist(),
            "without": np.sort(scores[~loud.coins]).round(4).tolist(),
        },
        "accountant": accountant(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }


_WHAT = {"training": "update", "metrics": "noised score"}


def plays_of(effort: Effort) -> int:
    """How often `advance` is called for one mechanism."""
    return effort.plays + 2 * effort.clock


def bounds(
    ways: Sequence[Guesses], charges: Sequence[Charge], delta: float, confidence: float
) -> list[dict[str, float]]:
    """What guesses prove at `delta`, then at DELTAS: delta, lower, accounted.

    Several ways to guess share the error (Bonferroni); the best one counts.
    """
    each = 1.0 - (1.0 - confidence) / len(ways)
    curve = []
    for at in (delta, *(other for other in DELTAS if other > delta)):
        lower = max(at_least(guesses, at, each) for guesses in ways)
        curve.append({"delta": at, "lower": lower, "accounted": epsilon(charges, at)})
    return curve


def timing(clock: Seen, deadline: float) -> dict[str, Any]:
    """What plays with a deadline, in seconds, tell by their times.

    right of plays: guesses that count; more than `allowed` come by chance in one of 10,000 games.
    earliest, latest: seconds from the deadline.
    """
    outcome = guessed([late(each, deadline) for each in clock.replies], clock.coins)
    off = [reply.seconds - deadline for replies in clock.replies for reply in replies]
    return {
        "plays": outcome.plays,
        "right": outcome.right,
        "allowed": outcome.allowed(0.0, CHANCE),
        "deadline": round(deadline, 3),
        "resolution": TICK,
        "earliest": round(min(off), 4),
        "latest": round(max(off), 4),
    }


def _as_json(mechanism: Mechanism, played: Mechanism, opening: Opening) -> dict[str, Any]:
    like = opening.like
    return {
        "text": mechanism.text,
        "purpose": mechanism.purpose,
        "unit": mechanism.unit,
        "noise_multiplier": mechanism.noise_multiplier,
        "sampling_rate": mechanism.sampling_rate,
        "clipping_norm": mechanism.clipping_norm,
        "steps": mechanism.steps,
        "charges": mechanism.charges,
        "plans": list(mechanism.plans),
        "steps_played": played.steps,
        "rounds_played": opening.rounds,
        "engine": opening.engine,
        "heads": "shared" if like is None else like.heads,
        "bridge": "off" if like is None else like.model.bridge,
        "semi_supervision": "off" if like is None else like.semi_supervision.mode,
        "views": 1 if like is None else like.privacy.views,
    }
