"""One round of local training: plain (not private) stochastic gradient descent."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.batches import SiteData, group_units, training_batches
from common.errors import ConsiliumError
from common.heads import FindingsHead, pool
from common.losses import findings_loss, unit_losses
from common.model import MultitaskModel
from common.plan import Plan
from common.sections import TrainingPlan

OptimizerState = dict[str, npt.NDArray[Any]]


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
    """A 63-bit seed that belongs to this plan, site and round.

    Seeds instead of stored generator states: a resumed round draws what the interrupted one
    drew, and two sites never draw the same.
    """
    text = f"{plan.sha256}:{site}:{round_number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def steps_per_round(plan: TrainingPlan, units: int) -> int:
    """Optimizer steps in one round for a site with `units` training units."""
    if plan.local_steps is not None:
        return plan.local_steps
    assert plan.local_epochs is not None  # the plan's validator: one of the two is given
    whole, part = divmod(plan.local_epochs, 1.0)
    pass_steps = math.ceil(units / plan.batch_size)
    return max(1, int(whole) * pass_steps + math.ceil(part * pass_steps))


def learning_rate(plan: Plan, rounds_done: float) -> float:
    """The rate after `rounds_done` rounds (may be fractional): warm-up, then cosine to 0.

    Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5 with one cycle over all rounds, so that
    the schedule is the federation's and not restarted by every site in every round.
    """
    training = plan.training
    rate = training.learning_rate
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, rounds_done / plan.federation.rounds)))
    if rounds_done < training.warmup_rounds:
        rate *= max(rounds_done, 0.02) / training.warmup_rounds
    return rate


def make_optimizer(model: MultitaskModel, plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimizer over all parameters, with the heads' own learning rate.

    Heads see one site's data and start from nothing each time the encoder moves under them;
    they may learn faster than the encoder that many sites average.
    """
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return _optimizer([(encoder, 1.0), (heads, _head_factor(plan))], plan)


def _head_factor(plan: TrainingPlan) -> float:
    """How many times the encoder's learning rate the heads have."""
    if plan.head_learning_rate is None:
        return 1.0
    return plan.head_learning_rate / plan.learning_rate


def _optimizer(
    groups: list[tuple[list[nn.Parameter], float]], plan: TrainingPlan
) -> torch.optim.Optimizer:
    """Parameter groups with the factor that `set_learning_rate` multiplies their rate by."""
    settings = [{"params": parameters, "factor": factor} for parameters, factor in groups]
    rate, decay = plan.learning_rate, plan.weight_decay
    if plan.optimizer == "sgd":
        return torch.optim.SGD(settings, rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(settings, rate, weight_decay=decay, fused=True)


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
    NothingToLearnError when the site has nothing that the plan could learn from.
    """
    training, tasks = plan.training, plan.tasks
    units = group_units(data, data.supervised("train", tasks), training.unit)
    if not units:
        raise NothingToLearnError(f"site {site} has no labelled training row for this plan")
    steps = steps_per_round(training, len(units))
    mu = plan.federation.strategy.proximal_mu
    received = [p.detach().clone() for p in model.encoder.parameters()] if mu > 0 else []
    device = data.images.device
    seed = round_seed(plan, site, round_number)
    total = torch.zeros((), device=device)
    images = 0
    model.train()
    batches = training_batches(data, units, training.batch_size, steps, training.augment, seed)
    for step, batch in enumerate(batches):
        set_learning_rate(optimizer, learning_rate(plan, round_number - 1 + step / steps))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = forward(to_model_format(batch.images), batch.lung_rows)
        losses = unit_losses(outputs, batch, tasks.findings_weight, tasks.lungs_weight)
        loss = losses.mean()
        torch.autograd.backward(loss)
        if training.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.max_gradient_norm)
        add_proximal_gradient(model.encoder, received, mu)
        optimizer.step()
        total += loss.detach()
        images += len(batch.images)
    mean_loss = float(total) / steps
    if not math.isfinite(mean_loss):
        raise DivergedError(f"training loss of round {round_number} is {mean_loss}")
    return RoundReport(steps, mean_loss, images)


def to_model_format(images: Tensor) -> Tensor:
    """NHWC memory on a GPU, where convolutions want it; NCHW on a CPU, where it is faster."""
    if images.device.type == "cuda":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group: `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def add_proximal_gradient(encoder: nn.Module, received: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - w_received|^2 to the encoder's gradients, in place.

    Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020,
    equation 2. On the gradient, not on the loss: it depends on no data, and so it must stay
    outside of what private training clips.
    """
    if mu == 0:
        return
    with torch.no_grad():
        for parameter, start in zip(encoder.parameters(), received, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=mu)


def fit_findings_head(
    model: MultitaskModel, data: SiteData, plan: Plan, round_number: int, site: str
) -> None:
    """Fit the findings head, in place, to the encoder as it is now (which stays as it is).

    During the rounds a site's head follows the site's own copy of the encoder. After the last
    aggregation the shared encoder is a little different; `head_epochs` passes over features
    computed once bring the head there.
    """
    rows = data.rows("train")
    rows = rows[data.known[rows].any(axis=1)]
    if plan.training.head_epochs == 0 or model.findings is None or len(rows) == 0:
        return
    features = pooled_features(model, data, rows)
    targets = torch.from_numpy(data.targets[rows]).to(features.device)
    known = torch.from_numpy(data.known[rows]).to(features.device)
    head: FindingsHead = model.findings
    optimizer = _optimizer([(list(head.parameters()), _head_factor(plan.training))], plan.training)
    generator = torch.Generator().manual_seed(round_seed(plan, site, round_number))
    epochs = plan.training.head_epochs
    for epoch in range(epochs):
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        set_learning_rate(optimizer, plan.training.learning_rate * cosine)
        order = torch.randperm(len(rows), generator=generator).to(features.device)
        for chosen in torch.split(order, plan.training.batch_size):
            optimizer.zero_grad(set_to_none=True)
            logits = head.from_pooled(features[chosen])
            loss = findings_loss(logits, targets[chosen], known[chosen]).mean()
            torch.autograd.backward(loss)
            optimizer.step()


@torch.no_grad()
def pooled_features(
    model: MultitaskModel, data: SiteData, rows: npt.NDArray[np.int64], batch_size: int = 64
) -> Tensor:
    """Encoder features of rows (R,), without augmentation: (R, C) float32."""
    model.eval()
    parts = []
    for start in range(0, len(rows), batch_size):
        images = data.batch(rows[start : start + batch_size]).images
        parts.append(pool(model.encoder(to_model_format(images))).float())
    return torch.cat(parts)


def optimizer_arrays(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's moments as named arrays, for a file without pickle."""
    arrays: OptimizerState = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                arrays[f"{key}/{name}"] = value.detach().cpu().numpy()
    return arrays


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Put back what `optimizer_arrays` took, in place; parameters not named start fresh."""
    parameters = dict(model.named_parameters())
    for full_name, value in arrays.items():
        key, name = full_name.split("/", 1)
        tensor = torch.from_numpy(value.copy())
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)
