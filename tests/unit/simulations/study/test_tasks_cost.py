"""What an answer costs: sizes and operations are counted exactly, times only compared."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.findings import FINDINGS
from common.model import build_model
from common.model_plan import ModelPlan
from common.plan import Plan
from simulations.study.tasks.cost import (
    FINDINGS_ONLY,
    LUNGS_ONLY,
    MULTITASK,
    SINGLE,
    Costs,
    count_flops,
    measure_costs,
    single_task_network,
    task_plan,
)
from tests.unit.client.sites import SIZE, small_plan

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 1, SIZE, SIZE)


@pytest.fixture(scope="module")
def costs() -> Costs:
    return measure_costs(small_plan(), CPU, repeats=2, batches=(1, 3))


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def bridged(bridge: str) -> Plan:
    model = {"backbone": "tiny", "image_size": SIZE, "decoder_width": 8, "bridge": bridge}
    return small_plan(model=model)


def test_operations_are_two_for_each_multiplication_with_addition() -> None:
    convolution = nn.Conv2d(2, 4, 3, padding=1)
    assert count_flops(convolution, torch.zeros(1, 2, 8, 8)) == 2 * 4 * (2 * 3 * 3) * 8 * 8
    assert count_flops(nn.Linear(10, 3), torch.zeros(1, 10)) == 2 * 10 * 3
    network = build_model(small_plan())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(IMAGE)
    assert count_flops(network, IMAGE) == counter.get_total_flops()


def test_a_single_task_network_answers_for_one_finding() -> None:
    plan = small_plan()
    network = single_task_network(plan)
    assert network(IMAGE).findings.shape == (1, 1)
    assert network.lungs is None
    full = build_model(task_plan(plan, findings=True, lungs=False))
    width = full.encoder.channels[-1]
    assert parameters(full) - parameters(network) == (len(FINDINGS) - 1) * (width + 1)


def test_what_all_networks_of_a_kind_cost_together(costs: Costs) -> None:
    plan, kinds = small_plan(), costs.kinds
    assert {kind: cost.networks for kind, cost in kinds.items()} == {
        MULTITASK: 1,
        FINDINGS_ONLY: 1,
        LUNGS_ONLY: 1,
        SINGLE: len(FINDINGS),
    }
    one = single_task_network(plan)
    assert kinds[SINGLE].parameters == len(FINDINGS) * parameters(one)
    assert kinds[SINGLE].flops == len(FINDINGS) * count_flops(one, IMAGE)
    assert kinds[MULTITASK].parameters == parameters(build_model(plan))
    for cost in kinds.values():
        weights = 4 * cost.parameters / 1e6
        assert weights < cost.megabytes < weights + 0.02 * cost.networks  # names and shapes
        assert set(cost.seconds) == {"1", "3"}
        assert min(cost.seconds.values()) > 0
    assert (costs.device, costs.repeats) == ("cpu", 2)


def test_ratios_are_multitask_over_others_and_goals_only_against_single(costs: Costs) -> None:
    ours, single = costs.kinds[MULTITASK], costs.kinds[SINGLE]
    ratios = {(ratio.over, ratio.key): ratio for ratio in costs.ratios}
    assert ratios[SINGLE, "size"].value == ours.megabytes / single.megabytes
    assert ratios[SINGLE, "flops"].value == ours.flops / single.flops
    assert ratios[SINGLE, "size"].goal == 1 / 10
    assert ratios[SINGLE, "size"].met == (ratios[SINGLE, "size"].value <= 1 / 10)
    for batch in (1, 3):
        time = ratios[SINGLE, f"seconds at batch {batch}"]
        assert time.low <= time.value <= time.high < 1
        assert (time.goal, time.met) == (1 / 8, time.value <= 1 / 8)
    goals = {key for key, ratio in ratios.items() if ratio.goal is not None}
    assert goals == {(SINGLE, k) for k in ("size", "seconds at batch 1", "seconds at batch 3")}
    assert all((ratio.met is None) == (ratio.goal is None) for ratio in costs.ratios)


def test_a_larger_network_meets_the_goal_of_size() -> None:
    plan = Plan(name="x", model=ModelPlan(backbone="resnet18", image_size=SIZE, decoder_width=8))
    multitask, single = build_model(plan), single_task_network(plan)
    assert parameters(multitask) / (len(FINDINGS) * parameters(single)) < 0.075


def test_the_bridge_is_part_of_the_multitask_pass_and_of_no_other() -> None:
    plain, joined = bridged("off"), bridged("all-stages")
    assert task_plan(joined, findings=True, lungs=True) == joined
    assert task_plan(joined, findings=True, lungs=False).model.bridge == "off"
    without, with_it = (count_flops(build_model(plan), IMAGE) for plan in (plain, joined))
    encoder = count_flops(build_model(plain).encoder, IMAGE)
    # One more pass through the encoder, and one back to the pixels.
    assert with_it > without + 1.5 * encoder
