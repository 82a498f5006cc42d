"""A model with what trains it, and the training loop that one would write by hand.

The loop is the yardstick for `client.learning.train.train_round`: the same maths on the same
batches in plain PyTorch, without units, schedules, proximal terms or reports. The two end with
the same parameters up to rounding (a test says so).
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.augment import augment
from client.data.batches import Pixels, SiteData, Stream, group_units, training_batches
from client.learning.optimizer import make_optimizer
from client.learning.train import round_seed, train_round
from common.findings import FINDINGS
from common.losses import Batch
from common.model import MultitaskModel, build_model
from common.model_plan import Backbone, ModelPlan
from common.plan import Plan
from common.sections import FederationPlan, TasksPlan, TrainingPlan
from simulations.bench.timing import Goal, Work

SITE = "bench"
CLIP = 1.0  # L2 norm
FEEDING, BOOKKEEPING = Goal(">=", 0.97), Goal(">=", 0.97)  # rows 1 and 4, CPU and GPU alike


@dataclass(frozen=True, eq=False)
class Learner:
    """A model on a device, ready to train.

    forward: the model or its compiled form. fast: on a GPU, bf16 autocast and NHWC memory.
    """

    plan: Plan
    model: MultitaskModel
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    fast: bool


def bench_plan(
    backbone: Backbone,
    image_size: int,
    batch_size: int,
    steps: int,
    tasks: TasksPlan | None = None,
    federation: FederationPlan | None = None,
) -> Plan:
    """A plan with `steps` local steps a round and a constant learning rate."""
    training = TrainingPlan(
        batch_size=batch_size,
        local_steps=steps,
        schedule="constant",
        warmup_rounds=0.0,
        learning_rate=1e-4,
        max_gradient_norm=CLIP,
    )
    return Plan(
        name="bench",
        model=ModelPlan(backbone=backbone, image_size=image_size),
        tasks=tasks or TasksPlan(),
        training=training,
        federation=federation or FederationPlan(),
    )


def make_learner(
    plan: Plan, device: torch.device, fast: bool = False, compiled: bool = False
) -> Learner:
    """Build the plan's model and optimizer as a site does; see `Learner` for `fast`."""
    model = build_model(plan).to(device)
    if fast:
        model = model.to(memory_format=torch.channels_last)
    forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    optimizer = make_optimizer(model, plan.training)
    return Learner(plan, model.train(), forward, optimizer, device, fast)


def step(learner: Learner, batch: Batch) -> None:
    """One optimizer step on a batch in which every finding of every image is known."""
    images = batch.images
    if learner.fast:
        images = images.contiguous(memory_format=torch.channels_last)
    learner.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(learner.device.type, torch.bfloat16, enabled=learner.fast):
        outputs = learner.forward(images, batch.lung_rows)
    loss = torch.zeros((), device=learner.device)
    if outputs.findings is not None:
        logits = outputs.findings.float()
        loss = loss + functional.binary_cross_entropy_with_logits(logits, batch.targets)
    if outputs.lungs is not None:
        loss = loss + _lungs_loss(outputs.lungs.float(), batch.masks).sum() / len(images)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(learner.model.parameters(), CLIP)
    learner.optimizer.step()


def _lungs_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy of each mask, (M, 1, S, S) x 2 to (M,)."""
    probability, target = logits.sigmoid().flatten(1), masks.flatten(1)
    overlap = (probability * target).sum(1)
    dice = (2 * overlap + 1) / (probability.sum(1) + target.sum(1) + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return 1 - dice + entropy.flatten(1).mean(1)


def round_by_hand(learner: Learner, data: SiteData, round_number: int) -> None:
    """The yardstick: one round of local training as a minimal PyTorch loop."""
    plan = learner.plan
    seed = round_seed(plan, SITE, round_number)
    generator = torch.Generator().manual_seed(seed)
    shuffler = torch.Generator().manual_seed(seed + 1)
    rows = data.rows("train")
    waiting = rows[:0]
    for _ in range(plan.training.local_steps or 0):
        if not len(waiting):
            waiting = rows[torch.randperm(len(rows), generator=shuffler).numpy()]
        chosen, waiting = np.split(waiting, [plan.training.batch_size])
        images = data.images.gather(data.image_row[chosen]).float() / 255
        masked = np.flatnonzero(data.mask_row[chosen] >= 0)
        masks = data.masks.gather(data.mask_row[chosen[masked]]).float()
        lung_rows = torch.from_numpy(masked).to(learner.device)
        targets = torch.from_numpy(data.targets[chosen]).to(learner.device)
        images, masks = augment(images, masks, lung_rows, plan.training.augment, generator)
        everything = torch.ones_like(targets, dtype=torch.bool)
        unit = torch.arange(len(chosen), device=learner.device)
        step(learner, Batch(images, targets, everything, lung_rows, masks, unit, len(chosen)))


def round_of_ours(learner: Learner, data: SiteData, round_number: int) -> None:
    """The same round through `client.learning.train.train_round`."""
    model, forward, optimizer = learner.model, learner.forward, learner.optimizer
    train_round(model, forward, optimizer, data, learner.plan, round_number, SITE)


def compared_rounds(learner: Learner, data: SiteData) -> dict[str, Work]:
    """Arms "ours" and "hand": one round of local training on the same batches."""
    return {
        "ours": lambda: round_of_ours(learner, data, 1),
        "hand": lambda: round_by_hand(learner, data, 1),
    }


def steps_from_cache(learner: Learner, data: SiteData) -> None:
    """The plan's steps on batches that are gathered and augmented on the way."""
    training = learner.plan.training
    units = group_units(data, data.rows("train"), training.unit)
    stream = Stream(units, training.batch_size)
    batches = training_batches(data, [stream], training.augment, seed=0)
    for batch in islice(batches, training.local_steps):
        step(learner, batch)


def steps_on(learner: Learner, batch: Batch) -> None:
    """The plan's steps on one batch that is already in memory."""
    for _ in range(learner.plan.training.local_steps or 0):
        step(learner, batch)


def synthetic_data(images: npt.NDArray[np.uint8], device: torch.device) -> SiteData:
    """(N, S, S) uint8 images as one site's training rows with all findings and no masks."""
    count, size = len(images), images.shape[-1]
    names = [f"{number:08d}_000.png" for number in range(count)]
    generator = np.random.default_rng(0)
    return SiteData(
        table=pd.DataFrame({"image": names, "patient": names, "split": "train"}),
        targets=(generator.random((count, len(FINDINGS))) < 0.1).astype(np.float32),
        known=np.ones((count, len(FINDINGS)), dtype=np.bool_),
        image_row=np.arange(count),
        mask_row=np.full(count, -1),
        images=Pixels(images, device),
        masks=Pixels(np.zeros((0, size, size), dtype=np.uint8), device),
    )
