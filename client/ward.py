"""What a site has, and what it works out for its own eyes: nothing in here leaves."""

from functools import partial
from pathlib import Path

import torch

from client.border.deadline import check_time
from client.data.batches import SiteData
from client.data.holdings import Holdings
from client.learning.evaluate import Heads, Scores, predict, score, true_findings
from client.learning.resident import Resident
from client.learning.states import States, note_locally
from client.policy import Policy
from client.privacy.budget import declared_units
from client.settings import SiteFolder
from common.errors import CacheError, Problem
from common.findings import FINDINGS, LUNGS
from common.model import MultitaskModel
from common.parameters import Flat, load_flat
from common.plan import Plan


def pick_device(setting: str) -> torch.device:
    """The device that `site.yaml` names; "auto" is the first GPU if there is one."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(setting)


class Ward:
    """One opened site folder, with its data and one resident model, behind the gate."""

    def __init__(self, folder: SiteFolder, device: torch.device) -> None:
        """Nothing is read here."""
        self.folder = folder
        self.device = device
        self.holdings = Holdings(folder, device)
        self._resident: Resident | None = None

    @property
    def name(self) -> str:
        """The site's name, as its `site.yaml` gives it."""
        return self.folder.settings.name

    @property
    def policy(self) -> Policy:
        """What the hospital allows."""
        return self.folder.settings.policy

    @property
    def data(self) -> SiteData:
        """The site's rows. Raises DataError or CacheError when they are not in order."""
        return self.holdings.data

    @data.setter
    def data(self, data: SiteData) -> None:
        self.holdings.data = data

    @property
    def covers(self) -> tuple[str, ...]:
        """Findings with a usable label on a training row, and "lungs" with a training mask."""
        rows, known = self.data.rows("train"), self.data.annotated("train")
        findings = (name for name, has in zip(FINDINGS, known, strict=True) if has)
        has_masks = bool((self.data.mask_row[rows] >= 0).any())
        return (*findings, *((LUNGS,) if has_masks else ()))

    def look_again(self) -> None:
        """Have rows and cache looked at when they are needed next: they may have changed."""
        self.holdings.look_again()

    def patients(self) -> list[str]:
        """Identities of everybody in the site's rows, sorted."""
        return sorted(set(self.data.table["patient"].astype(str)))

    def evaluate(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """Score the shared parameters with the site's own heads on its validation rows.

        For the site itself: these scores are not noised.
        """
        return self.scores(self.as_of(plan, round_number, shared), plan, round_number)

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

    def evidence(self, plan: Plan) -> dict[str, float]:
        """On how much the site's heads rest, by finding, and "lungs": what a council weighs by.

        Positives and negatives of a finding that the site trains on count as P N / (P + N), by
        which the variance of a difference of two groups' means falls; half a row is added to
        both, for a site without positives has seen something, too. Lungs: masks. In a private
        plan nothing is counted: what the site declares stands for all of it.
        """
        if plan.privacy.mode != "off":
            return dict.fromkeys(self.covers, float(declared_units(self.folder.settings, plan)))
        rows = self.data.labelled("train", plan.tasks)
        known, targets = self.data.known[rows], self.data.targets[rows] > 0.5
        positives = (known & targets).sum(axis=0) + 0.5
        negatives = (known & ~targets).sum(axis=0) + 0.5
        counted = positives * negatives / (positives + negatives)
        masks = float(len(self.data.outlined("train", plan.tasks)))
        return dict(zip(FINDINGS, counted.tolist(), strict=True)) | {LUNGS: masks}

    def as_of(self, plan: Plan, round_number: int, shared: Flat) -> Resident:
        """The resident model with the site's heads after a round, and these shared parameters."""
        resident = self.prepare(plan)
        States(self.folder.state, plan).restore(resident, None, before=round_number + 1)
        load_flat(resident.model, resident.layout, shared)
        return resident

    def scores(
        self, resident: Resident, plan: Plan, round_number: int, until: float | None = None
    ) -> Scores:
        """On the validation rows, without what is counted on too few of them.

        All of it goes into the site's own notes. Raises FailedError once `until` is over.
        """
        rows = self.data.supervised("val", plan.tasks)
        heads = self.heads(resident.model)
        [own], _ = predict(resident.model, [heads], self.data, rows, partial(check_time, until))
        truth, least = true_findings(self.data, rows), self.policy.min_cell
        note_locally(self.folder.reports, plan, round_number, score(own, truth, "val").metrics)
        return score(own, truth, "val", least)

    def prepare(self, plan: Plan) -> Resident:
        """The resident model of a plan. Raises CacheError when the images are of another size."""
        size = self.holdings.image_size
        if plan.model.image_size != size:
            found = f"images of {size} px"
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
