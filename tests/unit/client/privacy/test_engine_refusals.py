"""Networks on which an engine would be wrong are refused, most of all where it would not fail."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from client.privacy.choose import open_engine
from client.privacy.engines import LoopEngine
from client.privacy.hooks import OpacusEngine
from client.privacy.material import apart
from client.privacy.vmap import VmapEngine
from common.errors import InputError
from common.model import MultitaskModel
from tests.unit.client.privacy.units import (
    EVERYTHING,
    clipped_sum,
    flat,
    make_material,
    noisy_model,
    unit_gradients,
    zeros,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MOST = 32


def with_layer(make: Callable[[], nn.Module]) -> MultitaskModel:
    """A model with one layer more after its first stage, which has 16 channels."""
    model = noisy_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.encoder.stages[0].append(make().double())
    return model


class Permuted(nn.Module):
    """A convolution whose input is in NHWC memory, as after the LayerNorm2d of ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        return inner.contiguous()


class Twice(nn.Module):
    """Forgets its activations and works them out again, as torchvision's DenseNet can."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = checkpoint(self.convs, x, use_reentrant=False)
        return inner


class InPlace(nn.Module):
    """Writes into its own results, as torchvision's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv(x)
        inner += x
        inner.mul_(0.5)
        activated: Tensor = self.relu(inner)
        return torch.relu_(activated * 2.0)


class Buffered(nn.Module):
    """A trained weight beside a buffer, as in the attention of Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 1, 1))
        self.register_buffer("index", torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.index


def refusal(engine: str, model: MultitaskModel, device: torch.device = CPU) -> str:
    """The one problem with which an engine is refused."""
    with pytest.raises(InputError) as caught:
        open_engine(engine, model, device, MOST)
    [problem] = caught.value.problems
    assert problem.file == "site.yaml"
    assert problem.at == "key 'engine'"
    assert problem.next_step
    return f"{problem.found}; {problem.allowed}"


def untouched(model: nn.Module) -> None:
    """Nothing of Opacus' is left on a model."""
    assert not any(vars(parameter) for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not {"activations", "max_batch_len", "grad_sample"} & set(vars(module))


@pytest.mark.parametrize("engine", ["auto", "loop", "opacus", "vmap"])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm2d(16),
        lambda: nn.BatchNorm2d(16, affine=False, track_running_stats=False),
        lambda: nn.InstanceNorm2d(16, track_running_stats=True),
    ],
)
def test_statistics_over_images_are_refused(engine: str, layer: Callable[[], nn.Module]) -> None:
    model = with_layer(layer)
    with pytest.raises(InputError, match=r"statistics over images \(encoder\.stages\.0\.6: "):
        open_engine(engine, model, CPU, MOST)


def test_instance_norm_without_memory_is_welcome() -> None:
    open_engine("loop", with_layer(lambda: nn.InstanceNorm2d(16)), CPU, MOST)


def test_vmap_refuses_dropout_and_the_others_do_not() -> None:
    model = with_layer(lambda: nn.Dropout2d(0.1))
    found = refusal("vmap", model)
    assert "dropout (encoder.stages.0.6: Dropout2d)" in found
    assert "loop, opacus" in found
    for engine in ("loop", "opacus"):
        total = zeros(model)
        open_engine(engine, model, CPU, MOST).add_clipped(
            apart(make_material(model)), EVERYTHING, 1.0, total
        )
        assert 0 < flat(total).norm() <= 4
    assert isinstance(
        open_engine("vmap", with_layer(lambda: nn.Dropout(0.0)), CPU, MOST), VmapEngine
    )


def test_vmap_itself_refuses_chance_that_is_no_layer() -> None:
    class Chance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.1)

    model = with_layer(Chance)
    with pytest.raises(RuntimeError, match="random"):
        open_engine("vmap", model, CPU, MOST).add_clipped(
            apart(make_material(model)), EVERYTHING, 1.0, zeros(model)
        )


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_opacus_refuses_padding_that_it_takes_for_zeros(mode: str) -> None:
    model = with_layer(lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode))
    assert f"padding mode {mode} (encoder.stages.0.6: Conv2d)" in refusal("opacus", model)
    for engine in ("loop", "vmap"):
        open_engine(engine, model, CPU, MOST)


