"""What training can come to, judged from the tables: who has what to learn, what privacy costs.

A plan is refused only where it could not do what it asks. All else that a person should know is
a remark: one text a kind, with a count and the first names.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from client.learning.unlabelled import may_follow, strength
from client.privacy.accounting import epsilon, most_steps, quick_noise
from client.privacy.budget import Asked, asked
from common.errors import InputError, NotEnoughSitesError, PartitionError, Problem, RefusedError
from common.findings import FINDINGS, NO_FINDING
from common.plan import Plan
from simulations.experiment.hospitals import UNBOUND, Hospital

SHOWN = 5  # names in one remark
OFTEN_EMPTY = 0.05  # share of a private plan's steps that draw nobody, above which it is said


def refuse_hopeless(plan: Plan, hospitals: Sequence[Hospital]) -> None:
    """Raise for a plan that these hospitals cannot carry out, whatever their images hold.

    NotEnoughSitesError: fewer hospitals than federation.min_sites. PartitionError: fewer of them
    have anything to learn from. InputError: no noise reaches the plan's epsilon. RefusedError:
    the hospitals' lifetime caps end before the plan does.
    """
    needed = plan.federation.min_sites
    if len(hospitals) < needed:
        raise NotEnoughSitesError(
            f"the plan needs {needed} sites (federation.min_sites), "
            f"the simulation has {len(hospitals)}"
        )
    # A teacher, or noise, has nothing to pass on where nobody is taught.
    taught = any(_taught(plan, each) for each in hospitals)
    idle = [each.name for each in hospitals if not (taught and _learns(plan, each))]
    if len(hospitals) - len(idle) < needed:
        tasks = [*["findings"] * plan.tasks.findings, *["lungs"] * plan.tasks.lungs]
        found = f"{len(idle)} of {len(hospitals)} hospitals with nothing to train on: {named(idle)}"
        allowed = (
            f"at least {needed} (federation.min_sites) with a training image that has a label or "
            f"a lung mask, as the tasks need ({', '.join(tasks)})"
        )
        step = "Give labels or masks, cut other hospitals, or lower federation.min_sites."
        raise PartitionError(Problem("plan", "key 'federation.min_sites'", found, allowed, step))
    if plan.privacy.mode != "off":
        _refuse_privacy(plan, hospitals)


def _learns(plan: Plan, hospital: Hospital) -> bool:
    """Whether the hospital can train in the first round."""
    tasks, settings = plan.tasks, hospital.settings
    if plan.privacy.mode != "off":  # private training asks what is declared, not what is there
        return bool(tasks.findings and settings.annotates) or (
            tasks.lungs and settings.outlines_lungs
        )
    return _taught(plan, hospital) or _follows(plan, hospital, 0)


def _taught(plan: Plan, hospital: Hospital) -> bool:
    """Whether a training image of the hospital has a label or a mask that the plan asks for."""
    outlined = plan.tasks.lungs and hospital.training["outlined"].any()
    return bool(outlined or (plan.tasks.findings and len(hospital.labels)))


def _follows(plan: Plan, hospital: Hospital, rounds_done: int) -> bool:
    """Whether the hospital can train on a teacher's word alone after so many rounds."""
    known = np.isin(FINDINGS, hospital.labels.columns) & (len(hospital.labels) > 0)
    what = may_follow(plan, known, bool(hospital.training["outlined"].any()))
    return bool(what.findings.any() or what.lungs) and strength(plan, rounds_done) == 1.0


def _refuse_privacy(plan: Plan, hospitals: Sequence[Hospital]) -> None:
    """Raise when no noise reaches the plan's epsilon, or caps end before the plan."""
    privacy, problems = plan.privacy, []
    for each in hospitals:
        if privacy.epsilon is None:
            break
        steps = _steps(plan, each)
        try:
            # At once, and it refuses what `solve_noise` refuses.
            quick_noise(
                privacy.epsilon,
                privacy.delta,
                steps.sampling_rate,
                steps.steps_per_round * steps.rounds,
            )
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(dict.fromkeys(problems))
    if plan.simulation.lifetime_epsilon is not None:
        _refuse_caps(plan, {each.name: _rounds_paid(plan, each) for each in hospitals})


def _steps(plan: Plan, hospital: Hospital) -> Asked:
    """What a private plan asks of a hospital, but for the noise, which takes long to solve."""
    privacy = plan.privacy.model_copy(update={"epsilon": None, "noise_multiplier": 1.0})
    return asked(plan.model_copy(update={"privacy": privacy}), hospital.settings)


def _rounds_paid(plan: Plan, hospital: Hospital) -> int:
    """How many of the plan's rounds the hospital's lifetime cap pays for."""
    cap, delta = hospital.settings.policy.epsilon, plan.privacy.delta
    if cap is None or cap == UNBOUND:
        return plan.federation.rounds
    needs = asked(plan, hospital.settings)
    whole = needs.charge(needs.rounds)
    if epsilon([whole], delta) <= cap:
        return needs.rounds
    return most_steps([], whole, delta, cap) // needs.steps_per_round


