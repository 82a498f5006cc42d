"""The optimizer of a site: its groups, its schedule, and how it is kept between rounds."""

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from common.model import MultitaskModel
from common.plan import Plan
from common.sections import TrainingPlan

OptimizerState = dict[str, npt.NDArray[Any]]


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
    return grouped_optimizer([(encoder, 1.0), (heads, head_factor(plan))], plan)


def head_factor(plan: TrainingPlan) -> float:
    """How many times the encoder's learning rate the heads have."""
    if plan.head_learning_rate is None:
        return 1.0
    return plan.head_learning_rate / plan.learning_rate


def grouped_optimizer(
    groups: list[tuple[list[nn.Parameter], float]], plan: TrainingPlan
) -> torch.optim.Optimizer:
    """The plan's optimizer over groups of parameters, each with a factor on its learning rate."""
    settings = [{"params": parameters, "factor": factor} for parameters, factor in groups]
    rate, decay = plan.learning_rate, plan.weight_decay
    if plan.optimizer == "sgd":
        return torch.optim.SGD(settings, rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(settings, rate, weight_decay=decay, fused=True)


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
