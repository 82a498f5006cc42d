"""Rows 1, 4 and 10 on a GPU, without Flower and Opacus: python -m simulations.bench.gpu

DenseNet-121 at 224 px, findings only, on synthetic pixels that lie on the GPU as one uint8
array, as `client.data.batches` keeps a site's cache there. "Fast" is what a site does on a GPU:
bf16 autocast, NHWC memory and torch.compile.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from client.data.batches import SiteData
from common.checkpoint import write_json
from common.errors import ConsiliumError, InputError, Problem
from common.model_plan import Backbone
from common.sections import TasksPlan
from simulations.bench import print_rows
from simulations.bench.learner import (
    BOOKKEEPING,
    FEEDING,
    Learner,
    bench_plan,
    compared_rounds,
    make_learner,
    round_by_hand,
    steps_from_cache,
    steps_on,
    synthetic_data,
)
from simulations.bench.timing import Goal, Row, interleave, machine, quotients, row

SPEED, GAIN = Goal(">=", 3000.0), Goal(">=", 3.0)


@dataclass(frozen=True)
class GpuScale:
    """Amounts of work; the defaults are what the goals are about.

    image_size: pixels per side. batch_size: images. steps: of one timed block. images: in the
    array. compiled: whether the fast side uses torch.compile.
    """

    backbone: Backbone = "densenet121"
    image_size: int = 224
    batch_size: int = 128
    steps: int = 20
    images: int = 8192
    compiled: bool = True


def require_gpu() -> torch.device:
    """The first CUDA device. Raises InputError without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    raise InputError(
        Problem(
            "this machine",
            "",
            "no CUDA device that torch can use",
            "an NVIDIA GPU and a CUDA build of torch",
            "Run it on a GPU host; `make bench` needs none.",
        )
    )


def measure_gpu(device: torch.device, scale: GpuScale, repeats: int) -> list[Row]:
    """Rows 1, 4 and 10 on `device`.

    On a CPU, which the tests use, both sides compute in fp32 and the ratios say nothing.
    """
    fast = device.type == "cuda"
    tasks = TasksPlan(lungs=False)
    size, batch = scale.image_size, scale.batch_size
    plan = bench_plan(scale.backbone, size, batch, scale.steps, tasks)
    shape = (scale.images // batch * batch, size, size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = synthetic_data(pixels, device)
    learner = make_learner(plan, device, fast, scale.compiled)
    eager = make_learner(plan, device)
    about = (
        f"{scale.backbone} at {size} px, batches of {batch}, {scale.steps} steps a repeat, "
        f"{len(pixels):,} random images as uint8 on the device"
    )
    measured = _feeding(learner, data, repeats, about)
    return measured + _speed(learner, eager, data, repeats, about)


def _feeding(learner: Learner, data: SiteData, repeats: int, about: str) -> list[Row]:
    fixed = data.batch(data.rows("train")[: learner.plan.training.batch_size])
    seconds = interleave(
        {
            "cache": lambda: steps_from_cache(learner, data),
            "fixed": lambda: steps_on(learner, fixed),
        },
        repeats,
        settle=lambda: _settle(learner.device),
    )
    values = quotients(seconds["fixed"], seconds["cache"])
    note = f"{about}; fast on both sides; gathered and augmented against one batch in memory"
    return [row(1, "training from the cache / on one batch", values, "", FEEDING, note)]


def _speed(learner: Learner, eager: Learner, data: SiteData, repeats: int, about: str) -> list[Row]:
    """Rows 4 and 10 from one interleaved measurement of three arms."""
    arms = {**compared_rounds(learner, data), "eager": lambda: round_by_hand(eager, data, 1)}
    seconds = interleave(arms, repeats, settle=lambda: _settle(learner.device))
    training = learner.plan.training
    images = float((training.local_steps or 0) * training.batch_size)
    ours, fp32 = seconds["ours"], "eager fp32 with PyTorch's default precision settings"
    rates = [images / each for each in ours]
    kept = (
        f"{about}; client.learning.train.train_round against the loop by hand, fast on both sides"
    )
    speed = f"{about}; client.learning.train.train_round, fast"
    gain = f"{about}; client.learning.train.train_round, fast, against the loop by hand, {fp32}"
    by_hand = quotients(seconds["hand"], ours)
    return [
        row(4, "our local training / minimal loop", by_hand, "", BOOKKEEPING, kept),
        row(10, "training speed", rates, "images/s", SPEED, speed),
        row(10, "fast / eager fp32", quotients(seconds["eager"], ours), "", GAIN, gain),
    ]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write JSON if asked.

    Returns the exit code: 0, 1 when a goal is missed, 2 without a GPU or with a bad argument.
    """
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many counts")
    parser.add_argument("--batch", type=int, default=GpuScale.batch_size, help="images a step")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or not 1 <= options.batch <= GpuScale.images:
        parser.error(f"--repeats must be 1 or more, --batch 1 to {GpuScale.images}")
    try:
        return report(
            require_gpu(), GpuScale(batch_size=options.batch), options.repeats, options.json
        )
    except ConsiliumError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def report(device: torch.device, scale: GpuScale, repeats: int, file: Path | None) -> int:
    """Measure, print the table, write `file` if given; 1 when a goal is missed, else 0."""
    facts = machine() | {"device": _name(device)}
    rows = [asdict(each) for each in measure_gpu(device, scale, repeats)]
    command = f"python -m simulations.bench.gpu --batch {scale.batch_size} --repeats {repeats}"
    result = {"rows": rows, "machine": facts, "command": command}
    print_rows(result, Console())
    if file is not None:
        write_json(file, result)
    return int(any(each["met"] is False for each in rows))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    sys.exit(main())
