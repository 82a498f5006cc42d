"""Between what a plan asks and what the site does: policy, budget, and a record of what left.

Reserve before, send after, never refund: a round is charged on the disk before its first step,
and a message is recorded before it is sent. A crash in between leaves the charge.
"""

import hashlib
from typing import Literal

from client.batches import SiteData
from client.ledger import Cap, Ledger, Reservation, claim, secret_beside
from client.policy import check_noise, check_plan, check_round, permitted
from client.privacy.accounting import Charge, most_steps
from client.privacy.accounting import epsilon as epsilon_of
from client.privacy.budget import Asked, asked, scores_until
from client.privacy.scores import noised_loss
from client.settings import SiteFolder
from common.errors import ConsiliumError, RefusedError
from common.model import MultitaskModel
from common.plan import Plan
from common.update import Spent
from common.wire import Parcel

UNPROTECTED = Charge(0.0, 1.0, 1)  # training without noise has no bound, however short it was


class Gate:
    """The policy and the ledger of one site."""

    def __init__(self, folder: SiteFolder, data: SiteData) -> None:
        """Nothing is read or written before a plan asks for something."""
        self._settings, self._folder = folder.settings, folder
        self._patients = sorted(set(data.table["patient"].astype(str)))
        self.ledger = Ledger(folder.path / folder.settings.ledger)

    def admit(self, action: str, plan: Plan, round_number: int) -> Asked | None:
        """What a private plan asks of this site, if it may; None for a plan without privacy.

        Judges the whole plan when it comes for the first time. Raises RefusedError with the
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
            self._open()
            if needs is not None:
                self._check_whole(plan, needs)
            return needs
        except RefusedError as error:
            self._record_refusal(action, plan, round_number, error)
            raise

    def reserve(self, plan: Plan, round_number: int, needs: Asked | None) -> None:
        """Charge one round, on the disk, before its first step.

        Raises RefusedError (budget-spent), and records it, when it would exceed the cap.
        """
        charge = UNPROTECTED if needs is None else needs.charge()
        cap = self._cap if needs is not None else Cap(None, self._cap.delta)
        try:
            self._charge("training", plan, round_number, charge, cap)
        except RefusedError as error:
            self._record_refusal("train", plan, round_number, error)
            raise

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
        number = plan.federation.rounds if round_number is None else round_number
        if round_number is not None and number % plan.evaluation.every != 0:
            return {}
        charge = Charge(policy.metrics_noise, 1.0, 1)
        cap = self._cap if plan.privacy.mode != "off" else Cap(None, policy.delta)
        try:
            self._charge("metrics", plan, number, charge, cap)
        except RefusedError as error:
            self._record_refusal("score", plan, number, error)
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
        )

    def sent(self, action: str, plan: Plan, round_number: int, parcel: Parcel) -> None:
        """Record a message that is about to leave: what it holds, its size and its hash."""
        digest = hashlib.sha256()
        for name, array in sorted(parcel.arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
        digest.update(repr(sorted(parcel.config.items())).encode())
        digest.update(repr(sorted(parcel.metrics.items())).encode())
        self.ledger.record(
            "sent",
            {
                "action": action,
                "plan": plan.sha256,
                "round": round_number,
                "bytes": parcel.bytes,
                "keys": sorted([*parcel.arrays, *parcel.config, *parcel.metrics]),
                "sha256": digest.hexdigest(),
            },
        )

    def serving(self, plan: Plan, round_number: int) -> None:
        """Record that heads were fitted without noise, for use inside the site."""
        self.ledger.record("serving", {"plan": plan.sha256, "round": round_number})

    @property
    def _cap(self) -> Cap:
        return Cap(self._settings.policy.epsilon, self._settings.policy.delta)

    def _open(self) -> None:
        """Start the ledger, or go on with it; note a changed policy or changed patients."""
        # With a secret: who knows all patients but one could else try that one out.
        salt = secret_beside(self.ledger.path)
        dataset = hashlib.sha256(salt + "\n".join(self._patients).encode()).hexdigest()
        self.ledger.open(dataset, self._settings.policy.unit, self._settings.simulated)
        self.ledger.policy(self._settings.policy.model_dump(mode="json"))

    def _claim(self) -> None:
        """Make sure that no other ledger accounts for one of these patients."""
        if not self._settings.simulated:
            name = self.ledger.identity()
            claim(self._folder.cache, self.ledger.path, name, self._patients)

    def _check_whole(self, plan: Plan, needs: Asked) -> None:
        """Whether the budget covers all of the plan, asked once: before its first step.

        All of it, whatever round the server begins with: its word on that is not the site's.
        """
        policy = self._settings.policy
        begun = any(
            entry.kind == "reserve"
            and entry.body["plan"] == plan.sha256
            and entry.body["purpose"] == "training"
            for entry in self.ledger.entries()
        )
        if begun or policy.join == "until-spent":
            return
        whole = needs.charge(needs.rounds)
        spent = self.ledger.charges()
        if policy.metrics == "noised":
            scores = scores_until(plan, needs.rounds)
            spent.append(Charge(policy.metrics_noise, 1.0, scores))
        epsilon = epsilon_of([*spent, whole], policy.delta)
        if policy.epsilon is not None and epsilon > policy.epsilon:
            fits = most_steps(spent, whole, policy.delta, policy.epsilon)
            raise RefusedError(
                f"plan {plan.name}: epsilon would be {epsilon:.3f} after its {whole.steps} steps; "
                f"this site's cap is {policy.epsilon:g} at delta {policy.delta:g}, of which "
                f"{self.ledger.epsilon(policy.delta):.3f} is spent. At most {fits} steps fit. Ask "
                "for fewer rounds or more noise, or let the privacy officer change the policy.",
                "budget-spent",
                fits,
            )

    def _charge(
        self,
        purpose: Literal["training", "metrics"],
        plan: Plan,
        round_number: int,
        charge: Charge,
        cap: Cap,
    ) -> None:
        self._claim()
        reservation = Reservation(
            purpose,
            plan.name,
            plan.sha256,
            round_number,
            self._settings.policy.unit,
            charge,
            plan.privacy.clipping_norm,
        )
        self.ledger.reserve(reservation, cap)

    def _record_refusal(
        self, action: str, plan: Plan, round_number: int, error: RefusedError
    ) -> None:
        """Note a refusal if there is a ledger in order; the refusal itself must come through."""
        body = {"action": action, "plan": plan.sha256, "round": round_number, "code": error.code}
        try:
            self._open()
            self.ledger.record("refused", body)
        except ConsiliumError:
            return
