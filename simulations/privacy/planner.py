"""What privacy costs a site, from four public numbers: noise, steps, and how loud the noise is.

Needs no torch and no data. Accounting: client/privacy/accounting.py, add/remove one patient,
Poisson sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from client.privacy.accounting import (
    Charge,
    accountant,
    epsilon,
    most_steps,
    quick_noise,
    solve_noise,
)
from common.errors import InputError, Problem

TARGETS = (1.0, 3.0, 8.0)  # epsilon
GIVEN = "the noise given"
MOST_PLANS = 10  # steps within a cap are counted up to this many times the plan's own
CURVE_POINTS, BATCHES = 8, 2  # of the figures; batches: doublings to either side

# 1e4 x noise multiplier / batch of all 75,312 training images of NIH ChestX-ray14 pooled: 30
# epochs in batches of 4,096, delta 1/(10 N), at epsilon 8, 3 and 1; a test works them out anew.
POOLED = {8.0: 2.7, 3.0: 5.3, 1.0: 13.5}


@dataclass(frozen=True)
class Question:
    """A site and what a plan asks of it.

    patients: of its training split. rounds, steps (a round), batch (patients a step, on
    average), clip (L2 norm): of the plan. delta: None is 1 / (10 patients), rounded down to one
    digit. cap: a lifetime epsilon. noise: a noise multiplier to try.
    """

    patients: int
    rounds: int
    steps: int
    batch: int
    delta: float | None = None
    clip: float = 1.0
    cap: float | None = None
    noise: float | None = None

    @property
    def rate(self) -> float:
        """The chance of a patient to be in a step."""
        return min(1.0, self.batch / self.patients)

    @property
    def at_delta(self) -> float:
        """The delta that counts."""
        return usual_delta(self.patients) if self.delta is None else self.delta

    def checked(self) -> "Question":
        """Itself. Raises InputError with everything that makes no sense."""
        problems = [
            *_outside("--patients", self.patients, 2, 100_000_000),
            *_outside("--rounds", self.rounds, 1, 10_000),
            *_outside("--steps", self.steps, 1, 100_000),
            *_outside("--clip", self.clip, 1e-6, 1e4),
            *_outside("--cap", self.cap, 1e-3, 1e6),
            *_outside("--noise", self.noise, 1e-2, 1e4),
        ]
        if not problems:
            step = "A site's batch is drawn from its own patients."
            problems += _outside("--batch", self.batch, 1, self.patients, step)
            problems += self._delta_problems()
        if problems:
            raise InputError(problems)
        return self

    def _delta_problems(self) -> list[Problem]:
        # At delta = 1/N the promise holds for a program that publishes one patient's record.
        limit = min(0.1, 1 / self.patients)
        if self.delta is None or 1e-12 <= self.delta < limit:
            return []
        allowed = f"from 1e-12 to below {limit:g} (1 / patients, at most 0.1)"
        step = "Leave it out for 1 / (10 patients)."
        return [Problem("privacy-plan", "--delta", f"{self.delta:g}", allowed, step)]


@dataclass(frozen=True)
class Choice:
    """One noise multiplier, and what it means.

    name: what it was chosen for. epsilon: of the whole plan. deviation: of the noise on each
    coordinate of the averaged gradient (noise multiplier x clip / batch). relative: 1e4 x noise
    multiplier / batch. within_cap: steps that the cap allows, counted up to MOST_PLANS times the
    plan's; None without a cap. hint: what to expect.
    """

    name: str
    noise_multiplier: float
    epsilon: float
    deviation: float
    relative: float
    within_cap: int | None
    hint: str


@dataclass(frozen=True)
class Answer:
    """question, the total steps, the sampling rate, delta, and the choices by rising epsilon."""

    question: Question
    total_steps: int
    sampling_rate: float
    delta: float
    choices: list[Choice]
    accountant: str

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; an infinite epsilon is null."""
        value = asdict(self)
        for choice in value["choices"]:
            if not math.isfinite(choice["epsilon"]):
                choice["epsilon"] = None
        return value


def _outside(
    option: str, value: float | None, low: float, high: float, step: str = "Change it."
) -> list[Problem]:
    """A Problem when a value that was given is not within low and high."""
    if value is None or low <= value <= high:
        return []
    return [Problem("privacy-plan", option, f"{value:g}", f"{low:g} to {high:g}", step)]


def target_name(target: float) -> str:
    """What a choice for an epsilon is called."""
    return f"epsilon {target:g}"


