"""A hospital site: the one object that touches its data. Knows nothing of Flower.

Simulation and deployment use the same class on the same kind of folder; only the transport
that carries `shared` in and the `Update` out is different.
"""

import time
from pathlib import Path

import numpy as np
import torch

from client.batches import SiteData, load_site_data
from client.cache import open_cache
from client.evaluate import Heads, Scores, predict, score, true_findings
from client.finish import fit_findings_head
from client.gate import Gate
from client.optimizer import make_optimizer
from client.policy import Policy
from client.privacy.budget import Asked, declared_units
from client.privacy.training import check_trainable, train_private_round
from client.resident import Resident, all_parameters
from client.settings import SiteFolder, open_site_folder
from client.states import States, note_locally
from client.train import train_round
from client.unlabelled import unlabelled_rows
from common.checkpoint import array_sha256, write_arrays
from common.errors import CacheError, Problem
from common.findings import FINDINGS, LUNGS
from common.model import MultitaskModel
from common.parameters import Flat, flatten, load_flat
from common.plan import Plan
from common.update import SCHEMA, Update


def pick_device(setting: str) -> torch.device:
    """The device that `site.yaml` names; "auto" is the first GPU if there is one."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(setting)


class Site:
    """One opened site folder, with its data and one resident model."""

    def __init__(self, folder: SiteFolder, data: SiteData, device: torch.device, size: int) -> None:
        self.folder = folder
        self.data = data
        self.device = device
        self.image_size = size
        self.gate = Gate(folder, data)
        self._resident: Resident | None = None

    @classmethod
    def open(cls, path: Path) -> "Site":
        """Open a site folder. Raises DataError or CacheError when it is not in order."""
        folder = open_site_folder(path)
        device = pick_device(folder.settings.device)
        cache = open_cache(folder.cache)
        return cls(folder, load_site_data(folder, cache, device), device, cache.size)

    @property
    def name(self) -> str:
        """The site's name, as its `site.yaml` gives it."""
        return self.folder.settings.name

    @property
    def policy(self) -> Policy:
        """What the hospital allows."""
        return self.folder.settings.policy

    @property
    def covers(self) -> tuple[str, ...]:
        """Findings with a usable label on a training row, and "lungs" with a training mask."""
        rows, known = self.data.rows("train"), self.data.annotated("train")
        findings = (name for name, has in zip(FINDINGS, known, strict=True) if has)
        has_masks = bool((self.data.mask_row[rows] >= 0).any())
        return (*findings, *((LUNGS,) if has_masks else ()))

    def train(self, plan: Plan, round_number: int, shared: Flat) -> Update:
        """Train one round from the received shared parameters, (P,) float32.

        Local heads and optimizer go on from the site's last round before this one, so a round
        that is asked for twice gives the same update twice; a private one is not trained again,
        but sent again, for its noise was paid for once. The ledger is charged before the first
        step. Raises RefusedError when policy or budget say no, LayoutError for a vector of
        another layout, CacheError for another image size, DivergedError for a lost loss.
        """
        started = time.monotonic()
        asked = self.gate.admit("train", plan, round_number)
        resident, states = self._prepare(plan), States(self.folder.state, plan)
        # What can be refused for other reasons is refused before it costs any budget.
        weight = self._weight(plan)
        load_flat(resident.model, resident.layout, shared)
        if asked is not None:
            check_trainable(resident.model, self.folder.settings, self.device)
        paid = None if asked is None else states.sent(round_number, array_sha256(shared))
        if paid is None:
            self.gate.reserve(plan, round_number, asked)
            metrics = self._train(resident, states, plan, round_number, shared, asked)
            delta = flatten(resident.model, resident.layout) - shared
            if asked is not None:
                states.keep_sent(round_number, array_sha256(shared), delta)
        else:
            delta, metrics = paid, {}
        return Update(
            schema=SCHEMA,
            plan_sha256=plan.sha256,
            round=round_number,
            site=self.name,
            layout_sha256=resident.layout.sha256,
            delta=delta,
            weight=weight,
            covers=self.covers if asked is None else self.folder.settings.declares,
            metrics=metrics,
            # How long private training took would tell how many patients were drawn.
            seconds=0.0 if asked is not None else time.monotonic() - started,
            spent=self.gate.spent(asked),
        )

    def _train(
        self,
        resident: Resident,
        states: States,
        plan: Plan,
        round_number: int,
        shared: Flat,
        asked: Asked | None,
    ) -> dict[str, float]:
        """Train the resident model, keep heads and optimizer; return the metrics that may leave."""
        optimizer = make_optimizer(resident.model, plan.training)
        states.restore(resident, optimizer, before=round_number)
        load_flat(resident.model, resident.layout, shared)
        metrics: dict[str, float] = {}
        if asked is None:
            report = train_round(
                resident.model,
                resident.forward,
                optimizer,
                self.data,
                plan,
                round_number,
                self.name,
            )
            metrics["train_loss"] = report.loss
        else:
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
        if round_number % plan.evaluation.every == 0:
            metrics |= self._scores(resident, plan, round_number).metrics
        return self.gate.leaving(plan, round_number, metrics, resident.model, self.data)

    def evaluate(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """Score the shared parameters with the site's own heads on its validation rows.

        For the site itself: these scores are not noised.
        """
        return self._scores(self._as_of(plan, round_number, shared), plan, round_number)

    def finish(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """After the last round: fit the findings head to the final encoder and keep it.

        The model lies in `final_model(plan)`. In a private plan that one holds the heads as they
        were trained, with noise; heads fitted without noise lie in `serving_model(plan)`, are for
        use inside the site only, and no training reads them. Nothing leaves but the scores that
        the policy allows. Raises RefusedError when policy or budget say no.
        """
        private = self.gate.admit("finish", plan, round_number) is not None
        resident, fits = self._as_of(plan, round_number, shared), plan.training.head_epochs > 0
        if not private:
            # Heads are fitted, and scores may leave, without noise, even after no round at all.
            self.gate.reserve(plan, round_number, None)
        if fits and not private:
            fit_findings_head(resident.model, self.data, plan, round_number, self.name)
        write_arrays(self.final_model(plan), all_parameters(resident.model))
        metrics = self._scores(resident, plan, round_number).metrics
        leaving = self.gate.leaving(plan, None, metrics, resident.model, self.data)
        if fits and private:
            # After what leaves was worked out: a score of these heads would have no bound.
            self.gate.serving(plan, round_number)
            fit_findings_head(resident.model, self.data, plan, round_number, self.name)
            write_arrays(self.serving_model(plan), all_parameters(resident.model))
        return Scores(leaving)

    def final_model(self, plan: Plan) -> Path:
        """Where `finish` puts the site's personal model: all its parameters by name."""
        return States(self.folder.state, plan).folder / "final.safetensors"

    def serving_model(self, plan: Plan) -> Path:
        """Where `finish` puts a private plan's model with heads fitted without noise.

        Its heads are protected by one thing only: they never leave the site.
        """
        return States(self.folder.state, plan).folder / "serving.safetensors"

    def heads(self, model: MultitaskModel) -> Heads:
        """The model's heads as this site's: they speak on what the site could teach them."""
        covers = self.covers
        lungs = model.lungs if LUNGS in covers else None
        findings = tuple(name for name in covers if name != LUNGS)
        bridge = model.findings if lungs is not None and lungs.bridged else None
        return Heads(model.findings if findings else None, lungs, findings, bridge)

    def _as_of(self, plan: Plan, round_number: int, shared: Flat) -> Resident:
        """The resident model with the site's heads after a round, and these shared parameters."""
        resident = self._prepare(plan)
        States(self.folder.state, plan).restore(resident, None, before=round_number + 1)
        load_flat(resident.model, resident.layout, shared)
        return resident

    def _scores(self, resident: Resident, plan: Plan, round_number: int) -> Scores:
        """On the validation rows, without what is counted on too few of them.

        All of it goes into the site's own notes.
        """
        rows = self.data.supervised("val", plan.tasks)
        heads = self.heads(resident.model)
        [own], _ = predict(resident.model, [heads], self.data, rows)
        truth, least = true_findings(self.data, rows), self.policy.min_cell
        note_locally(self.folder.reports, plan, round_number, score(own, truth, "val").metrics)
        return score(own, truth, "val", least)

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

    def _prepare(self, plan: Plan) -> Resident:
        if plan.model.image_size != self.image_size:
            found = f"images of {self.image_size} px"
            allowed = f"{plan.model.image_size} px, as the plan asks"
            cache = str(self.folder.cache)
            raise CacheError(
                Problem(
                    cache,
                    "",
                    found,
                    allowed,
                    "Build a cache of that size, for the same site folder and ledger.",
                )
            )
        if self._resident is None or self._resident.plan_sha256 != plan.sha256:
            self._resident = Resident(plan, self.device)
        return self._resident