def test_opacus_refuses_nhwc_weights() -> None:
    model = noisy_model().to(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="NHWC"):
        open_engine("opacus", model, CPU, MOST)


def test_opacus_refuses_trained_weights_beside_a_buffer() -> None:
    model = with_layer(Buffered)
    assert "trained weights beside a buffer (encoder.stages.0.6: Buffered)" in refusal(
        "opacus", model
    )
    model.encoder.stages[0][-1].requires_grad_(False)
    open_engine("opacus", model, CPU, MOST)


def test_opacus_refuses_a_buffer_anywhere_below_a_trained_weight() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16, 1, 1))
            self.inner = Buffered().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            inner: Tensor = self.inner(x)
            return inner * self.weight

    assert "encoder.stages.0.6: Parent" in refusal("opacus", with_layer(Parent))


def test_opacus_refuses_a_layer_that_sees_only_some_rows() -> None:
    class Half(Permuted):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.conv(x[:2]), x[2:]])

    model = with_layer(Half)
    with pytest.raises(InputError, match="cannot tell the rows of this network apart"):
        open_engine("opacus", model, CPU, MOST).add_clipped(
            apart(make_material(model)), EVERYTHING, 1.0, zeros(model)
        )
    untouched(model)


@pytest.mark.parametrize("layer", [Permuted, Twice])
def test_the_loop_takes_over_where_opacus_is_wrong(layer: Callable[[], nn.Module]) -> None:
    """Found out on public noise, and without a word: a refusal would tell who was drawn."""
    model = with_layer(layer)
    material, total = make_material(model), zeros(model)
    open_engine("opacus", model, CPU, MOST).add_clipped(apart(material), EVERYTHING, 1.0, total)
    untouched(model)
    expected = clipped_sum(unit_gradients(model, material, EVERYTHING), 1.0)
    assert torch.allclose(flat(total), expected, rtol=1e-4, atol=1e-6)


def test_opacus_refuses_operations_in_place_and_the_others_do_not() -> None:
    """Its hooks cannot follow them. To replace them would change networks that rely on them."""
    model = with_layer(InPlace)
    material = make_material(model)
    expected = clipped_sum(unit_gradients(model, material, EVERYTHING), 1.0)
    for engine in ("loop", "vmap"):
        total = zeros(model)
        open_engine(engine, model, CPU, MOST).add_clipped(apart(material), EVERYTHING, 1.0, total)
        assert float((flat(total) - expected).norm()) <= 1e-6 * float(expected.norm())
    with pytest.raises(InputError, match="writes into its results"):
        open_engine("opacus", model, CPU, MOST).add_clipped(
            apart(material), EVERYTHING, 1.0, zeros(model)
        )
    untouched(model)


def test_auto_is_vmap_for_small_networks_and_on_a_gpu_and_else_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = noisy_model()
    assert isinstance(open_engine("auto", model, CPU, MOST), VmapEngine)
    monkeypatch.setattr("client.privacy.choose.SMALL", 1)
    assert isinstance(open_engine("auto", model, CPU, MOST), LoopEngine)
    assert isinstance(open_engine("auto", model, GPU, MOST), VmapEngine)
    dropping = with_layer(lambda: nn.Dropout(0.1))
    assert isinstance(open_engine("auto", dropping, GPU, MOST), LoopEngine)


def test_names_are_kept() -> None:
    model = noisy_model()
    assert isinstance(open_engine("loop", model, CPU, MOST), LoopEngine)
    assert isinstance(open_engine("vmap", model, CPU, MOST), VmapEngine)
    assert isinstance(open_engine("opacus", model, CPU, MOST), OpacusEngine)
