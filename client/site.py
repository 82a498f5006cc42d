"""A hospital site: the one object that touches its data. Knows nothing of Flower.

Simulation and deployment use the same class on the same kind of folder; only the transport
that carries `shared` in and the `Update` out is different.
"""

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.batches import SiteData, load_site_data
from client.cache import open_cache
from client.evaluate import Heads, Scores, predict, score, true_findings
from client.finish import fit_findings_head
from client.optimizer import make_optimizer, optimizer_arrays, restore_optimizer
from client.settings import SiteFolder, open_site_folder
from client.train import train_round
from client.unlabelled import unlabelled_rows
from common.checkpoint import read_arrays, write_arrays
from common.errors import CacheError, Problem
from common.findings import FINDINGS
from common.model import MultitaskModel, build_model
from common.parameters import LUNGS, Flat, Layout, flatten, load_flat, shared_layout
from common.plan import Plan
from common.update import SCHEMA, Update

Arrays = dict[str, npt.NDArray[Any]]

STATES_KEPT = 2  # the last finished round, and the one before it in case that is replayed


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
        self._resident: _Resident | None = None

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
    def covers(self) -> tuple[str, ...]:
        """Findings with a usable label on a training row, and "lungs" with a training mask."""
        rows, known = self.data.rows("train"), self.data.annotated("train")
        findings = (name for name, has in zip(FINDINGS, known, strict=True) if has)
        has_masks = bool((self.data.mask_row[rows] >= 0).any())
        return (*findings, *((LUNGS,) if has_masks else ()))

    def train(self, plan: Plan, round_number: int, shared: Flat) -> Update:
        """Train one round from the received shared parameters, (P,) float32.

        Local heads and optimizer go on from the site's last round before this one, so a round
        that is asked for twice gives the same update twice. Raises LayoutError for a vector of
        another layout, CacheError for another image size, DivergedError for a lost loss.
        """
        started = time.monotonic()
        resident = self._prepare(plan)
        optimizer = make_optimizer(resident.model, plan.training)
        self._restore(resident, optimizer, plan, before=round_number)
        load_flat(resident.model, resident.layout, shared)
        report = train_round(
            resident.model, resident.forward, optimizer, self.data, plan, round_number, self.name
        )
        trained = flatten(resident.model, resident.layout)
        metrics = {"train_loss": report.loss}
        if round_number % plan.evaluation.every == 0:
            metrics |= self._scores(resident, "val").metrics
        self._save(resident, optimizer, plan, round_number)
        return Update(
            schema=SCHEMA,
            plan_sha256=plan.sha256,
            round=round_number,
            site=self.name,
            layout_sha256=resident.layout.sha256,
            delta=trained - shared,
            weight=self._weight(plan),
            covers=self.covers,
            metrics=metrics,
            seconds=time.monotonic() - started,
        )

    def evaluate(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """Score the shared parameters with the site's own heads on its validation rows."""
        resident = self._prepare(plan)
        self._restore(resident, None, plan, before=round_number + 1)
        load_flat(resident.model, resident.layout, shared)
        return self._scores(resident, "val")

    def finish(self, plan: Plan, round_number: int, shared: Flat) -> Scores:
        """After the last round: fit the findings head to the final encoder and keep it.

        Nothing is sent but the validation scores. The model lies in `final_model(plan)`.
        """
        resident = self._prepare(plan)
        self._restore(resident, None, plan, before=round_number + 1)
        load_flat(resident.model, resident.layout, shared)
        fit_findings_head(resident.model, self.data, plan, round_number, self.name)
        write_arrays(self.final_model(plan), _parameters(resident.model, ""))
        return self._scores(resident, "val")

    def final_model(self, plan: Plan) -> Path:
        """Where `finish` puts the site's personal model: all its parameters by name."""
        return self._states(plan) / "final.safetensors"

    def heads(self, model: MultitaskModel) -> Heads:
        """The model's heads as this site's: they speak on what the site could teach them."""
        covers = self.covers
        lungs = model.lungs if LUNGS in covers else None
        findings = tuple(name for name in covers if name != LUNGS)
        bridge = model.findings if lungs is not None and lungs.bridged else None
        return Heads(model.findings if findings else None, lungs, findings, bridge)

    def _scores(self, resident: "_Resident", split: str) -> Scores:
        rows = self.data.supervised(split, resident.tasks)
        heads = self.heads(resident.model)
        [own], _ = predict(resident.model, [heads], self.data, rows)
        return score(own, true_findings(self.data, rows), split)

    def _weight(self, plan: Plan) -> float:
        if plan.federation.weighting == "equal":
            return 1.0
        if plan.federation.weighting == "size":
            return float(len(self.data.rows("train")))
        labelled = self.data.supervised("train", plan.tasks)
        silent = np.setdiff1d(unlabelled_rows(self.data, plan), labelled)
        return float(max(1, len(labelled) + round(plan.semi_supervision.vote * len(silent))))

    def _prepare(self, plan: Plan) -> "_Resident":
        if plan.model.image_size != self.image_size:
            found = f"images of {self.image_size} px"
            allowed = f"{plan.model.image_size} px, as the plan asks"
            cache = str(self.folder.cache)
            raise CacheError(Problem(cache, "", found, allowed, "Build a cache of that size."))
        if self._resident is None or self._resident.plan_sha256 != plan.sha256:
            self._resident = _Resident(plan, self.device)
        return self._resident

    def _states(self, plan: Plan) -> Path:
        return self.folder.state / plan.sha256[:16]

    def _save(
        self,
        resident: "_Resident",
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        round_number: int,
    ) -> None:
        arrays = {f"head/{k}": v for k, v in resident.local_parameters().items()}
        moments = optimizer_arrays(resident.model, optimizer)
        arrays |= {f"optimizer/{k}": v for k, v in moments.items()}
        write_arrays(self._states(plan) / f"round-{round_number:05d}.safetensors", arrays)
        for other in _rounds_on_disk(self._states(plan)):
            # Later ones are of an earlier run of this plan, or of rounds that are done again.
            if not round_number - STATES_KEPT < other <= round_number:
                (self._states(plan) / f"round-{other:05d}.safetensors").unlink()

    def _restore(
        self,
        resident: "_Resident",
        optimizer: torch.optim.Optimizer | None,
        plan: Plan,
        before: int,
    ) -> None:
        """Heads and optimizer as they were after the last round before `before`."""
        rounds = [r for r in _rounds_on_disk(self._states(plan)) if r < before]
        arrays: Arrays = {}
        if rounds:
            arrays = read_arrays(self._states(plan) / f"round-{max(rounds):05d}.safetensors")
        resident.set_local_parameters(_below("head/", arrays))
        if optimizer is not None:
            restore_optimizer(resident.model, optimizer, _below("optimizer/", arrays))


class _Resident:
    """One plan's model, built once and kept on the device between rounds."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        if plan.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(plan.deterministic)
        self.plan_sha256, self.tasks = plan.sha256, plan.tasks
        self.model = build_model(plan, pretrained=False).to(device)
        if device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: nn.Module = (
            torch.compile(self.model) if plan.training.compile else self.model  # type: ignore[assignment]
        )
        self.layout: Layout = shared_layout(self.model, plan.heads)
        self._fresh = self.local_parameters()

    def local_parameters(self) -> Arrays:
        """Parameters that do not travel: the local heads."""
        shared = set(self.layout.names)
        return {k: v for k, v in _parameters(self.model, "").items() if k not in shared}

    def set_local_parameters(self, arrays: Arrays) -> None:
        """Put local heads in place; those not given go back to the plan's initial ones."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self._fresh:
                    parameter.copy_(torch.from_numpy(arrays.get(name, self._fresh[name]).copy()))


def load_parameters(model: nn.Module, arrays: Arrays) -> None:
    """Copy named arrays, such as those of `Site.final_model`, into a model, in place."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    model.load_state_dict(tensors, strict=False)


def _parameters(model: nn.Module, prefix: str) -> Arrays:
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
        if name.startswith(prefix)
    }


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _rounds_on_disk(folder: Path) -> list[int]:
    found = (re.fullmatch(r"round-(\d+)\.safetensors", path.name) for path in folder.glob("*"))
    return [int(match[1]) for match in found if match]
