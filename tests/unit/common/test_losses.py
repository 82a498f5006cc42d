"""The per-unit contract: a unit's loss depends on that unit alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from common.losses import (
    Batch,
    Targets,
    consistency_losses,
    divergence,
    findings_loss,
    lungs_loss,
    unit_losses,
    unit_mean,
)
from common.model import Outputs

SIDE = 8


def make(rows: list[tuple[int, int, bool]], seed: int = 0) -> tuple[Outputs, Batch]:
    """rows: (unit, number of annotated findings, has a mask) each."""
    generator = torch.Generator().manual_seed(seed)
    count = len(rows)
    known = torch.zeros(count, 14, dtype=torch.bool)
    for row, (_, annotated, _) in enumerate(rows):
        known[row, :annotated] = True
    lung_rows = torch.tensor([i for i, row in enumerate(rows) if row[2]], dtype=torch.int64)
    batch = Batch(
        images=torch.zeros(count, 1, SIDE, SIDE),
        targets=torch.rand(count, 14, generator=generator).round(),
        known=known,
        lung_rows=lung_rows,
        masks=torch.rand(len(lung_rows), 1, SIDE, SIDE, generator=generator).round(),
        unit=torch.tensor([row[0] for row in rows]),
        units=max(row[0] for row in rows) + 1,
    )
    logits = torch.randn(count, 14, generator=generator)
    lungs = torch.randn(len(lung_rows), 1, SIDE, SIDE, generator=generator)
    return Outputs(logits, lungs), batch


def only(outputs: Outputs, batch: Batch, unit: int) -> tuple[Outputs, Batch]:
    """The same unit alone in a batch."""
    rows = (batch.unit == unit).nonzero().squeeze(1)
    masked = torch.isin(batch.lung_rows, rows)
    position = {int(row): i for i, row in enumerate(rows)}
    alone = Batch(
        images=batch.images[rows],
        targets=batch.targets[rows],
        known=batch.known[rows],
        lung_rows=torch.tensor(
            [position[int(r)] for r in batch.lung_rows[masked]], dtype=torch.int64
        ),
        masks=batch.masks[masked],
        unit=torch.zeros(len(rows), dtype=torch.int64),
        units=1,
    )
    assert outputs.findings is not None
    assert outputs.lungs is not None
    return Outputs(outputs.findings[rows], outputs.lungs[masked]), alone


row = st.tuples(st.integers(0, 3), st.integers(0, 14), st.booleans())


@settings(max_examples=50, deadline=None)
@given(st.lists(row, min_size=1, max_size=8), st.integers(0, 1000))
def test_a_units_loss_ignores_other_units(rows: list[tuple[int, int, bool]], seed: int) -> None:
    outputs, batch = make(rows, seed)
    together = unit_losses(outputs, batch, 1.0, 0.7)
    assert together.shape == (batch.units,)
    for unit in set(batch.unit.tolist()):
        alone = unit_losses(*only(outputs, batch, unit), 1.0, 0.7)
        assert torch.allclose(together[unit], alone[0], atol=1e-6)


def test_findings_loss_is_the_mean_over_annotated_findings() -> None:
    logits, targets = torch.randn(3, 14), torch.rand(3, 14).round()
    known = torch.zeros(3, 14, dtype=torch.bool)
    known[0, :5] = True
    known[1] = True
    expected = functional.binary_cross_entropy_with_logits(logits[0, :5], targets[0, :5])
    losses = findings_loss(logits, targets, known)
    assert torch.allclose(losses[0], expected)
    assert torch.allclose(
        losses[1], functional.binary_cross_entropy_with_logits(logits[1], targets[1])
    )
    assert losses[2] == 0


def test_lungs_loss_is_small_for_the_right_mask_and_large_for_the_wrong_one() -> None:
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[0, :, :4] = 1
    right = (mask * 2 - 1) * 20
    assert lungs_loss(right, mask).max() < 1e-3
    assert lungs_loss(-right, mask).min() > 1
    logits = torch.zeros(2, 1, SIDE, SIDE, requires_grad=True)
    torch.autograd.backward(lungs_loss(logits, mask).sum())
    assert logits.grad is not None
    assert (logits.grad[1] > 0).all()  # an empty mask still pushes down


def test_a_patients_images_share_one_vote() -> None:
    """Two images of one patient count half each; a patient without a mask has no lungs term."""
    outputs, batch = make([(0, 14, False), (0, 14, False), (1, 14, False)])
    losses = unit_losses(outputs, batch, 1.0, 1.0)
    assert outputs.findings is not None
    rows = findings_loss(outputs.findings, batch.targets, batch.known)
    assert torch.allclose(losses, torch.stack([rows[:2].mean(), rows[2]]))


def test_an_unlabelled_image_does_not_dilute_its_patient() -> None:
    outputs, batch = make([(0, 14, False), (0, 0, False)])
    assert outputs.findings is not None
    rows = findings_loss(outputs.findings, batch.targets, batch.known)
    assert torch.allclose(unit_losses(outputs, batch, 1.0, 1.0)[0], rows[0])


def test_tasks_without_outputs_cost_nothing() -> None:
    _, batch = make([(0, 14, True)])
    assert unit_losses(Outputs(None, None), batch, 1.0, 1.0).tolist() == [0.0]


@pytest.mark.parametrize("unit", [[0, 0, 1], [2, 2, 2], [0, 1, 2]])
def test_unit_mean(unit: list[int]) -> None:
    values = torch.tensor([1.0, 3.0, 5.0])
    present = torch.tensor([True, False, True])
    means: Tensor = unit_mean(values, present, torch.tensor(unit), 3)
    for number in range(3):
        own = values[(torch.tensor(unit) == number) & present]
        assert means[number] == (own.mean() if len(own) else 0.0)


def taught(rows: list[tuple[int, int, bool]], seed: int = 0) -> tuple[Outputs, Targets]:
    """rows: (unit, number of open findings, are lungs followed) each."""
    outputs, batch = make(rows, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    lungs = torch.rand(batch.masks.shape, generator=generator)
    return outputs, Targets(
        findings=torch.rand(batch.targets.shape, generator=generator),
        weights=torch.rand(batch.targets.shape, generator=generator),
        open=batch.known,
        lung_rows=batch.lung_rows,
        lungs=lungs,
        pixels=lungs > 0.3,
        unit=batch.unit,
        units=batch.units,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(row, min_size=1, max_size=8), st.integers(0, 1000))
def test_a_units_consistency_ignores_other_units(
    rows: list[tuple[int, int, bool]], seed: int
) -> None:
    outputs, targets = taught(rows, seed)
    together = consistency_losses(outputs, targets, 1.0, 0.7)
    assert together.shape == (targets.units,)
    assert (together >= 0).all()
    _, batch = make(rows, seed)
    for unit in set(targets.unit.tolist()):
        own, alone = only(outputs, batch, unit)
        chosen = targets.unit == unit
        masked = torch.isin(targets.lung_rows, chosen.nonzero().squeeze(1))
        single = replace(
            targets,
            findings=targets.findings[chosen],
            weights=targets.weights[chosen],
            open=targets.open[chosen],
            lung_rows=alone.lung_rows,
            lungs=targets.lungs[masked],
            pixels=targets.pixels[masked],
            unit=alone.unit,
            units=1,
        )
        assert torch.allclose(together[unit], consistency_losses(own, single, 1.0, 0.7)[0])


def test_divergence_is_zero_at_agreement_and_has_the_gradient_of_cross_entropy() -> None:
    targets = torch.tensor([0.0, 0.2, 0.5, 0.97, 1.0])
    agreeing = torch.logit(targets, eps=1e-7)
    assert torch.allclose(divergence(agreeing, targets), torch.zeros(5), atol=1e-5)
    logits = torch.linspace(-3, 3, 5, requires_grad=True)
    (ours,) = torch.autograd.grad(divergence(logits, targets).sum(), logits)
    crossed = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    (theirs,) = torch.autograd.grad(crossed, logits)
    assert torch.allclose(ours, theirs)
    assert torch.allclose(ours, torch.sigmoid(logits.detach()) - targets)


def test_findings_that_are_not_open_are_not_followed() -> None:
    outputs, targets = taught([(0, 3, False), (1, 0, False)])
    losses = consistency_losses(outputs, targets, 1.0, 1.0)
    assert outputs.findings is not None
    terms = divergence(outputs.findings[0, :3], targets.findings[0, :3]) * targets.weights[0, :3]
    assert torch.allclose(losses[0], terms.sum() / 3)
    assert losses[1] == 0.0


def test_pixels_that_do_not_count_are_not_followed() -> None:
    outputs, targets = taught([(0, 0, True), (1, 0, True)])
    targets.pixels[1] = False
    losses = consistency_losses(outputs, targets, 1.0, 2.0)
    assert outputs.lungs is not None
    counted = targets.pixels[0]
    terms = divergence(outputs.lungs[0][counted], targets.lungs[0][counted])
    assert torch.allclose(losses[0], 2 * terms.mean())
    assert losses[1] == 0.0
