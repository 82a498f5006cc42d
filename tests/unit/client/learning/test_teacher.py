"""The teacher: no gradient, exact under motion, sure only where validation says so."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.learning.teacher import Question, Teacher, Thresholds, choose_thresholds
from client.learning.views import Views, make_views
from common.losses import consistency_losses
from common.model import MultitaskModel, Outputs, build_model
from common.plan import Plan
from common.sections import SemiSupervisionPlan, StrongView, WeakView

SIDE, ROWS = 32, 4
PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "noise": 0.0}
BRIDGES = ("off", "decoder-input", "all-stages")
MODES = ("mean-teacher", "fixmatch")


def network(bridge: str = "off") -> MultitaskModel:
    section = {"backbone": "tiny", "image_size": SIDE, "decoder_width": 8, "bridge": bridge}
    return build_model(Plan.model_validate({"name": "test", "seed": 2, "model": section}))


def thresholds() -> Thresholds:
    """About half of all answers are sure: an untrained head says about 0.05 to everything."""
    return Thresholds(torch.full((14,), 0.055), torch.full((14,), 0.045))


def asked(units: list[int], lung_rows: list[int]) -> Question:
    everything = torch.ones(len(units), 14, dtype=torch.bool)
    rows = torch.tensor(lung_rows, dtype=torch.int64)
    return Question(everything, rows, torch.tensor(units), max(units) + 1)


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def losses(model: MultitaskModel, mode: str, weak: Tensor, strong: Tensor) -> Tensor:
    """Each of three units' loss; the first unit owns rows 0 and 1."""
    plan = SemiSupervisionPlan(mode=mode, lungs_confidence=0.5)  # untrained, it is never sure
    teacher = Teacher(network(model_bridge(model)), plan, thresholds())
    question = asked([0, 0, 1, 2], [0, 2, 3])
    theta = torch.eye(2, 3).repeat(ROWS, 1, 1)
    theta[:, 0, 2] = 0.1
    targets = teacher.targets(Views(weak, strong, theta), question)
    assert targets.pixels.flatten(1).any(dim=1).all()
    assert targets.weights.any(dim=1).all()
    outputs = model(strong, question.lung_rows)
    for findings_weight, lungs_weight in ((1.0, 0.0), (0.0, 1.0)):  # neither term is empty
        term = consistency_losses(outputs, targets, findings_weight, lungs_weight)
        assert term.any()
    return consistency_losses(outputs, targets, 1.0, 0.7)


