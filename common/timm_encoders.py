"""Encoders from timm: any of its convolutional networks, for grey images and out of place.

A network is changed after its own weights are in it, so that it goes on computing what it did:
its first convolution is summed over the three colours, each BatchNorm becomes what its running
statistics make of it, and nothing writes into its own input any more, for gradients per unit
cannot follow that.
"""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional

from common.encoder import Affine, Encoder, Pixels, fold_batch_norm, group_norm
from common.errors import InputError, Problem
from common.model_plan import BACKBONES

MOST_PARAMETERS = 200_000_000  # of a network: more than any that is trained on chest radiographs


class TimmEncoder(Encoder):
    """A network of timm, read where each of its resolutions ends."""

    def __init__(self, network: Any, norm: str, pixels: Pixels) -> None:
        info = network.feature_info
        super().__init__(tuple(each["num_chs"] for each in info), norm, pixels)
        self.network = network
        self._ends = [each["module"] for each in info]

    def features(self, images: Tensor) -> list[Tensor]:
        """See Encoder."""
        found: list[Tensor] = self.network.forward_intermediates(images, intermediates_only=True)
        return found

    def by_stage(self) -> list[list[nn.Parameter]]:
        """See Encoder. timm names the module with which each resolution ends."""
        stages: list[list[nn.Parameter]] = [[] for _ in self._ends]
        number, entered = 0, False
        for name, module in self.network.named_modules():
            if entered and not _within(name, self._ends[number]) and number + 1 < len(stages):
                number, entered = number + 1, False
            entered = entered or _within(name, self._ends[number])
            stages[number].extend(module.parameters(recurse=False))
        return stages


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def timm_network(backbone: str) -> Any:
    """timm's network of this name, with random weights, as timm made it.

    Without its classifier. Raises InputError for a name that timm does not have, and for a
    network that is too large or gives no feature maps down to stride 32.
    """
    if backbone not in timm.list_models():
        close = ", ".join(timm.list_models(f"{backbone[:6]}*")[:8]) or "resnet18, densenet121"
        raise InputError(_unfit(backbone, "a name that timm does not know", f"such as {close}"))
    with torch.device("meta"):  # its size is known before it takes memory
        network = timm.create_model(backbone, num_classes=0)
    size = sum(parameter.numel() for parameter in network.parameters())
    if size > MOST_PARAMETERS:
        found = f"{size:,} parameters"
        raise InputError(_unfit(backbone, found, f"at most {MOST_PARAMETERS:,}"))
    strides = [each.get("reduction") for each in getattr(network, "feature_info", [])]
    pyramid = strides in ([2, 4, 8, 16, 32], [4, 8, 16, 32])
    if not (pyramid and hasattr(network, "prune_intermediate_layers")):
        allowed = "feature maps at strides 2 (or 4) to 32"
        raise InputError(_unfit(backbone, f"feature maps at strides {strides}", allowed))
    return timm.create_model(backbone, num_classes=0)


def timm_pixels(backbone: str) -> Pixels:
    """What the published weights of a network take: their mean and deviation, of grey."""
    published = timm.get_pretrained_cfg(backbone)
    if published is None:
        return Pixels()
    return Pixels(sum(published.mean) / 3, sum(published.std) / 3)


def build_timm(
    backbone: str, norm: str, pixels: Pixels, state: Mapping[str, Tensor] | None = None
) -> TimmEncoder:
    """The encoder of a network of timm; norm: "affine" or "group".

    state: weights to hold, by timm's names, all of the network's own. Raises InputError for a
    network that cannot be used, and for weights that are not its own.
    """
    network = timm_network(backbone)
    if state is not None:
        _load(network, backbone, state)
    network.prune_intermediate_layers(len(network.feature_info), prune_norm=False, prune_head=True)
    _convert(network, norm)
    _take_grey(network)
    encoder = TimmEncoder(network, norm, pixels)
    _check(encoder, backbone)
    return encoder