def usual_delta(patients: int) -> float:
    """1 / (10 patients), rounded down to one digit: 3,000 patients give 3e-5."""
    exact = 1 / (10 * patients)
    power = math.floor(math.log10(exact) + 1e-9)
    digit = math.floor(exact / 10**power + 1e-9)
    return float(f"{digit}e{power}")


def answer(question: Question) -> Answer:
    """Work the numbers out. Raises InputError when they make no sense or no noise suffices."""
    question.checked()
    total, rate, delta = question.rounds * question.steps, question.rate, question.at_delta
    wanted = {target_name(target): target for target in TARGETS}
    if question.cap is not None and question.cap not in TARGETS:
        wanted[f"the cap, {question.cap:g}"] = question.cap
    noises = {name: solve_noise(target, delta, rate, total) for name, target in wanted.items()}
    if question.noise is not None:
        noises[GIVEN] = question.noise
    choices = [_choice(name, noise, question) for name, noise in noises.items()]
    choices.sort(key=lambda choice: choice.epsilon)
    return Answer(question, total, rate, delta, choices, accountant())


def _choice(name: str, noise: float, question: Question) -> Choice:
    rate, delta, total = question.rate, question.at_delta, question.rounds * question.steps
    spent = epsilon([Charge(noise, rate, total)], delta)
    within = None
    if question.cap is not None:
        within = _steps_within(question.cap, noise, question)
    relative = 1e4 * noise / question.batch
    deviation = noise * question.clip / question.batch
    return Choice(name, noise, spent, deviation, relative, within, hint(relative))


def _steps_within(cap: float, noise: float, question: Question) -> int:
    """The most steps that the cap allows, counted up to MOST_PLANS times the plan's."""
    rate, delta = question.rate, question.at_delta
    limit, last = 1, MOST_PLANS * question.rounds * question.steps
    # From below: far above the cap the accountant is slow, and its answer of no use.
    while limit < last and epsilon([Charge(noise, rate, limit)], delta) <= cap:
        limit = min(2 * limit, last)
    return most_steps([], Charge(noise, rate, limit), delta, cap)


def hint(relative: float) -> str:
    """What a relative noise means, measured against all of NIH ChestX-ray14 in one place."""
    if relative <= POOLED[8.0]:
        return (
            "no more noise than 75,312 pooled images carry at epsilon 8: the whole network can "
            "be trained, from public pretrained weights"
        )
    if relative <= POOLED[3.0]:
        return (
            "what 75,312 pooled images carry between epsilon 8 and 3: public pretrained weights, "
            "and expect a visible loss"
        )
    if relative <= POOLED[1.0]:
        return (
            "what 75,312 pooled images carry between epsilon 3 and 1: train the heads or the "
            "last block only, or pretrain centrally"
        )
    return (
        "more than 75,312 pooled images carry at epsilon 1: heads only, on public pretrained "
        "weights; more patients or fewer steps help most"
    )


def epsilon_curve(question: Question, noise: float) -> list[tuple[int, float]]:
    """(round, epsilon after it) at up to CURVE_POINTS rounds, the first and the last included."""
    rounds = spread(question.rounds, CURVE_POINTS)
    spent = (Charge(noise, question.rate, number * question.steps) for number in rounds)
    delta = question.at_delta
    return [
        (number, epsilon([charge], delta)) for number, charge in zip(rounds, spent, strict=True)
    ]


def spread(last: int, points: int) -> list[int]:
    """At most `points` whole numbers from 1 to `last`, evenly, both ends included."""
    if last <= points:
        return list(range(1, last + 1))
    gap = (last - 1) / (points - 1)
    return [1 + round(number * gap) for number in range(points)]


def noise_curve(question: Question, target: float, batches: Sequence[int]) -> list[float]:
    """1e4 x noise multiplier / batch for epsilon `target`, for each of the batch sizes.

    By the fast bound, which is somewhat too high: dozens of points need no more.
    """
    total, delta = question.rounds * question.steps, question.at_delta
    return [
        1e4 * quick_noise(target, delta, min(1.0, batch / question.patients), total) / batch
        for batch in batches
    ]


def nearby_batches(question: Question) -> list[int]:
    """The plan's batch, doubled and halved up to BATCHES times, within 1 and the patients."""
    sizes = (round(question.batch * 2.0**power) for power in range(-BATCHES, BATCHES + 1))
    return sorted({size for size in sizes if 1 <= size <= question.patients})