def _refuse_caps(plan: Plan, paid: dict[str, int]) -> None:
    needed, rounds = plan.federation.min_sites, plan.federation.rounds
    lasts = sorted(paid.values(), reverse=True)[needed - 1]
    if lasts < rounds:
        short = [f"{name} ({count})" for name, count in paid.items() if count < rounds]
        raise RefusedError(
            f"plan {plan.name}: simulation.lifetime_epsilon pays for {lasts} of {rounds} rounds at "
            f"{needed} hospitals (federation.min_sites); rounds paid for: {named(short)}. Raise "
            "the caps, or ask for fewer rounds or more noise.",
            "budget-spent",
        )


def plan_remarks(plan: Plan, hospitals: Sequence[Hospital]) -> list[str]:
    """What the plan's numbers come to at hospitals of this size."""
    if plan.privacy.mode == "off":
        return _idle_remarks(plan, [each for each in hospitals if not _learns(plan, each)])
    batch, unit = plan.training.batch_size, plan.privacy.unit
    whole, empty = [], []
    for each in hospitals:
        rate, units = _steps(plan, each).sampling_rate, each.settings.nominal_units or 1
        if rate == 1.0:
            whole.append(f"{each.name} ({units})")
        if (1.0 - rate) ** units > OFTEN_EMPTY:
            empty.append(f"{each.name} ({100 * (1.0 - rate) ** units:.0f} %)")
    found = []
    if whole:
        found.append(
            f"training.batch_size {batch} is no less than the {unit}s of {_count(whole)}, so that "
            f"every step takes all of them and sampling hides nobody: {named(whole)}"
        )
    if empty:
        found.append(
            f"training.batch_size {batch} is so small that steps without any {unit}, which are "
            f"charged and noised like any other, are common at {_count(empty)}: {named(empty)}"
        )
    return found


def _idle_remarks(plan: Plan, idle: Sequence[Hospital]) -> list[str]:
    """Hospitals without any label or mask of the plan's tasks."""
    later = [each.name for each in idle if _follows(plan, each, plan.federation.rounds)]
    never = [each.name for each in idle if each.name not in later]
    found = []
    if never:
        found.append(
            f"{_count(never)} with nothing to train on, left out of the rounds: {named(never)}"
        )
    if later:
        found.append(
            f"{_count(later)} with nothing to train on but a teacher's word, left out of the "
            f"rounds until semi_supervision's ramp has ended: {named(later)}"
        )
    return found


def data_remarks(
    plan: Plan, hospitals: Sequence[Hospital], test_labels: int, test_masks: int
) -> list[str]:
    """What the hospitals and the tests lack of what the plan's tasks need.

    test_labels, test_masks: how many images of the tests have labels, and a lung mask.
    """
    found: list[str] = []
    if plan.tasks.findings:
        found += _label_remarks([each for each in hospitals if each.settings.annotates])
        if test_labels == 0:
            found.append("no test image has a label: no AUROC can be measured")
    if plan.tasks.lungs:
        outlined = any(each.training["outlined"].any() for each in hospitals)
        if not outlined:
            found.append("no training image has a lung mask: nothing teaches the lungs head")
        elif test_masks == 0:
            found.append("no test image has a lung mask: no Dice can be measured")
    return found


def _label_remarks(hospitals: Sequence[Hospital]) -> list[str]:
    """hospitals: those that are to annotate findings."""
    found = []
    labels = {each.name: each.labels for each in hospitals}
    silent = [name for name, own in labels.items() if not len(own)]
    if silent:
        found.append(f"{_count(silent)} without a label on any training image: {named(silent)}")
    alike = [f"{n} ({_findings(own)})" for n, own in labels.items() if len(own) > 1 and _same(own)]
    if alike:
        found.append(
            f"{_count(alike)} whose labelled training images all have the same findings: "
            f"{named(alike)}"
        )
    if len(silent) < len(labels):
        seen = {f for own in labels.values() for f in own.columns[(own == 1).any(axis=0)]}
        never = [finding for finding in FINDINGS if finding not in seen]
        if len(never) == len(FINDINGS):
            found.append("no finding has a positive training image: none of them can be learnt")
        elif never:
            found.append(
                f"{len(never)} of {len(FINDINGS)} findings without a positive training image, "
                f"which nothing teaches: {named(never)}"
            )
    return found


def _same(labels: pd.DataFrame) -> bool:
    return bool((labels == labels.iloc[0]).all(axis=None))


def _findings(labels: pd.DataFrame) -> str:
    return "|".join(labels.columns[labels.iloc[0] == 1]) or NO_FINDING


def left_out_remarks(skipped: pd.DataFrame) -> list[str]:
    """What --skip-bad left out (image, reason), one remark a kind of reason."""
    found = []
    kinds = skipped["reason"].replace(
        {r"^image: .*": "unreadable image", r"^mask: .*": "unreadable mask"}, regex=True
    )
    for kind, rows in skipped.groupby(kinds, sort=True):
        names = rows["image"].tolist()
        if str(kind).startswith("unreadable"):
            reasons = rows["reason"].str.replace(r"^\w+: ", "", regex=True)
            names = [f"{name} ({why})" for name, why in zip(names, reasons, strict=True)]
        found.append(f"{len(names)} left out by --skip-bad, {kind}: {named(names)}")
    return found


def named(names: Iterable[str]) -> str:
    """The first few names, and dots if there are more."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} hospital" + "s" * (len(names) != 1)
