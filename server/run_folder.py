"""A run on disk: what a killed server needs to go on as if nothing had happened.

    plan.yaml                    the plan, all values written out
    base.safetensors             the parameters that the federation started from
    checkpoints/round-N          shared parameters after round N, and the strategy's moments
    rounds.jsonl                 one line a round
    state.json                   which round is finished and which checkpoints belong to it
    encoder-latest, encoder-best the encoder by names; best is latest while no round is scored
    progress.log                 the lines that a person follows

A round is finished when state.json says so: it is replaced in one step, after the checkpoint
and the line of rounds.jsonl are on disk. Whatever is newer than state.json is dropped on
resume, whatever follows from it (the encoder files) is written again.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import yaml

from common.checkpoint import (
    array_sha256,
    read_arrays,
    read_object,
    write_arrays,
    write_bytes,
    write_json,
)
from common.errors import InputError, Problem
from common.parameters import Flat, Layout
from common.plan import Plan

STATE, ROUNDS, PROGRESS = "state.json", "rounds.jsonl", "progress.log"
LATEST, BEST, BASE = "encoder-latest.safetensors", "encoder-best.safetensors", "base.safetensors"
_SHARED, _STRATEGY = "shared", "strategy."


@dataclass(frozen=True)
class Best:
    """The best encoder so far: the one after `round`, by the sites' median of `metric`."""

    round: int
    metric: str
    score: float


@dataclass(frozen=True, eq=False)
class State:
    """A run after its last finished round.

    shared: (P,) float32, the master copy. strategy: moments, (P,) each, by name. names: by node.
    """

    round: int
    shared: Flat
    strategy: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    best: Best | None = None
    names: Mapping[int, str] = field(default_factory=dict)


def begun(path: Path) -> bool:
    """Whether the folder holds a run that has begun, so that it can be resumed."""
    file = path / STATE
    return file.exists() and read_object(file).get("plan_sha256") is not None


def check_run(path: Path, plan: Plan, resume: bool) -> None:
    """Raise InputError when `path` can't take this run: a new one, or the rest of an old one."""
    if not resume:
        if begun(path):
            next_step = "Resume it, or choose another folder."
            problem = Problem(str(path), "", "an earlier run", "a folder without one", next_step)
            raise InputError(problem)
        return
    if not begun(path):
        found, next_step = "no run to resume", "Start without resume."
        raise InputError(Problem(str(path), "", found, "a run folder", next_step))
    _lock(path).close()  # refused here while its server is alive
    found = read_object(path / STATE)["plan_sha256"]
    if found != plan.sha256:
        raise InputError(
            Problem(
                str(path),
                "the plan",
                f"a run of plan {str(found)[:12]}",
                f"the plan that it was started with, not {plan.sha256[:12]}",
                "Resume with the run's own plan.yaml, or start a new run.",
            )
        )


def write_plan(path: Path, plan: Plan) -> Path:
    """Write plan.yaml with all values spelled out; returns the file."""
    file = path / "plan.yaml"
    text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
    write_bytes(file, text.encode())
    return file


