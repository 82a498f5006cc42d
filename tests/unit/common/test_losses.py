"""The per-unit contract: a unit's loss depends on that unit alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from common.losses import Batch, findings_loss, lungs_loss, unit_losses, unit_mean
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
