"""What a site keeps between rounds: heads, optimizer, and the private updates already paid for.

Files without pickle, each written atomically, in a folder of the plan's own. Nothing of this
leaves the site.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.learning.optimizer import optimizer_arrays, restore_optimizer
from client.learning.resident import Arrays, Resident
from client.notes import append
from common.checkpoint import read_arrays, write_arrays
from common.errors import InputError, Problem
from common.parameters import Flat
from common.plan import Plan

STATES_KEPT = 2  # the last finished round, and the one before it in case that is replayed
PLANS_KEPT = 20  # of which heads, optimizer and updates are kept
HEADS, OPTIMIZER = "head/", "optimizer/"


@dataclass(frozen=True, eq=False)
class Sent:
    """A kept update: delta (P,) float32, and the ledger's entry that paid, by number and hash.

    It may leave again only while the ledger holds that entry.
    """

    delta: Flat
    entry: int
    entry_sha256: str


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
        """Heads and optimizer as they were after the last round before `before`.

        Raises InputError when the file is damaged or of another plan.
        """
        rounds = [number for number in self._numbers("round") if number < before]
        file = self.folder / f"round-{max(rounds, default=0):05d}.safetensors"
        arrays = read_arrays(file) if rounds else {}
        try:
            resident.set_local_parameters(_below(HEADS, arrays))
            if optimizer is not None:
                restore_optimizer(resident.model, optimizer, _below(OPTIMIZER, arrays))
        except (KeyError, ValueError, TypeError, RuntimeError):
            step = "Restore it, or delete it: the heads then go on from the round before."
            raise _unfit(file, "heads and optimizer of the plan's model", step) from None

    def keep_sent(
        self, round_number: int, received_sha256: str, delta: Flat, entry: int, entry_sha256: str
    ) -> None:
        """Keep the update of a private round, trained from the parameters of that hash.

        entry, entry_sha256: number and hash of the ledger's entry that paid for it.
        """
        arrays: Arrays = {
            "delta": delta,
            "received": np.frombuffer(received_sha256.encode(), np.uint8),
            "entry": np.array([entry]),
            "entry_sha256": np.frombuffer(entry_sha256.encode(), np.uint8),
        }
        write_arrays(self.folder / f"sent-{round_number:05d}.safetensors", arrays)

    def sent(self, round_number: int, received_sha256: str) -> Sent | None:
        """The kept update of a round, if it was trained from these parameters.

        Raises InputError when the file is damaged.
        """
        file = self.folder / f"sent-{round_number:05d}.safetensors"
        if not file.exists():
            return None
        arrays = read_arrays(file)
        try:
            received, entry_sha256 = (
                arrays[name].tobytes().decode() for name in ("received", "entry_sha256")
            )
            kept = Sent(arrays["delta"], int(arrays["entry"][0]), entry_sha256)
        except (KeyError, IndexError, ValueError):
            step = "Restore it, or delete it: the round is then trained, and charged, again."
            raise _unfit(file, "a kept update and the entry that paid for it", step) from None
        return kept if received == received_sha256 else None

    def _numbers(self, kind: str) -> list[int]:
        pattern = re.compile(rf"{kind}-(\d+)\.safetensors")
        found = (pattern.fullmatch(path.name) for path in self.folder.glob("*"))
        return [int(match[1]) for match in found if match]


def tidy(state: Path, charged: Collection[str]) -> None:
    """Keep no more than the last PLANS_KEPT plans' states: anybody may ask for ever new plans.

    state: the site's state folder. charged: hashes of the plans that something was charged for;
    what the site made of them for its own use stays, however many there are.
    """
    folders = [each for each in state.glob("*") if re.fullmatch(r"[0-9a-f]{16}", each.name)]
    folders.sort(key=lambda each: each.stat().st_mtime_ns)
    own = {sha256[:16] for sha256 in charged}
    for folder in folders[:-PLANS_KEPT]:
        for file in list(folder.iterdir()):
            if folder.name not in own or file.name.startswith(("round-", "sent-")):
                file.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _unfit(file: Path, allowed: str, step: str) -> InputError:
    return InputError(Problem(str(file), "", "other arrays", allowed, step))


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def note_locally(
    reports: Path, plan: Plan, round_number: int, metrics: Mapping[str, float]
) -> None:
    """Append a round's scores to reports/scores.jsonl, for the site's own eyes: not noised."""
    line = {"plan": plan.name, "round": round_number, "scores": dict(metrics)}
    append(reports / "scores.jsonl", json.dumps(line, sort_keys=True))
