"""Every network that we name: exact, for one channel, and fit for gradients per unit."""

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from common.encoder import OURS, Affine
from common.errors import InputError
from common.model import build_encoder, build_model
from common.model_plan import BACKBONES, ModelPlan
from common.parameters import flatten, load_flat, shared_layout
from common.plan import Plan

LARGE = ("resnet34", "densenet169", "efficientnet_b3", "convnext_tiny")  # like a smaller one


def tried(names: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in names]


ALL, THEIRS = tried(BACKBONES), tried(name for name in BACKBONES if name not in OURS)


def plan(backbone: str, **more: Any) -> ModelPlan:
    return ModelPlan.model_validate({"backbone": backbone, **more})


def source(backbone: str) -> nn.Module:
    """timm's own network, whose running statistics are of something, in evaluation mode."""
    torch.manual_seed(3)
    network = timm.create_model(backbone, num_classes=0)
    network.train()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:  # norms: nothing is at its initial value
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for _ in range(2):
            network.forward_features(torch.randn(6, 3, 64, 64) * 2 + 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", THEIRS)
def test_features_are_the_source_networks(backbone: str, images: Tensor) -> None:
    theirs = source(backbone)
    published = timm.get_pretrained_cfg(backbone)
    mean, deviation = sum(published.mean) / 3, sum(published.std) / 3
    ours = build_encoder(plan(backbone, norm="affine", pixels="published"), theirs.state_dict())
    with torch.no_grad():
        colours = ((images - mean) / deviation).expand(-1, 3, -1, -1)
        expected = theirs.forward_intermediates(colours, intermediates_only=True)
        for mode in (ours.train(), ours.eval()):  # one and the same in both
            for feature, right in zip(mode(images), expected, strict=True):
                assert feature.shape == right.shape
                assert (feature - right).abs().max() <= 1e-4 * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("norm", ["affine", "group"])
def test_encoders_are_fit_for_privacy(backbone: str, norm: str, images: Tensor) -> None:
    encoder = build_encoder(plan(backbone, norm=norm))
    assert not list(encoder.buffers())  # nothing that is learnt without a gradient
    assert not [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    written: list[tuple[nn.Module, Tensor, int]] = []
    for module in encoder.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda layer, _, out: written.append((layer, out, out._version))
            )
    features = encoder(images)
    assert [layer for layer, out, version in written if out._version != version] == []
    assert encoder.channels == tuple(feature.shape[1] for feature in features)
    sides = [feature.shape[-1] for feature in features]
    first = {"multimix": 64}.get(backbone, 16 if backbone.startswith("convnext") else 32)
    assert sides == [first // 2**stage for stage in range(len(features))]
    # Every parameter has a gradient, and an image's gradient is its own.
    sum(feature.square().mean() for feature in features).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    alone = encoder(images[1:])
    for feature, own in zip(features, alone, strict=True):
        assert torch.allclose(feature[1:], own, atol=1e-4)


@pytest.mark.parametrize("backbone", ALL)
def test_stages_hold_every_parameter_once_and_depend_on_those_before(
    backbone: str, images: Tensor
) -> None:
    encoder = build_encoder(plan(backbone))
    stages = encoder.by_stage()
    listed = [id(parameter) for stage in stages for parameter in stage]
    assert sorted(listed) == sorted(id(parameter) for parameter in encoder.parameters())
    # What a map needs is in its own stage and those before it, and in no later one.
    for number, feature in enumerate(encoder(images)):
        later = [parameter for stage in stages[number + 1 :] for parameter in stage]
        if later:
            found = torch.autograd.grad(feature.sum(), later, allow_unused=True, retain_graph=True)
            assert all(gradient is None for gradient in found)
        own = torch.autograd.grad(feature.sum(), stages[number], allow_unused=True)
        assert all(gradient is not None for gradient in own)


def test_norms_by_the_plan() -> None:
    def norms(**more: Any) -> set[type]:
        kinds = (Affine, nn.GroupNorm)
        return {type(m) for m in build_encoder(plan("resnet18", **more)).modules()} & set(kinds)

    assert norms() == {nn.GroupNorm}
    assert norms(pretrained="imagenet") == {Affine}  # the weights themselves are the server's
    assert norms(pretrained="imagenet", norm="group") == {nn.GroupNorm}
    assert norms(norm="affine") == {Affine}


def test_pixels_by_the_plan() -> None:
    def entering(**more: Any) -> tuple[float | None, float]:
        pixels = build_encoder(plan("densenet121", **more)).pixels
        return pixels.mean, pixels.deviation

    assert entering() == (None, 1.0)
    # ImageNet: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225.
    assert entering(pretrained="imagenet") == pytest.approx((0.449, 0.226))
    assert entering(pretrained="imagenet", pixels="image") == (None, 1.0)
    assert entering(pretrained="w.pt", pixels="xrv") == pytest.approx((0.5, 0.5 / 1024))


def test_norm_and_pixels_belong_to_the_layout() -> None:
    """Parameters have the same names and shapes, and mean something else."""

    def layout(**more: Any) -> str:
        model = build_model(Plan(name="a", model=plan("resnet18", **more)), pretrained=False)
        return shared_layout(model, "local").sha256

    kinds = ({}, {"norm": "affine"}, {"pixels": "published"}, {"pixels": "xrv"})
    assert len({layout(**each) for each in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("resnet19", "timm does not know; allowed: such as resnet10t"),
        ("vit_tiny_patch16_224", "found feature maps at strides"),
        ("vgg11", r"found feature maps at strides \[1, 2, 4, 8, 16, 32\]"),
        ("repvgg_a0", "expected input.* to have 3 channels.*allowed: networks that run on grey"),
        ("convnext_xxlarge", r"found 84\d,\d{3},\d{3} parameters; allowed: at most 200,000,000"),
    ],
)
def test_networks_that_cannot_be_used(backbone: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"key 'model.backbone' \({backbone}\).*{words}"):
        build_encoder(plan(backbone))


@pytest.mark.parametrize("heads", ["local", "shared"])
def test_what_is_fixed_comes_last_and_does_not_move(heads: Any) -> None:
    def built(**more: Any) -> Any:
        trains = more.pop("trains", "all")
        training = {"local_steps": 1, "trains": trains}
        return build_model(
            Plan.model_validate(
                {"name": "a", "heads": heads, "model": plan("tiny", **more), "training": training}
            )
        )

    whole = built()
    everything = shared_layout(whole, heads)
    assert everything.moving == everything.size
    by_stage = [sum(p.numel() for p in stage) for stage in whole.encoder.by_stage()]
    for frozen in range(6 if heads == "shared" else 5):
        model = built(frozen_stages=frozen)
        layout = shared_layout(model, heads)
        assert layout.size == everything.size
        assert layout.size - layout.moving == sum(by_stage[:frozen])
        assert layout.sha256 != everything.sha256 or frozen == 0
        assert len(layout.coverage(())) == layout.moving
        flat = flatten(model, layout)
        delta = torch.ones(layout.moving).numpy()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        load_flat(model, layout, layout.moved(flat, delta))
        for name, parameter in model.named_parameters():
            moves = parameter.requires_grad and name in layout.names
            assert torch.equal(parameter, before[name] + 1 if moves else before[name])
    # tiny: two GroupNorms a stage, of 16, 32, 48, 96 and 160 channels, two numbers each.
    norms, own = shared_layout(built(trains="norms"), heads), 2 * 2 * (16 + 32 + 48 + 96 + 160)
    if heads == "local":
        assert norms.moving == own
        for more in ({"trains": "heads"}, {"frozen_stages": 5}):
            with pytest.raises(InputError, match=r"nothing would travel; allowed: shared with a f"):
                built(**more)
    else:
        heads_only = shared_layout(built(trains="heads"), heads).moving
        assert heads_only == shared_layout(built(frozen_stages=5), heads).moving
        assert norms.moving == own + heads_only
