"""A federation in one process: small numeric sites behind the client's real answers.

The sites learn nothing about images: each pulls the shared parameters towards its own target,
and keeps a number on disk between rounds as a real site keeps its heads. That is enough to
see every word that server and sites exchange, in milliseconds.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from client import answer as courier
from client.border.gate import Gate
from client.learning.evaluate import Scores
from client.policy import Policy
from client.settings import SiteFolder, SiteSettings
from common.checkpoint import read_json, write_json
from common.errors import RefusedError
from common.model import build_model
from common.parameters import Flat, Layout, flatten, shared_layout
from common.plan import Plan
from common.update import SCHEMA, Update
from common.wire import Parcel
from server.rounds import Federation
from server.run_folder import RunFolder, begun
from server.transport import Reply

SCORES = {"ward": (0.6, 0.8, 0.7), "icu": (0.6, 0.8, 0.7), "rural": (0.6, 0.8, 0.7)}
Fault = Callable[[str, Parcel], Parcel | None]


def make_plan(heads: str = "local", encoder: str = "last", **federation: object) -> Plan:
    """A plan of the smallest model."""
    return Plan.model_validate(
        {
            "name": "test",
            "heads": heads,
            "model": {"backbone": "tiny", "image_size": 32, "decoder_width": 8},
            "training": {"local_steps": 1},
            "evaluation": {"encoder": encoder},
            "federation": {"rounds": 3, "min_sites": 2, "round_timeout": 5.0, **federation},
        }
    )


@lru_cache(maxsize=2)
def start(heads: str) -> tuple[Layout, Flat]:
    """Layout and initial shared parameters of `make_plan`'s model."""
    model = build_model(make_plan(heads))
    layout = shared_layout(model, "local" if heads == "local" else "shared")
    return layout, flatten(model, layout)


class NumericSite:
    """Stands for client.site.Site: same methods, no images."""

    def __init__(self, path: Path) -> None:
        self.policy = Policy(non_private="allow")
        settings = SiteSettings(
            name=path.name, cache=Path("cache"), annotates=(), policy=self.policy, simulated=True
        )
        self.folder = SiteFolder(path, settings)
        self.gate = Gate(self.folder, lambda: ["1"])
        self.name = path.name
        self.finished: list[Flat] = []

    def look_again(self) -> None:
        """There is no data to look at."""

    def train(self, plan: Plan, number: int, shared: Flat) -> Update:
        """A step of a tenth towards the target, plus what the site remembers."""
        if (self.folder.path / "refuses").exists():
            raise RefusedError("secret text about the policy", "budget-spent", 7)
        if (self.folder.path / "broken").exists():
            raise RuntimeError("secret text with a path /data/patients")
        needs = self.gate.admit("train", plan, number)
        self.gate.reserve(plan, number, needs)
        layout, _ = start(plan.heads)
        before = self.folder.state / f"memory-{number - 1}.json"
        memory = float(read_json(before)) if before.exists() else 0.0
        write_json(self.folder.state / f"memory-{number}.json", memory + 0.01)
        step = np.float32(0.1) * (target(self.name, layout.size) - shared) + np.float32(memory)
        scores = SCORES.get(self.name, ())
        metrics = {"val_macro_auroc": scores[number - 1]} if number <= len(scores) else {}
        return Update(
            SCHEMA, plan.sha256, number, self.name, layout.sha256,
            step, weight(self.name), (), metrics, 0.1,
        )  # fmt: skip

    def finish(self, plan: Plan, number: int, shared: Flat) -> Scores:
        """Remember what came."""
        self.finished.append(shared)
        return Scores({"val_macro_auroc": 0.9})


def weight(name: str) -> float:
    """Another weight for each site."""
    return float(len(name))


def target(name: str, size: int) -> Flat:
    """Where a site wants the parameters to be, (P,) float32."""
    return np.random.default_rng(len(name)).normal(size=size).astype(np.float32)


class LocalTransport:
    """Carries parcels to site folders in this process; faults may change or drop answers."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = dict(enumerate(folders, start=11))
        self.faults: dict[str, Fault] = {}
        self.sent: list[tuple[str, int, tuple[str, ...]]] = []

    def nodes(self) -> list[int]:
        """All folders are connected."""
        return list(self.folders)

    def ask(self, action: str, parcels: Mapping[int, Parcel], timeout: float) -> Iterator[Reply]:
        """Answers in another order than asked, as on a real network."""
        for node in reversed(list(parcels)):
            folder = self.folders[node]
            self.sent.append((action, node, tuple(parcels[node].arrays)))
            reply = courier.answer(action.removeprefix("query."), parcels[node], folder)
            changed = self.faults.get(folder.name, lambda action, parcel: parcel)(action, reply)
            if changed is not None:
                yield Reply(node, changed, str(changed.config.get("error", "")))


class World:
    """Site folders, a transport, and a run folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        monkeypatch.setattr(courier, "_sites", {})
        monkeypatch.setattr(courier.Site, "open", NumericSite)
        monkeypatch.setattr("server.arrivals.POLL_SECONDS", 0.01)
        # No power cut here: without waiting for the disk, hundreds of runs take seconds.
        monkeypatch.setattr("os.fsync", lambda handle: None)
        folders = [root / name for name in names]
        for folder in folders:
            folder.mkdir(parents=True)
        self.run_path = root / "run"
        self.transport = LocalTransport(folders)
        self.lines: list[str] = []

    def run(self, plan: Plan, start_timeout: float = 0.2) -> RunFolder:
        """Start, or go on with, the run; returns its closed folder."""
        layout, base = start(plan.heads)
        if begun(self.run_path):
            folder = RunFolder.resume(self.run_path, plan, layout)
        else:
            folder = RunFolder.create(self.run_path, plan, layout, base)
        try:
            transport, say = self.transport, self.lines.append
            Federation(plan, layout, folder, transport, say, start_timeout).run()
        finally:
            folder.close()
        return folder
