"""Rows 1, 4 and 5: what training costs beside the arithmetic of its steps."""

import torch

from common.losses import Batch
from common.plan import Plan
from common.sections import TasksPlan
from simulations.bench.learner import (
    BOOKKEEPING,
    FEEDING,
    bench_plan,
    compared_rounds,
    make_learner,
    step,
    steps_from_cache,
    steps_on,
)
from simulations.bench.material import Material, Scale
from simulations.bench.timing import Goal, Row, interleave, quotients, row

CPU = torch.device("cpu")
MULTITASK, EXTRA = Goal("<=", 0.6), Goal("<=", 1.15)
MASK_SHARE = 0.2  # of the images of a batch, as rows 4 and 5 have it
TURNS = 3  # steps of each of row 5's five kinds in a repeat


def feeding(material: Material, repeats: int) -> list[Row]:
    """Row 1: images per second from the cache over images per second on one fixed batch.

    Without masks: the decoder would make the step dearer and the gathering cheaper beside it.
    """
    scale = material.scale
    data, learner = material.site_data(masks=0), make_learner(_plan(scale), CPU)
    fixed = data.batch(data.rows("train")[: scale.batch_size])
    seconds = interleave(
        {
            "cache": lambda: steps_from_cache(learner, data),
            "fixed": lambda: steps_on(learner, fixed),
        },
        repeats,
    )
    note = (
        f"{_network(scale)}, {scale.steps} steps a repeat on each side, findings "
        "only; the cache's side gathers and augments every batch, the other trains on one "
        f"batch in memory; {_speed(scale, seconds['cache'])} from the cache"
    )
    values = quotients(seconds["fixed"], seconds["cache"])
    return [row(1, "training from the cache / on one batch", values, "", FEEDING, note)]


def bookkeeping(material: Material, repeats: int) -> list[Row]:
    """Row 4: the product's local training over a loop written by hand, in images per second."""
    scale = material.scale
    data, learner = material.site_data(_masks(scale)), make_learner(_plan(scale), CPU)
    seconds = interleave(compared_rounds(learner, data), repeats)
    note = (
        f"{_network(scale)}, findings and lungs, {_masks(scale)} of {scale.batch_size} images "
        "with a mask: client.learning.train.train_round against simulations/bench/learner.py:"
        "round_by_hand, which gathers, augments and steps alike and ends with the same "
        f"parameters; {_speed(scale, seconds['ours'])} with ours"
    )
    values = quotients(seconds["hand"], seconds["ours"])
    return [row(4, "our local training / minimal loop", values, "", BOOKKEEPING, note)]


def multitasking(material: Material, repeats: int) -> list[Row]:
    """Row 5: one step for both tasks against one step for each, and against findings alone."""
    scale, masks = material.scale, _masks(material.scale)
    some, every = (_fixed(material, count) for count in (masks, scale.batch_size))
    findings = make_learner(_plan(scale, TasksPlan(lungs=False)), CPU)
    lungs = make_learner(_plan(scale, TasksPlan(findings=False)), CPU)
    both = make_learner(_plan(scale), CPU)
    seconds = interleave(
        {
            "findings": lambda: step(findings, some),
            "lungs": lambda: step(lungs, some),
            "both": lambda: step(both, some),
            "lungs, every": lambda: step(lungs, every),
            "both, every": lambda: step(both, every),
        },
        repeats,
        TURNS,
    )
    one = seconds["findings"]
    sums = [a + b for a, b in zip(one, seconds["lungs"], strict=True)]
    sums_every = [a + b for a, b in zip(one, seconds["lungs, every"], strict=True)]
    steps = f"{_network(scale)}, {TURNS} steps a repeat on each side; every step sees the "
    steps += f"same {scale.batch_size} images and runs the encoder over all of them; "
    few = f"{steps}{masks} of them have a mask"
    all_masks = f"{steps}all of them have a mask; for information"
    total, extra = "multitask step / both single-task steps", "multitask step / findings-only step"
    return [
        row(5, total, quotients(seconds["both"], sums), "", MULTITASK, few),
        row(5, extra, quotients(seconds["both"], one), "", EXTRA, few),
        row(
            5,
            f"{total}, masks on all",
            quotients(seconds["both, every"], sums_every),
            "",
            None,
            all_masks,
        ),
        row(
            5,
            f"{extra}, masks on all",
            quotients(seconds["both, every"], one),
            "",
            None,
            all_masks,
        ),
    ]


def _plan(scale: Scale, tasks: TasksPlan | None = None) -> Plan:
    return bench_plan(scale.backbone, scale.image_size, scale.batch_size, scale.steps, tasks)


def _masks(scale: Scale) -> int:
    return max(1, round(MASK_SHARE * scale.batch_size))


def _fixed(material: Material, masks: int) -> Batch:
    """One batch in memory, in which so many images have a mask."""
    data = material.site_data(masks)
    return data.batch(data.rows("train")[: material.scale.batch_size])


def _network(scale: Scale) -> str:
    return f"{scale.backbone} at {scale.image_size} px, batches of {scale.batch_size}, fp32 on CPU"


def _speed(scale: Scale, seconds: list[float]) -> str:
    images = scale.steps * scale.batch_size
    return f"{sorted(images / each for each in seconds)[len(seconds) // 2]:.1f} images/s"