class RunFolder:
    """The open run folder of one server process; a second process is refused."""

    def __init__(self, path: Path, plan: Plan, layout: Layout) -> None:
        """Lock the folder (made if need be). Use `create` or `resume`."""
        self.path, self._plan, self._layout = path, plan, layout
        self._lock = _lock(path)
        self.base: Flat = np.zeros(0, np.float32)
        self.state = State(0, self.base)

    @classmethod
    def create(cls, path: Path, plan: Plan, layout: Layout, base: Flat) -> "RunFolder":
        """Start a run from `base`, (P,) float32. Raises InputError if there is one already."""
        check_run(path, plan, resume=False)
        folder = cls(path, plan, layout)
        with folder._closed_on_error():
            folder.base = base
            write_plan(path, plan)
            write_arrays(path / BASE, {_SHARED: base})
            write_bytes(path / ROUNDS, b"")
            folder._save(State(0, base), "running")
        return folder

    @classmethod
    def resume(cls, path: Path, plan: Plan, layout: Layout) -> "RunFolder":
        """Take up a run at its last finished round.

        Raises InputError when there is none, when it belongs to another plan or model, or
        when a checkpoint is damaged.
        """
        check_run(path, plan, resume=True)
        folder = cls(path, plan, layout)
        with folder._closed_on_error():
            folder._load()
        return folder

    def commit(self, state: State, record: Mapping[str, Any]) -> None:
        """Finish a round: checkpoint, then its line in rounds.jsonl, then state.json."""
        write_arrays(
            self._checkpoint(state.round),
            {_SHARED: state.shared} | {_STRATEGY + k: v for k, v in state.strategy.items()},
        )
        self.append(record)
        self._save(state, "running")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to rounds.jsonl and sync it. NaN is refused: undefined is null."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def best_encoder(self) -> Flat:
        """(P,) float32 after the best round, or the latest where no round was scored."""
        best = self.state.best
        if best is None:
            return self.state.shared
        return read_arrays(self._checkpoint(best.round))[_SHARED]

    def complete(self, finish: Mapping[str, Any]) -> None:
        """Mark the run completed. finish: what the sites said after the last round."""
        self._save(self.state, "completed", exit_code=0, finish=dict(finish))

    def fail(self, exit_code: int, reason: str) -> None:
        """Mark the run failed, keeping its last finished round for a resume."""
        self._save(self.state, "failed", exit_code=exit_code, reason=reason)

    def close(self) -> None:
        """Let another process open the folder."""
        self._lock.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _save(self, state: State, status: str, **more: Any) -> None:
        best = state.best
        value = {
            "schema": 1,
            "status": status,
            "exit_code": None,
            "reason": None,
            "finish": None,
            "round": state.round,
            "rounds": self._plan.federation.rounds,
            "plan_sha256": self._plan.sha256,
            "layout_sha256": self._layout.sha256,
            "base_sha256": array_sha256(self.base),
            "encoder_sha256": array_sha256(state.shared),
            "best": None if best is None else vars(best),
            "names": {str(node): name for node, name in sorted(state.names.items())},
        }
        write_json(self.path / STATE, value | more)
        self.state = state
        self._publish()

    def _load(self) -> None:
        saved = read_object(self.path / STATE, round=int, base_sha256=str, encoder_sha256=str)
        if saved.get("layout_sha256") != self._layout.sha256:
            found, allowed = "parameters of another model", "those of the plan's model"
            next_step = "Resume with the version of Consilium that started the run."
            raise InputError(Problem(str(self.path), BASE, found, allowed, next_step))
        self.base = self._verified(self.path / BASE, saved["base_sha256"])[_SHARED]
        arrays = {_SHARED: self.base}
        if saved["round"] > 0:
            arrays = self._verified(self._checkpoint(saved["round"]), saved["encoder_sha256"])
        strategy = {
            name.removeprefix(_STRATEGY): value
            for name, value in arrays.items()
            if name.startswith(_STRATEGY)
        }
        best = None if saved.get("best") is None else Best(**saved["best"])
        names = {int(node): name for node, name in saved.get("names", {}).items()}
        self._drop_unfinished(saved["round"])
        self._save(State(saved["round"], arrays[_SHARED], strategy, best, names), "running")

    def _verified(self, file: Path, sha256: str) -> dict[str, npt.NDArray[Any]]:
        arrays = read_arrays(file)
        if _SHARED not in arrays or array_sha256(arrays[_SHARED]) != sha256:
            found, allowed = "other parameters than the run saved", f"SHA-256 {sha256[:12]}"
            raise InputError(Problem(str(file), "", found, allowed, "Restore it, or start anew."))
        return arrays

    def _drop_unfinished(self, last: int) -> None:
        """Cut rounds.jsonl to finished rounds: the server may have died in mid-write."""
        lines = (self.path / ROUNDS).read_text(encoding="utf-8").splitlines()
        kept = {}
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # half a line, or not a round's
                record = json.loads(line)
                if record["status"] == "done" and record["round"] <= last:
                    kept[record["round"]] = line
        write_bytes(self.path / ROUNDS, "".join(f"{line}\n" for line in kept.values()).encode())

    def _publish(self) -> None:
        """Write the encoder files that follow from the state, and drop older checkpoints."""
        self._write_named(self.path / LATEST, self.state.shared)
        self._write_named(self.path / BEST, self.best_encoder())
        best, last = self.state.best, self.state.round
        needed = {self._checkpoint(number) for number in (last, best.round if best else last)}
        for file in (self.path / "checkpoints").glob("round-*.safetensors"):
            if file not in needed:
                file.unlink()

    def _write_named(self, file: Path, flat: Flat) -> None:
        parts, start = {}, 0
        for name, shape in zip(self._layout.names, self._layout.shapes, strict=True):
            end = start + prod(shape)
            parts[name] = flat[start:end].reshape(shape)
            start = end
        write_arrays(file, parts)

    def _checkpoint(self, number: int) -> Path:
        return self.path / "checkpoints" / f"round-{number:05d}.safetensors"


def read_encoder(file: Path, layout: Layout) -> Flat:
    """The shared parameters of an encoder file, (P,) float32, in the layout's order.

    Raises InputError when the file is damaged or holds another model.
    """
    arrays = read_arrays(file)
    if {name: value.shape for name, value in arrays.items()} != dict(
        zip(layout.names, layout.shapes, strict=True)
    ):
        found, allowed = "other parameters", "those of the plan's model"
        raise InputError(Problem(str(file), "", found, allowed, "Use the run's own plan."))
    return np.concatenate([arrays[name].reshape(-1) for name in layout.names])


def _lock(path: Path) -> IO[str]:
    """An exclusive lock that the kernel lets go when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        problem = Problem(str(path), "", reason, "a writable folder", "Choose another folder.")
        raise InputError(problem) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        found, allowed = "a server that is using it", "one server a run folder"
        problem = Problem(str(path), "", found, allowed, "Stop that server, or wait for it.")
        raise InputError(problem) from None
    return file