def model_bridge(model: MultitaskModel) -> str:
    assert model.lungs is not None
    return {0: "off", 1: "decoder-input", 5: "all-stages"}[len(model.lungs.bridged)]


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("mode", MODES)
def test_a_units_loss_ignores_other_units(mode: str, bridge: str) -> None:
    """Every term, in every mode, through the whole network: views in, losses out."""
    model = network(bridge)
    with torch.no_grad():  # away from the teacher, so that there is something to follow
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator()))
    weak, strong = pictures(), pictures(1)
    first = losses(model, mode, weak, strong)
    assert (first > 0).all()
    others_weak, others_strong = weak.clone(), strong.clone()
    others_weak[2:], others_strong[2:] = pictures(2)[2:], 1 - pictures(3)[2:]
    second = losses(model, mode, others_weak, others_strong)
    assert torch.allclose(first[0], second[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first[1:], second[1:], rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_targets_carry_no_gradient(mode: str) -> None:
    student = network("decoder-input")
    plan = SemiSupervisionPlan(mode=mode, lungs_confidence=0.5)
    teacher = Teacher(student, plan, thresholds())
    views = make_views(pictures(), SemiSupervisionPlan(), torch.Generator().manual_seed(0))
    question = asked([0, 1, 2, 3], [1, 3])
    targets = teacher.targets(views, question)
    assert targets.pixels.any()
    for tensor in (targets.findings, targets.weights, targets.lungs, targets.pixels):
        assert not tensor.requires_grad
    loss = consistency_losses(student(views.strong, question.lung_rows), targets, 1.0, 1.0)
    torch.autograd.backward(loss.mean())
    assert all(p.grad is None for p in teacher.model.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())


class Pixelwise(nn.Module):
    """Moves with its image perfectly: each pixel's logit is a line through its grey value."""

    def forward(self, images: Tensor, lung_rows: Tensor) -> Outputs:
        return Outputs(torch.zeros(len(images), 14), 9 * images[lung_rows] - 4)


def test_consistency_is_zero_for_a_perfectly_equivariant_model() -> None:
    plan = SemiSupervisionPlan(
        mode="mean-teacher",
        lungs_confidence=0.5,
        weak=WeakView(**PLAIN),
        strong=StrongView(**PLAIN, blur=0, cutout=0),
    )
    teacher = Teacher(network(), plan, None)
    teacher.model = Pixelwise()  # type: ignore[assignment]
    views = make_views(pictures(), plan, torch.Generator().manual_seed(1))
    question = asked([0, 1, 2, 3], [0, 1, 2, 3])
    targets = teacher.targets(views, question)
    assert 0.4 < float(targets.pixels.float().mean()) < 1.0  # what lies beyond is left out
    right = consistency_losses(Pixelwise()(views.strong, question.lung_rows), targets, 1.0, 1.0)
    assert float(right.abs().max()) < 1e-6
    unmoved = Pixelwise()(views.weak, question.lung_rows)
    assert float(consistency_losses(unmoved, targets, 1.0, 1.0).min()) > 0.01


def test_the_teacher_follows_slowly() -> None:
    student = network()
    teacher = Teacher(student, SemiSupervisionPlan(mode="mean-teacher", teacher_decay=0.9), None)
    start = [p.clone() for p in student.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.follow(student)
    teacher.follow(student)
    for own, before in zip(teacher.model.parameters(), start, strict=True):
        assert torch.allclose(own, before + (1 - 0.9**2), atol=1e-5)


def test_unsure_pixels_do_not_count() -> None:
    plan = SemiSupervisionPlan(mode="mean-teacher", lungs_confidence=0.9)
    teacher = Teacher(network(), plan, None)
    teacher.model = Pixelwise()  # type: ignore[assignment]
    still = torch.eye(2, 3).repeat(ROWS, 1, 1)
    targets = teacher.targets(Views(pictures(), pictures(), still), asked([0, 1, 2, 3], [0, 3]))
    sure = torch.maximum(targets.lungs, 1 - targets.lungs) >= 0.9
    assert torch.equal(targets.pixels, sure)
    assert 0.0 < float(sure.float().mean()) < 1.0


def test_fixmatch_counts_only_sure_findings() -> None:
    plan = SemiSupervisionPlan(mode="fixmatch", negative_weight=0.3)
    student = network()
    teacher = Teacher(student, plan, thresholds())
    still = torch.eye(2, 3).repeat(ROWS, 1, 1)
    targets = teacher.targets(Views(pictures(), pictures(), still), asked([0, 1, 2, 3], []))
    with torch.no_grad():
        probability = torch.sigmoid(student(pictures()).findings)
    assert torch.equal(targets.findings, (probability >= 0.055).float())
    expected = (probability >= 0.055).float() + 0.3 * (probability <= 0.045).float()
    assert torch.allclose(targets.weights, expected)


def labelled(count: int, positives: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N, 14) and probabilities that rank the first finding well and the others not."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((count, 14), np.int8)
    targets[:positives, 0] = 1
    targets[:, 2] = -1
    probabilities = rng.random((count, 14)).astype(np.float32) * 0.5
    probabilities[:, 0] += 0.4 * targets[:, 0]
    return targets, probabilities


def test_thresholds_come_from_labelled_validation() -> None:
    targets, probabilities = labelled(400, 60)
    plan = SemiSupervisionPlan(mode="fixmatch")
    found = choose_thresholds(targets, probabilities, plan)
    said = probabilities[:, 0] >= float(found.positive[0])
    assert targets[said, 0].mean() >= plan.precision
    assert said.sum() <= 1.5 * 60
    absent = probabilities[:, 0] <= float(found.negative[0])
    assert (targets[absent, 0] == 0).mean() >= plan.negative_predictive_value
    assert absent.sum() > 100
    # Findings without 20 positives, or without any label, are never followed.
    assert (found.positive[1:] == 2.0).all()
    assert (found.negative[1:] == -1.0).all()


@pytest.mark.parametrize("positives", [0, 19, 400])
def test_too_few_of_either_kind_set_no_threshold(positives: int) -> None:
    found = choose_thresholds(*labelled(400, positives), SemiSupervisionPlan(mode="fixmatch"))
    assert float(found.positive[0]) == 2.0
    assert float(found.negative[0]) == -1.0


def test_a_precision_out_of_reach_sets_no_threshold() -> None:
    targets, probabilities = labelled(400, 60)
    probabilities[:, 0] = 0.9 * (1 - targets[:, 0])  # as wrong as can be
    found = choose_thresholds(
        targets, probabilities, SemiSupervisionPlan(mode="fixmatch", precision=0.9)
    )
    assert not (probabilities[:, 0] >= float(found.positive[0])).any()
