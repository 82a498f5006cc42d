"""A hospital site: the one object that touches its data. Knows nothing of Flower.

Simulation and deployment use the same class on the same kind of folder; only the transport
that carries `shared` in and the `Update` out is different.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client.border.deadline import check_time
from client.border.gate import Gate
from client.learning.evaluate import Scores
from client.learning.finish import fit_findings_head
from client.learning.optimizer import make_optimizer
from client.learning.resident import Resident, all_parameters
from client.learning.states import States, tidy
from client.learning.train import train_round
from client.learning.unlabelled import unlabelled_rows
from client.notes import failing_quietly
from client.privacy.budget import Asked, declared_units
from client.privacy.training import check_trainable, train_private_round
from client.settings import SiteFolder, open_site_folder
from client.ward import Ward, pick_device
from common.checkpoint import array_sha256, write_arrays
from common.parameters import Flat, load_flat
from common.plan import Plan
from common.update import SCHEMA, Update


class Site(Ward):
    """One opened site folder, with its data and one resident model.

    A private question has two parts. What leaves is fixed first, by `update` or `told`. What the
    site does for its own eyes, without noise, comes after (`note_scores`, `settle`): it can
    neither change nor stop what leaves.
    """

    def __init__(self, folder: SiteFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.gate = Gate(folder, self.patients)
        self._trained: tuple[str, int] | None = None  # what the resident model was last taught

    @classmethod
    def open(cls, path: Path) -> "Site":
        """Open a site folder. Its data is read when it is first needed.

        Raises DataError when site.yaml is not in order.
        """
        folder = open_site_folder(path)
        return cls(folder, pick_device(folder.settings.device))

    def train(self, plan: Plan, round_number: int, shared: Flat) -> Update:
        """Train one round from the received shared parameters, (P,) float32.

        Local heads and optimizer go on from the site's last round before this one, so a round
        that is asked for twice gives the same update twice; a private one is not trained again,
        but sent again, for its noise was paid for once. The ledger is charged before the first
        step. Raises RefusedError when policy or budget say no, LayoutError for a vector of
        another layout, CacheError for another image size, DivergedError for a lost loss.
        """
        asked = self.gate.admit("train", plan, round_number)
        if asked is not None:
            update = self.update(asked, plan, round_number, shared)
            self.note_scores(plan, round_number)
            return update
        started = time.monotonic()
        self.holdings.refresh()
        resident, states = self.prepare(plan), States(self.folder.state, plan)
        weight = self._weight(plan)
        load_flat(resident.model, resident.layout, shared)
        self.gate.reserve(plan, round_number, None)
        metrics = self._train(resident, states, plan, round_number)
        delta = resident.delta(shared)
        seconds = time.monotonic() - started
        covers = self.covers
        return self._update(resident, plan, round_number, delta, weight, covers, metrics, seconds)

    def _train(
        self, resident: Resident, states: States, plan: Plan, round_number: int
    ) -> dict[str, float]:
        """Train the resident model, which holds the shared parameters already, without noise.

        Keeps heads and optimizer; returns the metrics that may leave.
        """
        optimizer = make_optimizer(resident.model, plan.training)
        states.restore(resident, optimizer, before=round_number)
        report = train_round(
            resident.model,
            resident.forward,
            optimizer,
            self.data,
            plan,
            round_number,
            self.name,
        )
        states.save(resident, optimizer, round_number)
        metrics = {"train_loss": report.loss}
        if round_number % plan.evaluation.every == 0:
            metrics |= self.scores(resident, plan, round_number).metrics
        return self.gate.leaving(plan, round_number, metrics, resident.model, self.data)

    def update(
        self,
        asked: Asked,
        plan: Plan,
        round_number: int,
        shared: Flat,
        until: float | None = None,
    ) -> Update:
        """The update of a private round that was admitted, with nothing un-noised in it.

        until: time.monotonic() after which it must not leave any more. Raises NotChargedError
        when the ledger will not pay, FailedError when it is too late, and what else may go wrong.
        """
        self._trained = None
        self.holdings.refresh()
        resident, states = self.prepare(plan), States(self.folder.state, plan)
        # What can be refused for other reasons is refused before it costs any budget.
        weight, received = self._weight(plan), array_sha256(shared)
        load_flat(resident.model, resident.layout, shared)
        check_trainable(resident.model, self.folder.settings, self.device)
        kept = states.sent(round_number, received)
        if kept is not None and self.gate.paid(plan, round_number, kept.entry, kept.entry_sha256):
            delta, metrics = kept.delta, dict[str, float]()
        else:
            optimizer = make_optimizer(resident.model, plan.training)
            states.restore(resident, optimizer, before=round_number)
            entry = self.gate.reserve(plan, round_number, asked)
            self._train_privately(resident, optimizer, states, plan, round_number, asked)
            delta = resident.delta(shared)
            metrics = self.gate.leaving(plan, round_number, {}, resident.model, self.data)
            check_time(until)
            states.keep_sent(round_number, received, delta, entry.number, entry.sha256)
        declares = self.folder.settings.declares
        # How long private training took would tell how many patients were drawn: 0 seconds.
        return self._update(
            resident, plan, round_number, delta, weight, declares, metrics, 0.0, asked
        )

    def _train_privately(
        self,
        resident: Resident,
        optimizer: torch.optim.Optimizer,
        states: States,
        plan: Plan,
        round_number: int,
        asked: Asked,
    ) -> None:
        """Train the resident model, which holds all it starts from, with noise; keep heads."""
        train_private_round(
            resident.model,
            optimizer,
            self.data,
            plan,
            self.folder.settings,
            asked,
            round_number,
        )
        states.save(resident, optimizer, round_number)
        self._trained = plan.sha256, round_number
        self._tidy()

    def _tidy(self) -> None:
        """Let go of the states of plans long past. What was trained leaves even if that fails."""
        with failing_quietly(self.folder.reports, "tidying of states"):
            tidy(self.folder.state, self.gate.plans())

    def _update(
        self,
        resident: Resident,
        plan: Plan,
        round_number: int,
        delta: Flat,
        weight: float,
        covers: tuple[str, ...],
        metrics: dict[str, float],
        seconds: float,
        asked: Asked | None = None,
    ) -> Update:
        return Update(
            schema=SCHEMA,
            plan_sha256=plan.sha256,
            round=round_number,
            site=self.name,
            layout_sha256=resident.layout.sha256,
            delta=delta,
            weight=weight,
            covers=covers,
            metrics=metrics,
            seconds=seconds,
            spent=self.gate.spent(asked),
        )

    def note_scores(self, plan: Plan, round_number: int, until: float | None = None) -> None:
        """Score the model as a private round left it, for the site's own notes.

        Ends at `until` (time.monotonic()). Never raises: failures go to the site's own log.
        """
        if self._trained != (plan.sha256, round_number) or round_number % plan.evaluation.every:
            return
        with failing_quietly(self.folder.reports, f"scores of round {round_number}"):
            self.scores(self.prepare(plan), plan, round_number, until)

    def finish(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """After the last round: keep the site's own model, and return what may leave of it.

        The model lies in `final_model(plan)`. In a plan without privacy its findings head is
        fitted to the final encoder. In a private plan it holds the heads as they were trained,
        with noise; heads fitted without noise, for as many passes as the site wishes
        (`serving_head_epochs`), lie in `serving_model(plan)`, are for use inside the site only,
        and no training reads them. Raises RefusedError when policy or budget say no.
        """
        if self.gate.admit("finish", plan, round_number) is not None:
            leaving = Scores(self.told(plan, round_number, shared))
            self.settle(plan, round_number, shared)
            return leaving
        self.holdings.refresh()
        resident = self.as_of(plan, round_number, shared)
        # Heads are fitted, and scores may leave, without noise, even after no round at all.
        self.gate.reserve(plan, round_number, None)
        epochs = plan.training.head_epochs
        fit_findings_head(resident.model, self.data, plan, round_number, self.name, epochs)
        write_arrays(self.final_model(plan), all_parameters(resident.model))
        metrics = self.scores(resident, plan, round_number).metrics
        return Scores(self.gate.leaving(plan, None, metrics, resident.model, self.data))

    def told(self, plan: Plan, round_number: int, shared: Flat) -> dict[str, float]:
        """What an admitted private finish tells: a noised score, if the policy pays for one.

        Without one nothing is looked at, and nothing can fail.
        """
        if self.policy.metrics != "noised":
            return {}
        self.holdings.refresh()
        resident = self.as_of(plan, round_number, shared)
        return self.gate.leaving(plan, None, {}, resident.model, self.data)

    def settle(
        self, plan: Plan, round_number: int, shared: Flat, until: float | None = None
    ) -> None:
        """What a site does for itself after a private plan: its model, scores, serving heads.

        Ends at `until` (time.monotonic()): what is not done then is left out, and the log says
        so. Never raises: failures go to the site's own log.
        """
        with failing_quietly(self.folder.reports, f"finish of {plan.name}"):
            self.holdings.refresh()
            resident = self.as_of(plan, round_number, shared)
            write_arrays(self.final_model(plan), all_parameters(resident.model))
            epochs = self.folder.settings.serving_head_epochs
            if epochs > 0:
                self.gate.serving(plan, round_number)
                go_on = partial(check_time, until)
                fit_findings_head(
                    resident.model, self.data, plan, round_number, self.name, epochs, go_on
                )
                write_arrays(self.serving_model(plan), all_parameters(resident.model))
            self._tidy()
        with failing_quietly(self.folder.reports, f"scores after {plan.name}"):
            resident = self.as_of(plan, round_number, shared)
            self.scores(resident, plan, round_number, until)

    def _weight(self, plan: Plan) -> float:
        weighting = plan.federation.weighting
        if weighting == "equal":
            return 1.0
        if weighting == "declared":
            return float(declared_units(self.folder.settings, plan))
        if weighting == "size":
            return float(len(self.data.rows("train")))
        labelled = self.data.supervised("train", plan.tasks)
        silent = np.setdiff1d(unlabelled_rows(self.data, plan), labelled)
        return float(max(1, len(labelled) + round(plan.semi_supervision.vote * len(silent))))
