"""What a plan would cost this site from today's spend, worked out before anything is touched."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.ledger import Entry, Ledger, charge_of, promised, reserves, rounds_charged
from client.policy import check_delta, check_noise, check_plan
from client.privacy.accounting import Charge, epsilon, most_steps
from client.privacy.budget import Asked, asked, declared_units, scores_until
from client.report import spend
from client.report.collect import has_ledger
from client.report.facts import Fact
from client.settings import SiteFolder
from common.errors import InputError, Problem, RefusedError
from common.plan import Plan

MOST_ROWS = 16  # rounds shown of a longer plan


class After(Fact):
    """Epsilon after a round of the plan, with the noised scores up to it; None: no bound."""

    round: int
    epsilon: float | None


class Projection(Fact):
    """The plan's cost at the policy's delta. Nothing is spent by working it out.

    charged_rounds: rounds of this plan that the ledger already holds; the projection begins
    after them. binds_in_round: the first round that the cap would refuse, None if none.
    fits_steps, fits_rounds: how much of the rest the cap allows (None without a cap).
    refusal, refusal_code: why the policy turns the plan down apart from its cost, if it does.
    """

    site: str
    plan_name: str
    plan_sha256: str
    unit: str
    delta: float
    cap: float | None
    noise_multiplier: float
    sampling_rate: float
    clipping_norm: float
    steps_per_round: int
    rounds: int
    charged_rounds: int
    scores_charged: bool
    spent: float | None
    after: tuple[After, ...]
    binds_in_round: int | None
    fits_steps: int | None
    fits_rounds: int | None
    whole_plan_only: bool
    refusal_code: str | None
    refusal: str | None

    @property
    def accepted(self) -> bool:
        """Whether the site would begin the plan."""
        if self.refusal is not None or self.cap is None:
            return False
        begun = self.charged_rounds > 0
        return self.binds_in_round is None or (
            (begun or not self.whole_plan_only) and self.fits_rounds != 0
        )


@dataclass(frozen=True)
class _Costs:
    """The past, and what each further round adds."""

    spent: Sequence[Charge]
    asked: Asked
    first: int
    score: Charge | None
    plan: Plan
    delta: float
    whole: bool

    def scores(self, rounds: int) -> int:
        """Noised scores in the next so many rounds; the finish, after the last, has its own."""
        done = self.first - 1
        return scores_until(self.plan, done + rounds) - scores_until(self.plan, done)

    def epsilon(self, rounds: int, scores: int) -> float:
        """Epsilon after so many further rounds and scores."""
        extra = [self.asked.charge(rounds)] if rounds else []
        if self.score is not None and scores:
            extra.append(Charge(self.score.noise_multiplier, self.score.sampling_rate, scores))
        return epsilon([*self.spent, *extra], self.delta)

    def after(self, rounds: int) -> float:
        """Epsilon after so many further rounds with their scores."""
        return self.epsilon(rounds, self.scores(rounds))

    def refused(self, rounds: int, cap: float) -> bool:
        """Whether the cap turns down the training of the last of so many further rounds.

        A plan that must fit as a whole is turned down for its last scores, too.
        """
        return self.epsilon(rounds, self.scores(rounds if self.whole else rounds - 1)) > cap


def project(folder: SiteFolder, plan: Plan, plan_file: Path) -> Projection:
    """Project a private plan. plan_file: where it came from, for messages.

    Raises InputError for a plan without privacy, RefusedError when the site has not declared
    its number of units, LedgerError when the ledger is not in order.
    """
    settings, policy = folder.settings, folder.settings.policy
    if plan.privacy.mode == "off":
        found, allowed = "off", "dp-sgd: without noise there is no epsilon to project"
        step = f"Give a private plan. (This site’s policy for others: {policy.non_private}.)"
        raise InputError(Problem(str(plan_file), "key 'privacy.mode'", found, allowed, step))
    needs = asked(plan, settings)
    entries = Ledger(folder.path / settings.ledger).entries() if has_ledger(folder) else []
    done = max(rounds_charged(entries, plan.sha256), default=0)
    left = max(0, needs.rounds - done)
    score = Charge(policy.metrics_noise, 1.0, 1) if policy.metrics == "noised" else None
    charges = [charge_of(entry) for entry in reserves(entries)]
    whole = policy.join == "whole-plan" and done == 0
    costs = _Costs(charges, needs, done + 1, score, plan, policy.delta, whole)
    # A plan that must fit as a whole must leave to others what they were promised.
    kept = promised(entries, plan.sha256, policy.promise_days) if whole else []
    judged = replace(costs, spent=[*charges, *kept])
    binds = None if policy.epsilon is None else _binding(judged, left, policy.epsilon)
    fits_steps = None
    if policy.epsilon is not None:
        fits_steps = most_steps(judged.spent, needs.charge(left), policy.delta, policy.epsilon)
    code, reason = _refusal(folder, plan, needs, entries)
    return Projection(
        site=settings.name,
        plan_name=plan.name,
        plan_sha256=plan.sha256,
        unit=needs.unit,
        delta=policy.delta,
        cap=policy.epsilon,
        noise_multiplier=needs.noise_multiplier,
        sampling_rate=needs.sampling_rate,
        clipping_norm=needs.clipping_norm,
        steps_per_round=needs.steps_per_round,
        rounds=needs.rounds,
        charged_rounds=done,
        scores_charged=score is not None,
        spent=spend.finite(costs.epsilon(0, 0)),
        after=tuple(
            After(round=done + k, epsilon=spend.finite(costs.after(k))) for k in _shown(left, binds)
        ),
        binds_in_round=None if binds is None else done + binds,
        fits_steps=fits_steps,
        fits_rounds=None if policy.epsilon is None else (left if binds is None else binds - 1),
        whole_plan_only=policy.join == "whole-plan",
        refusal_code=code,
        refusal=reason,
    )


def _binding(costs: _Costs, left: int, cap: float) -> int | None:
    """The first of the further rounds (1, 2, ...) that the cap refuses, None if none."""
    if left == 0 or not costs.refused(left, cap):
        return None
    return _first(lambda rounds: costs.refused(rounds, cap), left)


def _first(holds: Callable[[int], bool], known: int) -> int:
    """The smallest number from 1 for which something that stays true is true; known: one such."""
    low, high = 0, known
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _shown(left: int, binds: int | None) -> list[int]:
    """Which of the further rounds are shown: all of a few, else some, and those at the cap."""
    step = max(1, math.ceil(left / MOST_ROWS))
    near = set() if binds is None else {binds - 1, binds}
    ends = {1, left} if left else set()
    return sorted(({*range(step, left + 1, step)} | near | ends) - {0})


def _refusal(
    folder: SiteFolder, plan: Plan, needs: Asked, entries: Sequence[Entry]
) -> tuple[str | None, str | None]:
    """Code and message when policy or ledger turn the plan down, whatever it costs."""
    policy = folder.settings.policy
    try:
        check_plan(policy, plan)
        check_noise(policy, needs.noise_multiplier)
        check_delta(policy, plan, declared_units(folder.settings, plan))
    except RefusedError as error:
        return error.code, str(error)
    if entries and entries[0].body["unit"] != needs.unit:
        counts = entries[0].body["unit"]
        return "unit", f"plan: it protects one {needs.unit}; this site's ledger counts {counts}s"
    return None, None
