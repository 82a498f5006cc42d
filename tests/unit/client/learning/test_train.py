"""Local training: schedules, seeds, the proximal term, heads, optimizer state."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.data.batches import SiteData, Stream, load_site_data
from client.learning.finish import fit_findings_head, pooled_features
from client.learning.optimizer import (
    add_proximal_gradient,
    learning_rate,
    make_optimizer,
    optimizer_arrays,
    restore_optimizer,
)
from client.learning.train import (
    DivergedError,
    NothingToLearnError,
    round_seed,
    steps_per_round,
    train_round,
)
from client.settings import open_site_folder
from common.losses import findings_loss
from common.model import build_model
from common.plan import Plan
from common.sections import TasksPlan, TrainingPlan
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_cache, small_plan, write_folder


@pytest.fixture
def data(tmp_path: Path, nih_archive: ArchiveFactory) -> SiteData:
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    folder = open_site_folder(write_folder(tmp_path / "ward", cache))
    return load_site_data(folder, cache, torch.device("cpu"))


@pytest.mark.parametrize(
    ("plan", "units", "steps"),
    [
        (TrainingPlan(local_epochs=1.0, batch_size=4), 9, 3),
        (TrainingPlan(local_epochs=2.0, batch_size=4), 9, 6),
        (TrainingPlan(local_epochs=1.5, batch_size=4), 9, 5),
        (TrainingPlan(local_epochs=0.1, batch_size=4), 9, 1),
        (TrainingPlan(local_steps=7, batch_size=4), 9, 7),
    ],
)
def test_steps_per_round(plan: TrainingPlan, units: int, steps: int) -> None:
    longest = Stream([np.array([row]) for row in range(units)], plan.batch_size)
    other = Stream([np.array([0])], 1)
    assert steps_per_round(plan, [other, longest]) == steps


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    training = {"local_epochs": 1.0, "learning_rate": 0.1, "warmup_rounds": 2.0}
    plan = small_plan(training=training, federation={"rounds": 10})
    rates = [learning_rate(plan, t / 10) for t in range(101)]
    assert 0 < rates[0] < 0.002
    assert max(rates) == rates[20]
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[60] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.6)))
    constant = small_plan(training=training | {"schedule": "constant", "warmup_rounds": 0.0})
    assert {learning_rate(constant, t / 10) for t in range(20)} == {0.1}


def test_seeds_belong_to_plan_site_and_round() -> None:
    plan, other = small_plan(), small_plan(seed=4)
    seeds = {round_seed(p, site, r) for p in (plan, other) for site in ("a", "b") for r in (1, 2)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert round_seed(plan, "a", 1) == round_seed(small_plan(), "a", 1)


def run(data: SiteData, plan: Plan, rounds: int) -> tuple[nn.Module, list[float]]:
    model = build_model(plan)
    optimizer = make_optimizer(model, plan.training)
    losses = []
    for number in range(1, rounds + 1):
        losses.append(train_round(model, model, optimizer, data, plan, number, "ward").loss)
    return model, losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("unit", ["image", "patient"])
def test_training_lowers_the_loss(data: SiteData, optimizer: str, unit: str) -> None:
    training = {
        "local_steps": 10, "batch_size": 8, "optimizer": optimizer, "unit": unit,
        "learning_rate": 0.01 if optimizer == "adamw" else 0.1, "schedule": "constant",
    }  # fmt: skip
    _, losses = run(data, small_plan(training=training), 4)
    assert losses[-1] < 0.7 * losses[0]


def test_a_site_without_anything_to_learn_abstains(data: SiteData) -> None:
    empty = SiteData(
        data.table, data.targets, np.zeros_like(data.known), data.image_row,
        np.full_like(data.mask_row, -1), data.images, data.masks,
    )  # fmt: skip
    plan = small_plan()
    model = build_model(plan)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NothingToLearnError, match="site w has no training row that teaches"):
        train_round(model, model, make_optimizer(model, plan.training), empty, plan, 1, "w")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_lost_loss_is_an_error_not_an_update(data: SiteData) -> None:
    plan = small_plan()
    model = build_model(plan)
    with torch.no_grad():
        model.encoder.stages[0][0].weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="round 1 is nan"):
        train_round(model, model, make_optimizer(model, plan.training), data, plan, 1, "ward")


def test_the_proximal_term_is_the_gradient_of_its_formula() -> None:
    encoder = nn.Linear(3, 2)
    received = [p.detach() + 0.5 for p in encoder.parameters()]
    inputs = torch.rand(4, 3)

    def loss() -> torch.Tensor:
        return encoder(inputs).square().mean()

    penalty = sum(((p - r) ** 2).sum() for p, r in zip(encoder.parameters(), received, strict=True))
    expected = torch.autograd.grad(loss() + 0.3 / 2 * penalty, list(encoder.parameters()))
    torch.autograd.backward(loss())
    add_proximal_gradient(encoder, received, 0.3)
    for parameter, gradient in zip(encoder.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_fedprox_stays_closer_to_what_was_received(data: SiteData) -> None:
    def distance(strategy: dict[str, object]) -> float:
        training = {"local_steps": 10, "optimizer": "sgd", "learning_rate": 0.05}
        plan = small_plan(training=training, federation={"rounds": 3, "strategy": strategy})
        model, _ = run(data, plan, 1)
        start = build_model(plan)
        pairs = zip(model.encoder.parameters(), start.encoder.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert distance({"name": "fedprox", "proximal_mu": 10.0}) < 0.7 * distance({"name": "fedavg"})


def test_the_head_is_fitted_and_the_encoder_left_alone(data: SiteData) -> None:
    training = {"local_epochs": 1.0, "head_epochs": 30, "head_learning_rate": 0.01}
    plan = small_plan(training=training)
    model = build_model(plan)
    encoder = [p.clone() for p in model.encoder.parameters()]
    rows = data.supervised("train", TasksPlan())
    features = pooled_features(model, data, rows)
    targets, known = torch.from_numpy(data.targets[rows]), torch.from_numpy(data.known[rows])

    def loss() -> float:
        assert model.findings is not None
        losses = findings_loss(model.findings.from_pooled(features), targets, known)
        return float(losses.mean().detach())

    before = loss()
    fit_findings_head(model, data, plan, 3, "ward", plan.training.head_epochs)
    assert loss() < 0.9 * before
    assert all(torch.equal(a, b) for a, b in zip(encoder, model.encoder.parameters(), strict=True))


def test_no_head_epochs_no_change(data: SiteData) -> None:
    plan = small_plan()
    model = build_model(plan)
    assert model.findings is not None
    before = model.findings.linear.weight.clone()
    fit_findings_head(model, data, plan, 3, "ward", plan.training.head_epochs)
    assert torch.equal(before, model.findings.linear.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimizer_continues_from_its_arrays(data: SiteData, optimizer: str) -> None:
    training = {"local_steps": 2, "optimizer": optimizer, "learning_rate": 0.01}
    plan = small_plan(training=training)
    straight, _ = run(data, plan, 2)
    model = build_model(plan)
    first = make_optimizer(model, plan.training)
    train_round(model, model, first, data, plan, 1, "ward")
    second = make_optimizer(model, plan.training)
    restore_optimizer(model, second, optimizer_arrays(model, first))
    train_round(model, model, second, data, plan, 2, "ward")
    for ours, theirs in zip(model.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
