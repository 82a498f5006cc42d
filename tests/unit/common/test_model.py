"""Encoders, heads, and weights from elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.encoder import fold_batch_norm, group_norm, standardise
from common.errors import InputError, LayoutError
from common.findings import FINDINGS, LUNGS
from common.model import build_encoder, build_model
from common.model_plan import ModelPlan
from common.parameters import flatten, load_flat, shared_layout
from common.plan import Plan
from common.sections import TasksPlan


def tiny_plan(**more: Any) -> Plan:
    model = ModelPlan(backbone="tiny", image_size=32, decoder_width=8)
    return Plan(name="test", model=model, **more)


def test_tiny_is_tiny() -> None:
    assert sum(p.numel() for p in build_encoder(ModelPlan(backbone="tiny")).parameters()) <= 500_000


def test_standardise_takes_exposure_away() -> None:
    image = torch.rand(3, 1, 16, 16)
    out = standardise(image)
    assert torch.allclose(out.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out, standardise(image * 0.7 + 0.2), atol=5e-3)
    assert torch.isfinite(standardise(torch.zeros(1, 1, 8, 8))).all()


def test_rows_do_not_see_each_other() -> None:
    """Evaluating one image alone or in a batch is the same: no batch statistics anywhere."""
    model = build_model(tiny_plan())
    images = torch.rand(4, 1, 32, 32)
    together, alone = model(images), model(images[1:2])
    assert torch.allclose(together.findings[1:2], alone.findings, atol=1e-5)
    assert torch.allclose(together.lungs[1:2], alone.lungs, atol=1e-5)


def test_only_rows_with_a_mask_are_decoded() -> None:
    model = build_model(tiny_plan())
    images = torch.rand(4, 1, 32, 32)
    outputs = model(images, torch.tensor([2]))
    assert outputs.findings.shape == (4, len(FINDINGS))
    assert outputs.lungs.shape == (1, 1, 32, 32)
    assert torch.allclose(outputs.lungs, model(images).lungs[2:3], atol=1e-5)
    assert model(images, torch.empty(0, dtype=torch.int64)).lungs is None


def test_tasks_left_out_have_no_head() -> None:
    model = build_model(tiny_plan(tasks=TasksPlan(lungs=False)))
    assert model.lungs is None
    assert model(torch.rand(1, 1, 32, 32)).lungs is None
    assert build_model(tiny_plan(tasks=TasksPlan(findings=False))).findings is None


def test_the_seed_makes_the_model_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build_model(tiny_plan(seed=1)), build_model(tiny_plan(seed=1))
    assert torch.equal(torch.rand(3), expected)
    layout = shared_layout(first, "shared")
    assert (flatten(first, layout) == flatten(second, layout)).all()
    other = build_model(tiny_plan(seed=2))
    assert not (flatten(first, layout) == flatten(other, layout)).all()


def test_flat_parameters_round_trip_and_know_their_layout() -> None:
    model, other = build_model(tiny_plan(seed=1)), build_model(tiny_plan(seed=2))
    layout = shared_layout(model, "local")
    assert all(name.startswith("encoder.") for name in layout.names)
    assert layout.size == sum(p.numel() for p in model.encoder.parameters())
    flat = flatten(model, layout)
    load_flat(other, layout, flat)
    assert (flatten(other, layout) == flat).all()
    shared = shared_layout(model, "shared")
    assert shared.sha256 != layout.sha256
    assert shared.size == sum(p.numel() for p in model.parameters())
    with pytest.raises(LayoutError, match=r"found shape \(3,\)"):
        load_flat(model, layout, flat[:3])


def test_coverage_is_per_finding() -> None:
    model = build_model(tiny_plan())
    layout = shared_layout(model, "shared")
    encoder = sum(p.numel() for p in model.encoder.parameters())
    width = model.encoder.channels[-1]
    lungs = sum(p.numel() for p in model.lungs.parameters())
    assert layout.coverage(()).sum() == encoder
    assert layout.coverage(("Mass",)).sum() == encoder + width + 1
    assert layout.coverage((*FINDINGS, LUNGS)).all()
    assert layout.coverage((LUNGS,)).sum() == encoder + lungs
    # The row of one finding lies where the head's weight has it.
    head = dict(model.named_parameters())["findings.linear.weight"]
    with torch.no_grad():
        head.zero_()[FINDINGS.index("Mass")] = 1.0
    flat = flatten(model, layout)
    start = sum(p.numel() for n, p in model.named_parameters() if n.startswith("encoder."))
    covered = layout.coverage(("Mass",))[start : start + head.numel()]
    assert (flat[start : start + head.numel()][covered] == 1.0).all()


def test_folded_group_norm_acts_like_the_batch_norm() -> None:
    """On inputs with the running statistics, GroupNorm with folded affine equals BatchNorm."""
    torch.manual_seed(0)
    x = (
        torch.randn(1, 64, 64, 64, dtype=torch.float64)
        * torch.linspace(0.5, 2, 64)[None, :, None, None]
    )
    x = x + torch.linspace(-1, 1, 64)[None, :, None, None]
    batch = nn.BatchNorm2d(64, momentum=1.0).double()
    with torch.no_grad():
        batch.weight.uniform_(0.5, 1.5)
        batch.bias.uniform_(-1, 1)
    batch.train()
    batch(x)
    batch.eval()
    group = group_norm(64).double()
    weight, bias = fold_batch_norm(
        batch.weight.detach(), batch.bias.detach(), batch.running_mean, batch.running_var
    )
    with torch.no_grad():
        group.weight.copy_(weight)
        group.bias.copy_(bias)
    assert torch.allclose(group(x), batch(x), atol=2e-3)
    naive = group_norm(64).double()
    with torch.no_grad():
        naive.weight.copy_(batch.weight)
        naive.bias.copy_(batch.bias)
    assert (naive(x) - batch(x)).abs().max() > 0.1


def test_a_site_needs_no_pretrained_weights(tmp_path: Path) -> None:
    missing = ModelPlan(backbone="resnet18", pretrained=str(tmp_path / "none.pth"))
    plan = Plan(name="a", model=missing)
    with pytest.raises(InputError):
        build_model(plan)
    assert build_model(plan, pretrained=False).findings is not None
