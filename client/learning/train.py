"""One round of local training: plain (not private) stochastic gradient descent."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat

import torch
from torch import Tensor, nn

from client.data.batches import (
    SiteData,
    Stream,
    mixed_precision,
    supervised_streams,
    to_model_format,
    training_batches,
)
from client.learning.optimizer import add_proximal_gradient, learning_rate, set_learning_rate
from client.learning.unlabelled import open_unlabelled
from common.errors import ConsiliumError
from common.losses import Batch, unit_losses
from common.model import MultitaskModel
from common.plan import Plan
from common.sections import TasksPlan, TrainingPlan


class NothingToLearnError(ConsiliumError):
    """The site has no training row for the plan's tasks: it must not vote with a zero."""

    code = "nothing-to-learn"


class DivergedError(ConsiliumError):
    """The loss or a gradient is not finite any more."""

    code = "diverged"


@dataclass(frozen=True)
class RoundReport:
    """steps taken, mean training loss over them, and how many images were seen."""

    steps: int
    loss: float
    images: int


def round_seed(plan: Plan, site: str, round_number: int) -> int:
    """A 63-bit seed that belongs to the plan's seed, the site and the round.

    Seeds instead of stored generator states: a resumed round draws what the interrupted one
    drew, and two sites never draw the same. Plans that differ in anything but the seed draw
    the same, so that comparing them compares nothing else.
    """
    text = f"{plan.seed}:{site}:{round_number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def steps_per_round(plan: TrainingPlan, streams: Sequence[Stream]) -> int:
    """Optimizer steps in one round: an epoch is a pass over the longest of a site's streams."""
    if plan.local_steps is not None:
        return plan.local_steps
    assert plan.local_epochs is not None  # the plan's validator: one of the two is given
    whole, part = divmod(plan.local_epochs, 1.0)
    pass_steps = max(stream.steps() for stream in streams)
    return max(1, int(whole) * pass_steps + math.ceil(part * pass_steps))


def train_round(
    model: MultitaskModel,
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: SiteData,
    plan: Plan,
    round_number: int,
    site: str,
) -> RoundReport:
    """Train `model` in place on the site's training rows for one round.

    forward: the model itself, or its compiled form sharing the same parameters.
    The optimizer keeps its moments. Raises DivergedError when the loss is not finite,
    NothingToLearnError when the site has nothing that the plan could learn from, or not yet.
    """
    training, seed = plan.training, round_seed(plan, site, round_number)
    streams = supervised_streams(data, training, plan.tasks)
    unlabelled = open_unlabelled(model, data, plan, round_number - 1, seed)
    if not streams and (unlabelled is None or not unlabelled.leads(round_number - 1)):
        raise NothingToLearnError(f"site {site} has no training row that teaches in this round")
    extra = [] if unlabelled is None else [unlabelled.stream]
    steps = steps_per_round(training, [*streams, *extra])
    batches = training_batches(data, streams, training.augment, seed) if streams else repeat(None)
    mu = plan.federation.strategy.proximal_mu
    received = [p.detach().clone() for p in model.encoder.parameters()] if mu > 0 else []
    total = torch.zeros((), device=data.images.device)
    images = 0
    model.train()
    with at_rest(untaught_heads(model, data, plan.tasks)):
        for step, batch in enumerate(islice(batches, steps)):
            done = round_number - 1 + step / steps  # rounds
            set_learning_rate(optimizer, learning_rate(plan, done))
            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=data.images.device)
            if batch is not None:
                loss = loss + supervised_loss(model, forward, batch, plan.tasks)
                images += len(batch.images)
            if unlabelled is not None:
                learnt, seen = unlabelled.loss(forward, done)
                loss, images = loss + learnt, images + seen
            torch.autograd.backward(loss)
            if training.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.max_gradient_norm)
            add_proximal_gradient(model.encoder, received, mu)
            optimizer.step()
            if unlabelled is not None:
                unlabelled.teacher.follow(model)
            total += loss.detach()
    mean_loss = float(total) / steps
    if not math.isfinite(mean_loss):
        raise DivergedError(f"training loss of round {round_number} is {mean_loss}")
    return RoundReport(steps, mean_loss, images)


def supervised_loss(
    model: MultitaskModel, forward: nn.Module, batch: Batch, tasks: TasksPlan
) -> Tensor:
    """Mean over the batch's units of what labels and masks say, a scalar with gradient."""
    images = to_model_format(batch.images)
    planes = model.planes(images[batch.lung_rows])
    with mixed_precision(images.device):
        outputs = forward(images, batch.lung_rows, planes)
    return unit_losses(outputs, batch, tasks.findings_weight, tasks.lungs_weight).mean()


def untaught_heads(model: MultitaskModel, data: SiteData, tasks: TasksPlan) -> list[nn.Module]:
    """Heads that the site has no label or mask for: it uses them as they come.

    Trained on a teacher's word alone a head would only drift with its own encoder.
    """
    heads: list[nn.Module] = []
    if model.findings is not None and len(data.labelled("train", tasks)) == 0:
        heads.append(model.findings)
    if model.lungs is not None and len(data.outlined("train", tasks)) == 0:
        heads.append(model.lungs)
    return heads


@contextmanager
def at_rest(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keep the modules' parameters as they are: no gradient, and so no weight decay either."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
