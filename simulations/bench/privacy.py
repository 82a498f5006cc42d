"""Row 9: what a private step costs beside a plain one, in time and in memory.

Run by itself (`python -m simulations.bench.privacy private densenet121 224 16`) it takes steps of
one kind and prints the most memory that the process ever had: kinds that share a process would
share its peak as well.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import torch

from client.privacy.engines import LoopEngine
from client.privacy.material import Material as Units
from client.privacy.material import Weights, apart
from client.privacy.random import SecureRandom
from client.privacy.step import PrivateStep
from common.errors import ConsiliumError
from common.findings import FINDINGS
from common.losses import Batch
from common.model_plan import Backbone
from common.sections import TasksPlan
from simulations.bench.learner import CLIP, Learner, bench_plan, make_learner, step
from simulations.bench.material import Material, Scale
from simulations.bench.timing import Goal, Row, Work, cores, interleave, quotients, row

SECONDS, MEMORY = Goal("<=", 1.6), Goal("<=", 1.2)
NOISE = 1.0  # multiplier; the time does not depend on it
STEPS_FOR_PEAK = 2  # the optimizer's own memory is there from the first on
Kind = Literal["plain", "private"]
ROOT = Path(__file__).resolve().parents[2]


class PeakUnknownError(ConsiliumError):
    """The process that was to take the steps failed."""


def private_steps(material: Material, repeats: int) -> list[Row]:
    """Row 9: private over plain, seconds of a step and peak memory of a process."""
    scale = material.scale
    backbone, size, batch = scale.private_backbone, scale.private_image_size, scale.batch_size
    works = {kind: step_of(kind, backbone, size, batch) for kind in get_args(Kind)}
    seconds = interleave(works, repeats)
    peaks = {kind: peak(kind, scale) for kind in get_args(Kind)}  # a size needs no repeats
    note = (
        f"{backbone} with GroupNorm at {size} px, findings only, {batch} images, each a unit of "
        f"its own, fp32 on {cores()} cores: the loop engine with clipping, the kernel's noise "
        "and the optimizer's step, against the same batch in one pass"
    )
    memory = f"{note}; each in a process of its own, with Python and torch in it"
    memory += f"; private {peaks['private']:,.0f} MB, plain {peaks['plain']:,.0f} MB"
    times = quotients(seconds["private"], seconds["plain"])
    share = peaks["private"] / peaks["plain"]
    return [
        row(9, "private step / plain step", times, "", SECONDS, note),
        row(9, "private / plain peak memory", [share], "", MEMORY, memory),
    ]


def step_of(kind: Kind, backbone: Backbone, size: int, batch: int) -> Work:
    """One optimizer step on a batch in memory, of one kind, as a function without arguments."""
    plan = bench_plan(backbone, size, batch, 1, TasksPlan(lungs=False))
    learner = make_learner(plan, torch.device("cpu"))
    images = synthetic_batch(size, batch)
    if kind == "plain":
        return lambda: step(learner, images)
    return _private(learner, images)


def _private(learner: Learner, batch: Batch) -> Work:
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    engine = LoopEngine(learner.model, batch.units)
    private = PrivateStep(engine, trained, SecureRandom(), CLIP, NOISE, batch.units)
    weights = Weights(findings=1.0, lungs=0.0)

    def work() -> None:
        private.step(apart(Units(batch)), weights)
        learner.optimizer.step()

    return work


def synthetic_batch(size: int, batch: int) -> Batch:
    """`batch` random images (1, S, S) with all findings known and no mask, each its own unit."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.rand(batch, 1, size, size, generator=generator),
        targets=torch.bernoulli(torch.full((batch, len(FINDINGS)), 0.1), generator=generator),
        known=torch.ones(batch, len(FINDINGS), dtype=torch.bool),
        lung_rows=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 1, size, size),
        unit=torch.arange(batch),
        units=batch,
    )


def peak(kind: Kind, scale: Scale) -> float:
    """Peak memory, in MB, of a process that takes steps of one kind and nothing else.

    Raises PeakUnknownError when it fails.
    """
    amounts = (scale.private_backbone, scale.private_image_size, scale.batch_size)
    command = [sys.executable, "-m", "simulations.bench.privacy", kind, *map(str, amounts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PeakUnknownError(f"the {kind} steps of row 9 failed: {last}")
    return float(done.stdout)


def main(kind: Kind, backbone: Backbone, size: int, batch: int) -> None:
    """Take a few steps and print this process's peak memory in MB."""
    work = step_of(kind, backbone, size, batch)
    for _ in range(STEPS_FOR_PEAK):
        work()
    print(most_memory())


def most_memory() -> float:
    """The most memory that this process has had since its program was started, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a process begins with the peak of the one that started it.
        [line] = (x for x in status.read_text(encoding="utf-8").splitlines() if "VmHWM" in x)
        return int(line.split()[1]) * 1024 / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))  # type: ignore[arg-type]
