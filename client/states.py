"""What a site keeps between rounds: heads, optimizer, and the private updates already paid for.

Files without pickle, each written atomically, in a folder of the plan's own. Nothing of this
leaves the site.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from client.optimizer import optimizer_arrays, restore_optimizer
from client.resident import Arrays, Resident
from common.checkpoint import read_arrays, write_arrays
from common.parameters import Flat
from common.plan import Plan

STATES_KEPT = 2  # the last finished round, and the one before it in case that is replayed
HEADS, OPTIMIZER = "head/", "optimizer/"


class States:
    """The state files of one plan at one site."""

    def __init__(self, state: Path, plan: Plan) -> None:
        """state: the site's state folder."""
        self.folder = state / plan.sha256[:16]

    def save(self, resident: Resident, optimizer: torch.optim.Optimizer, round_number: int) -> None:
        """Keep heads and optimizer as they are after a round; forget what is too old or later."""
        arrays = {HEADS + k: v for k, v in resident.local_parameters().items()}
        moments = optimizer_arrays(resident.model, optimizer)
        arrays |= {OPTIMIZER + k: v for k, v in moments.items()}
        write_arrays(self.folder / f"round-{round_number:05d}.safetensors", arrays)
        for kind in ("round", "sent"):
            for other in self._numbers(kind):
                # Later ones are of an earlier run of this plan, or of rounds done again.
                if not round_number - STATES_KEPT < other <= round_number:
                    (self.folder / f"{kind}-{other:05d}.safetensors").unlink()

    def restore(
        self, resident: Resident, optimizer: torch.optim.Optimizer | None, before: int
    ) -> None:
        """Heads and optimizer as they were after the last round before `before`."""
        rounds = [number for number in self._numbers("round") if number < before]
        arrays: Arrays = {}
        if rounds:
            arrays = read_arrays(self.folder / f"round-{max(rounds):05d}.safetensors")
        resident.set_local_parameters(_below(HEADS, arrays))
        if optimizer is not None:
            restore_optimizer(resident.model, optimizer, _below(OPTIMIZER, arrays))

    def keep_sent(self, round_number: int, received_sha256: str, delta: Flat) -> None:
        """Keep the update of a private round, trained from the parameters of that hash."""
        arrays: Arrays = {
            "delta": delta,
            "received": np.frombuffer(received_sha256.encode(), np.uint8),
        }
        write_arrays(self.folder / f"sent-{round_number:05d}.safetensors", arrays)

    def sent(self, round_number: int, received_sha256: str) -> Flat | None:
        """The kept update of a round, (P,) float32, if it was trained from these parameters."""
        if round_number not in self._numbers("sent"):
            return None
        arrays = read_arrays(self.folder / f"sent-{round_number:05d}.safetensors")
        if arrays["received"].tobytes().decode() != received_sha256:
            return None
        return arrays["delta"]

    def _numbers(self, kind: str) -> list[int]:
        pattern = re.compile(rf"{kind}-(\d+)\.safetensors")
        found = (pattern.fullmatch(path.name) for path in self.folder.glob("*"))
        return [int(match[1]) for match in found if match]


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def note_locally(
    reports: Path, plan: Plan, round_number: int, metrics: Mapping[str, float]
) -> None:
    """Append a round's scores to reports/scores.jsonl, for the site's own eyes: not noised."""
    reports.mkdir(exist_ok=True)
    line = {"plan": plan.name, "round": round_number, "scores": dict(metrics)}
    with (reports / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