def _load(network: nn.Module, backbone: str, state: Mapping[str, Tensor]) -> None:
    """Copy weights in. Extra ones, such as a classifier's, are left; grey stems are spread."""
    own, step = network.state_dict(), "Use weights of the plan's backbone."
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if missing:
        found = f"{len(missing)} of {len(own)} weights missing"
        at = f"weight {missing[0]!r}"
        allowed = f"a state dict of timm's {backbone}"
        raise InputError(Problem("model.pretrained", at, found, allowed, step))
    taken = {name: state[name] for name in own if name in state}
    for name, value in taken.items():
        shape = own[name].shape
        if value.ndim == 4 and value.shape[1] == 1 and shape[1] == 3:
            taken[name] = value = value.expand(-1, 3, -1, -1) / 3
        if value.shape != shape:
            found, allowed = f"shape {tuple(value.shape)}", str(tuple(shape))
            raise InputError(Problem("model.pretrained", name, found, allowed, step))
    network.load_state_dict(taken, strict=False)


class SamePadding(nn.Module):
    """TensorFlow's padding "same" before a convolution: more of it on the right and below."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._each = list(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) with zeros around it."""
        sides = []
        for size, (kernel, stride, dilation) in zip(x.shape[-2:], self._each, strict=True):
            total = get_same_padding(size, kernel, stride, dilation)
            sides.append((total // 2, total - total // 2))
        (top, bottom), (left, right) = sides
        return functional.pad(x, (left, right, top, bottom))


class _BasicBlock(BasicBlock):
    """timm's block with `out + shortcut` instead of `out += shortcut`."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        x = x if self.aa is None else self.aa(x)
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        result: Tensor = self.act2(x + shortcut)
        return result


class _Bottleneck(Bottleneck):
    """timm's block with `out + shortcut` instead of `out += shortcut`."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.drop_block(self.bn2(self.conv2(x))))
        x = x if self.aa is None else self.aa(x)
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        result: Tensor = self.act3(x + shortcut)
        return result


_OUT_OF_PLACE: dict[type, type] = {BasicBlock: _BasicBlock, Bottleneck: _Bottleneck}


def _convert(module: nn.Module, norm: str) -> None:
    """Replace every BatchNorm below, TensorFlow's convolutions, and what works in place."""
    module.__class__ = _OUT_OF_PLACE.get(type(module), type(module))
    if getattr(module, "inplace", False):
        module.inplace = False  # type: ignore[assignment]
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _normal(child, norm))
        elif isinstance(child, Conv2dSame):
            setattr(module, name, nn.Sequential(SamePadding(child), _plain(child)))
        else:
            _convert(child, norm)


def _normal(batch: nn.BatchNorm2d, norm: str) -> nn.Module:
    """What stands in a BatchNorm's place, with the activation that timm keeps inside of it."""
    assert batch.running_mean is not None
    assert batch.running_var is not None
    weight, bias = batch.weight.detach(), batch.bias.detach()
    mean, var, eps = batch.running_mean, batch.running_var, batch.eps
    layer: Affine | nn.GroupNorm
    if norm == "affine":
        layer = Affine(batch.num_features)
        scale = weight / (var + eps).sqrt()
        shift = bias - mean * scale
    else:
        layer = group_norm(batch.num_features)
        scale, shift = fold_batch_norm(weight, bias, mean, var, eps)
    with torch.no_grad():
        layer.weight.copy_(scale)
        layer.bias.copy_(shift)
    activation = getattr(batch, "act", None)
    if activation is None or isinstance(activation, nn.Identity):
        return layer
    _convert(activation, norm)
    return nn.Sequential(layer, activation)


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution without any padding of its own."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain


def _take_grey(network: nn.Module) -> None:
    """Sum the first convolution over colours: a grey image is the same in all three."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    conv.in_channels = 1
    conv.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))


def _check(encoder: TimmEncoder, backbone: str) -> None:
    """Refuse what would not be trained rightly, or not at all, before anybody begins to."""
    left = [name for name, _ in encoder.named_buffers()]
    if left:
        found = f"a buffer {left[0]!r}, which no gradient teaches and no round averages"
        raise InputError(_unfit(backbone, found, "networks that have parameters only"))
    if backbone in BACKBONES:
        return
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 1, 64, 64))
    except Exception as error:  # whatever a network of timm thinks of one channel of grey
        found = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(_unfit(backbone, found, "networks that run on grey images")) from None


def _unfit(backbone: str, found: str, allowed: str) -> Problem:
    step = "Use another backbone; docs/backbones.md has a table of those that are tested."
    return Problem("plan", f"key 'model.backbone' ({backbone})", found, allowed, step)
