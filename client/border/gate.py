"""Between what a plan asks and what the site does: policy, budget, and a record of what left.

Reserve before, send after, never refund: a round is charged on the disk before its first step,
and a message is recorded before it is sent. A crash in between leaves the charge.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from client.data.batches import SiteData
from client.ledger import (
    Cap,
    Entry,
    Ledger,
    Reservation,
    check_unclaimed,
    claim,
    promised,
    reserves,
    rounds_charged,
    secret_beside,
    witness,
)
from client.policy import check_delta, check_noise, check_plan, check_round, permitted
from client.privacy.accounting import Charge, most_steps
from client.privacy.accounting import epsilon as epsilon_of
from client.privacy.budget import Asked, asked, declared_units, scores_until
from client.privacy.scores import noised_loss
from client.settings import SiteFolder
from common.errors import ConsiliumError, RefusedError
from common.model import MultitaskModel
from common.plan import Plan
from common.update import Spent
from common.wire import Parcel

UNPROTECTED = Charge(0.0, 1.0, 1)  # training without noise has no bound, however short it was


class NotChargedError(RefusedError):
    """The ledger would not take a charge: decided by it and by claims, before any pixel is seen."""


class Gate:
    """The policy and the ledger of one site."""

    def __init__(self, folder: SiteFolder, patients: Callable[[], Sequence[str]]) -> None:
        """patients: reads whom the site has; asked only when something is about to be charged.

        Nothing is read or written before a plan asks for something.
        """
        self._settings, self._folder, self._patients = folder.settings, folder, patients
        self.ledger = Ledger(folder.path / folder.settings.ledger)

    def admit(self, action: str, plan: Plan, round_number: int) -> Asked | None:
        """What a private plan asks of this site, if it may; None for a plan without privacy.

        Judges the whole plan when it comes for the first time, by policy, ledger and public words
        alone: none of the site's data is looked at. Raises RefusedError with the
        reason's code, and, when it is the budget, with the most steps that would fit;
        LedgerError when the ledger is not in order. A refusal is recorded in the ledger.
        """
        try:
            check_round(plan, round_number)
            check_plan(self._settings.policy, plan)
            needs = None
            if plan.privacy.mode != "off":
                needs = asked(plan, self._settings)
                check_noise(self._settings.policy, needs.noise_multiplier)
                check_delta(self._settings.policy, plan, declared_units(self._settings, plan))
            self._open()
            if needs is not None:
                self._check_whole(plan, needs)
            return needs
        except RefusedError as error:
            self._record_refusal(action, plan, round_number, error)
            raise

    def reserve(self, plan: Plan, round_number: int, needs: Asked | None) -> Entry:
        """Charge one round, on the disk, before its first step; return the entry that paid.

        Raises NotChargedError, and records it, when it would exceed the cap (budget-spent), or
        another ledger accounts for one of the patients.
        """
        charge = needs.charge() if needs else UNPROTECTED
        return self._charge("training", plan, round_number, charge)

    def paid(self, plan: Plan, round_number: int, number: int, sha256: str) -> bool:
        """Whether the ledger holds this entry, and it paid for this round's training."""
        entries = self.ledger.entries()
        if not 1 <= number <= len(entries) or entries[number - 1].sha256 != sha256:
            return False
        entry = entries[number - 1]
        return (
            entry.kind == "reserve"
            and entry.body["purpose"] == "training"
            and (entry.body["plan"], entry.body["round"]) == (plan.sha256, round_number)
        )

    def leaving(
        self,
        plan: Plan,
        round_number: int | None,
        metrics: dict[str, float],
        model: MultitaskModel,
        data: SiteData,
    ) -> dict[str, float]:
        """The metrics of a round (None: of the finish) that may leave the site.

        Under `metrics: noised` that is the noised validation loss alone, for which the ledger is
        charged first; nothing leaves when the budget does not cover it.
        """
        policy = self._settings.policy
        if policy.metrics != "noised":
            return permitted(policy, plan, metrics)
        if round_number is not None and round_number % plan.evaluation.every != 0:
            return {}
        number = plan.federation.rounds if round_number is None else round_number
        try:
            self._charge("metrics", plan, number, Charge(policy.metrics_noise, 1.0, 1))
        except RefusedError:
            return {}
        return noised_loss(model, data, plan, self._settings)

    def spent(self, needs: Asked | None) -> Spent | None:
        """What the site tells of its budget; nothing unless the policy allows it."""
        policy = self._settings.policy
        if needs is None or not policy.disclose_spend:
            return None
        head, epsilon = self.ledger.head(), self.ledger.epsilon(policy.delta)
        return Spent(
            unit=needs.unit,
            epsilon=None if epsilon == float("inf") else epsilon,
            delta=policy.delta,
            cap=policy.epsilon,
            noise_multiplier=needs.noise_multiplier,
            sampling_rate=needs.sampling_rate,
            steps=needs.steps_per_round,
            clipping_norm=needs.clipping_norm,
            entries=head.entries,
            head=head.sha256,
            simulated=self._settings.simulated,
        )

    def sent(self, action: str, plan: Plan, round_number: int, parcel: Parcel) -> None:
        """Record a message that is about to leave: what it holds, its size and its hash.

        The hash is of all but `spent`: what is told of the ledger changes with every entry, and a
        message that is sent again has one entry.
        """
        digest = hashlib.sha256()
        for name, array in sorted(parcel.arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
        told = {key: value for key, value in parcel.config.items() if key != "spent"}
        digest.update(repr(sorted(told.items())).encode())
        digest.update(repr(sorted(parcel.metrics.items())).encode())
        self.ledger.sent(
            {
                "action": action,
                "plan": plan.sha256,
                "round": round_number,
                "bytes": parcel.bytes,
                "keys": sorted([*parcel.arrays, *parcel.config, *parcel.metrics]),
                "sha256": digest.hexdigest(),
            },
            tells=bool(parcel.arrays or parcel.metrics),
        )

    def plans(self) -> set[str]:
        """Hashes of the plans that something was charged for."""
        return {str(entry.body["plan"]) for entry in reserves(self.ledger.entries())}

    def serving(self, plan: Plan, round_number: int) -> None:
        """Record that heads were fitted without noise, for use inside the site."""
        self.ledger.serving({"plan": plan.sha256, "round": round_number})

    def _open(self) -> None:
        """Start the ledger, or go on with it; note a changed policy."""
        self.ledger.open(self._settings.policy.unit, self._settings.simulated)
        self.ledger.policy(self._settings.policy.model_dump(mode="json"))

    def _claim(self) -> str:
        """Make sure that no other ledger accounts for one of the patients; return their hash.

        The hash goes into the charge. An entry of its own would tell the coordinator, by the
        ledger's length, that the list of patients has changed.
        """
        patients = self._patients()
        # With a secret: who knows all patients but one could else try that one out.
        salt = secret_beside(self.ledger.path)
        if self._settings.simulated:
            check_unclaimed(self._folder.cache, self.ledger.path, patients)
        else:
            entries = self.ledger.entries()
            name = str(entries[0].body["ledger"])
            claim(self._folder.cache, self.ledger.path, name, patients, entries)
        return hashlib.sha256(salt + "\n".join(patients).encode()).hexdigest()

    def _check_whole(self, plan: Plan, needs: Asked) -> None:
        """Whether the budget covers all of the plan, asked once: before its first step.

        All of it, whatever round the server begins with: its word on that is not the site's.
        """
        policy = self._settings.policy
        entries = self.ledger.entries()
        begun = rounds_charged(entries, plan.sha256)
        if begun or policy.join == "until-spent":
            return
        whole = needs.charge(needs.rounds)
        spent = [*self.ledger.charges(), *promised(entries, plan.sha256, policy.promise_days)]
        if policy.metrics == "noised":
            scores = scores_until(plan, needs.rounds)
            spent.append(Charge(policy.metrics_noise, 1.0, scores))
        epsilon = epsilon_of([*spent, whole], policy.delta)
        if policy.epsilon is not None and epsilon > policy.epsilon:
            fits = most_steps(spent, whole, policy.delta, policy.epsilon)
            raise RefusedError(
                f"plan {plan.name}: epsilon would be {epsilon:.3f} after its {whole.steps} steps; "
                f"this site's cap is {policy.epsilon:g} at delta {policy.delta:g}, of which "
                f"{epsilon_of(spent, policy.delta):.3f} is spent or promised to plans that have "
                f"begun. At most {fits} steps fit. Ask for fewer rounds or more noise, or let the "
                "privacy officer change the policy.",
                "budget-spent",
                fits,
            )

    def _charge(
        self,
        purpose: Literal["training", "metrics"],
        plan: Plan,
        round_number: int,
        charge: Charge,
    ) -> Entry:
        """Put a charge on the disk. Raises NotChargedError, recorded, when it may not be."""
        policy = self._settings.policy
        # Without privacy there is no bound that a cap could hold; the policy has allowed it.
        limit = None if plan.privacy.mode == "off" else policy.epsilon
        whole = limit is not None and policy.join == "whole-plan"
        rounds = plan.federation.rounds
        scores = scores_until(plan, rounds) if policy.metrics == "noised" else 0
        try:
            reservation = Reservation(
                purpose,
                plan.name,
                plan.sha256,
                round_number,
                policy.unit,
                charge,
                plan.privacy.clipping_norm,
                self._claim(),
                rounds if whole else 0,
                scores if whole else 0,
                policy.metrics_noise,
            )
            entry = self.ledger.reserve(reservation, Cap(limit, policy.delta)).entry
        except RefusedError as error:
            action = "train" if purpose == "training" else "score"
            self._record_refusal(action, plan, round_number, error)
            raise NotChargedError(str(error), error.code, error.fits) from None
        if not self._settings.simulated:
            witness(self._folder.cache, self.ledger.identity(), entry)
        return entry

    def _record_refusal(
        self, action: str, plan: Plan, round_number: int, error: RefusedError
    ) -> None:
        """Note a refusal if there is a ledger in order; the refusal itself must come through."""
        body = {"action": action, "plan": plan.sha256, "round": round_number, "code": error.code}
        try:
            self._open()
            self.ledger.refused(body)
        except ConsiliumError:
            return
