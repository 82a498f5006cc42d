"""The saliency bridge: exact, harmless, per image, and exportable."""

import copy

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from common.model import MultitaskModel, build_model
from common.plan import Plan
from common.saliency import bridge_planes, saliency

SIDE = 32


def bridged(bridge: str = "all-stages") -> MultitaskModel:
    section = {"backbone": "tiny", "image_size": SIDE, "decoder_width": 8, "bridge": bridge}
    return build_model(Plan.model_validate({"name": "test", "seed": 5, "model": section}))


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def test_saliency_equals_finite_differences() -> None:
    """Central differences in float64 at pixels spread over the image."""
    model = bridged().double()
    assert model.findings is not None
    picture = images(1).double()
    found = saliency(model.encoder, model.findings, picture)

    def highest(pixels: Tensor) -> float:
        assert model.findings is not None
        with torch.no_grad():
            return float(model.findings(model.encoder(pixels)).max())

    step = 1e-6
    for row, column in ((3, 5), (15, 16), (16, 15), (20, 9), (31, 31)):
        up, down = picture.clone(), picture.clone()
        up[0, 0, row, column] += step
        down[0, 0, row, column] -= step
        slope = abs(highest(up) - highest(down)) / (2 * step)
        assert float(found[0, 0, row, column]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("no_grad", [True, False])
def test_it_leaves_mode_weights_and_gradients_alone(training: bool, no_grad: bool) -> None:
    model = bridged().train(training)
    assert model.findings is not None
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(model.state_dict())
    with torch.set_grad_enabled(not no_grad):
        planes = bridge_planes(model.encoder, model.findings, images())
    assert not planes.requires_grad
    assert model.training == training
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters() if p.grad is not None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_both_planes_have_one_scale_whatever_the_weights() -> None:
    model = bridged()
    assert model.findings is not None
    for factor in (1.0, 1e-3, 1e3):
        with torch.no_grad():
            model.findings.linear.weight.mul_(factor)
        planes = bridge_planes(model.encoder, model.findings, images())
        assert planes.shape == (3, 2, SIDE, SIDE)
        assert torch.allclose(planes.mean(dim=(2, 3)), torch.zeros(3, 2), atol=1e-4)
        assert torch.allclose(planes.std(dim=(2, 3)), torch.ones(3, 2), atol=0.05)


def test_a_map_belongs_to_its_image_alone() -> None:
    model = bridged()
    assert model.findings is not None
    whole = bridge_planes(model.encoder, model.findings, images())
    alone = bridge_planes(model.encoder, model.findings, images()[1:2])
    assert torch.allclose(whole[1], alone[0], atol=1e-4)


@pytest.mark.parametrize("bridge", ["decoder-input", "all-stages"])
def test_the_bridge_reaches_the_lungs(bridge: str) -> None:
    """Another findings head makes other lungs; without a bridge it does not."""
    model, plain = bridged(bridge), bridged("off")
    for network, changes in ((model, True), (plain, False)):
        first = network(images()).lungs
        assert network.findings is not None
        with torch.no_grad():
            network.findings.linear.weight.neg_()
        assert torch.equal(first, network(images()).lungs) != changes


def test_planes_given_are_planes_worked_out() -> None:
    model = bridged()
    rows = torch.tensor([0, 2])
    planes = model.planes(images()[rows])
    given, own = model(images(), rows, planes), model(images(), rows)
    assert torch.equal(given.lungs, own.lungs)
    assert model.planes(images()[:0]) is None
    assert bridged("off").planes(images()) is None


def test_evaluation_is_repeatable() -> None:
    model = bridged().eval()
    with torch.no_grad():
        first, second = model(images()), model(images())
    assert torch.equal(first.lungs, second.lungs)
    assert torch.equal(first.findings, second.findings)


def test_a_bridge_without_findings_is_an_error() -> None:
    model = bridged()
    model.findings = None
    with pytest.raises(ValueError, match="needs the findings head"):
        model(images())


def test_it_can_be_exported() -> None:
    """`make_fx` records the derivative as plain operations, which `torch.export` then takes."""
    model = bridged().eval()

    def both(pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(pixels)
        return outputs.findings, outputs.lungs

    graph = torch.export.export(make_fx(both)(images()), (images(),)).module()
    findings, lungs = graph(images(seed=1))
    expected = model(images(seed=1))
    assert torch.allclose(findings, expected.findings, atol=1e-6)
    assert torch.allclose(lungs, expected.lungs, atol=1e-5)


def test_the_map_is_the_same_inside_autocast() -> None:
    """Training works it out outside of autocast, evaluation inside."""
    model = bridged()
    assert model.findings is not None
    with torch.autocast("cpu", torch.bfloat16):
        inside = saliency(model.encoder, model.findings, images())
    assert torch.equal(inside, saliency(model.encoder, model.findings, images()))
