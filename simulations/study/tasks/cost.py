"""What one answer costs: time, arithmetic and size of the networks that give it.

An answer is the full list of findings of one image. One multitask pass gives it (and the lungs);
so do as many single-task networks, one after the other, as there are findings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from client.data.batches import mixed_precision, to_model_format
from common.findings import FINDINGS
from common.model import MultitaskModel, build_model
from common.plan import Plan
from simulations.bench.timing import Goal, interleave, quotients

MULTITASK, FINDINGS_ONLY, LUNGS_ONLY, SINGLE = "multitask", "findings", "lungs", "single"
BATCHES = (1, 32)
TIME_GOAL, SIZE_GOAL = Goal("<=", 1 / 8), Goal("<=", 1 / 10)


@dataclass(frozen=True)
class Cost:
    """What all networks of one kind together cost for one image.

    flops: floating-point operations, a multiplication and an addition counted as two.
    megabytes: of the weights as float32 safetensors, 10^6 bytes. seconds: per image, by the
    number of images in the batch (a string, as JSON has it); the median of the repeats.
    """

    networks: int
    parameters: int
    megabytes: float
    flops: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Ratio:
    """The multitask network's cost over that of other networks. low, high: over the repeats.

    key: "size", "parameters", "flops" or "seconds at batch B". goal, met: None without a goal.
    """

    key: str
    over: str
    value: float
    low: float
    high: float
    goal: float | None
    met: bool | None


@dataclass(frozen=True)
class Costs:
    """All kinds of networks, by the names at the top of this module, on one machine."""

    kinds: dict[str, Cost]
    ratios: tuple[Ratio, ...]
    device: str
    threads: int
    repeats: int


def task_plan(plan: Plan, findings: bool, lungs: bool) -> Plan:
    """The plan with other tasks. The bridge joins both tasks, so it stays only with both."""
    tasks = plan.tasks.model_copy(update={"findings": findings, "lungs": lungs})
    bridge = plan.model.bridge if findings and lungs else "off"
    model = plan.model.model_copy(update={"bridge": bridge})
    return plan.model_copy(update={"tasks": tasks, "model": model})


def single_task_network(plan: Plan) -> MultitaskModel:
    """The plan's encoder with a findings head of one row, as a network for one finding needs.

    In training such a network keeps all rows and learns one, which comes to the same answer.
    """
    model = build_model(task_plan(plan, findings=True, lungs=False), pretrained=False)
    assert model.findings is not None  # the plan above has the task
    model.findings.linear = nn.Linear(model.findings.linear.in_features, 1)
    return model


def measure_costs(
    plan: Plan, device: torch.device, repeats: int = 5, batches: Sequence[int] = BATCHES
) -> Costs:
    """Build the plan's networks and measure them on this machine, with torch's threads as set.

    The kinds are timed in turn, so that whatever else the machine does meets all alike. Time
    hangs on the shapes of the weights and not on their values, so the networks need no training.
    """
    kinds, size = _networks(plan), plan.model.image_size
    image = torch.rand((1, 1, size, size), generator=torch.Generator().manual_seed(0))
    flops = {k: sum(count_flops(each, image) for each in nets) for k, nets in kinds.items()}
    megabytes = {k: sum(map(_megabytes, nets)) for k, nets in kinds.items()}
    for network in (each for networks in kinds.values() for each in networks):
        network.to(device)
        if device.type == "cuda":  # the format that `to_model_format` gives the images
            network.to(memory_format=torch.channels_last)
    seconds = {batch: _seconds(kinds, image.to(device), batch, repeats) for batch in batches}
    costs = {
        kind: Cost(
            networks=len(networks),
            parameters=sum(p.numel() for network in networks for p in network.parameters()),
            megabytes=megabytes[kind],
            flops=flops[kind],
            seconds={str(batch): median(seconds[batch][kind]) for batch in batches},
        )
        for kind, networks in kinds.items()
    }
    ratios = [
        ratio
        for other in (SINGLE, FINDINGS_ONLY)
        for ratio in _ratios(costs[MULTITASK], costs[other], other, seconds)
    ]
    return Costs(costs, tuple(ratios), device.type, torch.get_num_threads(), repeats)


def _networks(plan: Plan) -> dict[str, list[MultitaskModel]]:
    """The networks of every kind: the single-task ones are as many as there are findings."""
    kinds = {
        MULTITASK: [build_model(task_plan(plan, True, True), pretrained=False)],
        FINDINGS_ONLY: [build_model(task_plan(plan, True, False), pretrained=False)],
        LUNGS_ONLY: [build_model(task_plan(plan, False, True), pretrained=False)],
        # Each with weights of its own: one network run 14 times would stay in the caches.
        SINGLE: [single_task_network(plan) for _ in FINDINGS],
    }
    for network in (each for networks in kinds.values() for each in networks):
        network.eval()
    return kinds


def _megabytes(network: nn.Module) -> float:
    return len(save(dict(network.state_dict()))) / 1e6


@torch.no_grad()
def _answer(networks: Sequence[nn.Module], images: Tensor) -> None:
    """One pass of every network, with the number formats that `client.learning.evaluate` uses."""
    with mixed_precision(images.device):
        for network in networks:
            network(images)


def _seconds(
    kinds: Mapping[str, Sequence[nn.Module]], one: Tensor, batch: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds per image of every kind, one number a repeat."""
    images = to_model_format(one.repeat(batch, 1, 1, 1))
    cuda = one.device.type == "cuda"
    settle: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None
    # A short pass needs several turns, or the clock and the scheduler are what is measured.
    turns = max(1, 8 // batch)

    def arm(networks: Sequence[nn.Module]) -> Callable[[], object]:
        return lambda: _answer(networks, images)

    arms = {kind: arm(networks) for kind, networks in kinds.items()}
    total = interleave(arms, repeats, turns, settle)
    return {kind: [each / (turns * batch) for each in values] for kind, values in total.items()}


@torch.no_grad()
def count_flops(network: nn.Module, images: Tensor) -> int:
    """Operations of one pass: convolutions and matrix products, by torch's own formulas."""
    counter = _Counter()
    with counter:
        network(images)
    return counter.flops


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up `flop_registry` over all operations, those of a gradient inside a pass too.

    torch's own `FlopCounterMode` also hooks every module's input to tell the modules apart, and
    that fails with "A leaf node was passed" where the bridge asks for the gradient of its input.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def _ratios(
    multitask: Cost,
    other: Cost,
    over: str,
    seconds: Mapping[int, Mapping[str, Sequence[float]]],
) -> list[Ratio]:
    """Multitask over another kind; the goals are set against the single-task networks."""
    against_single = over == SINGLE
    fixed = {
        "size": multitask.megabytes / other.megabytes,
        "parameters": multitask.parameters / other.parameters,
        "flops": multitask.flops / other.flops,
    }
    size_goal = SIZE_GOAL if against_single else None
    ratios = [
        _ratio(key, over, [v], size_goal if key == "size" else None) for key, v in fixed.items()
    ]
    for batch, kinds in seconds.items():
        values = quotients(kinds[MULTITASK], kinds[over])
        goal = TIME_GOAL if against_single else None
        ratios.append(_ratio(f"seconds at batch {batch}", over, values, goal))
    return ratios


def _ratio(key: str, over: str, values: Sequence[float], goal: Goal | None) -> Ratio:
    value = median(values)
    limit, met = (None, None) if goal is None else (goal.limit, goal.met(value))
    return Ratio(key, over, value, min(values), max(values), limit, met)
