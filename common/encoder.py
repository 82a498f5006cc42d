"""Encoders: the shared part of the model.

Every encoder takes (B, 1, S, S) float images in [0, 1] and returns feature maps, finest first, at
strides 2, 4, 8, 16 and 32 (`multimix`: 1 to 16; ConvNeXt: from 4). No layer has running
statistics, which would have to be averaged and could leak: GroupNorm from scratch, and for
pretrained weights what they have made of it (`Affine`). That is what differential privacy allows,
too. No operation on the path is in-place, because per-sample gradient hooks cannot follow those.

Our own small networks are here; `common.timm_encoders` has all others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn

GROUPS = 32  # Wu & He, "Group Normalization", ECCV 2018, section 4: the default of 32 groups


def standardise(images: Tensor) -> Tensor:
    """Each image (B, 1, S, S) to mean 0 and deviation 1 over its own pixels.

    Scanners differ in exposure and grey scale; an image's own mean and deviation take most of
    that away, and unlike a site's they are no statistic over other patients.
    """
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-4).sqrt()


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or as many as divide `channels`."""
    return nn.GroupNorm(gcd(GROUPS, channels), channels)


class Affine(nn.Module):
    """y = a x + b for each channel: a BatchNorm at its running statistics, as two parameters.

    A BatchNorm in evaluation mode is a = w / sqrt(var + eps), b = bias - mean a (Ioffe and
    Szegedy, ICML 2015, algorithm 2). Nothing is left to average wrongly or to leak.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


@dataclass(frozen=True)
class Pixels:
    """How grey levels in [0, 1] enter a network: (x - mean) / deviation.

    None: by each image's own mean and deviation (`standardise`).
    """

    mean: float | None = None
    deviation: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) to the same shape."""
        return standardise(images) if self.mean is None else (images - self.mean) / self.deviation


class Encoder(nn.Module):
    """Feature maps at ever coarser resolutions; map number i has `channels[i]` channels.

    words: what normalises and how pixels enter, which no parameter tells.
    """

    def __init__(self, channels: tuple[int, ...], norm: str, pixels: Pixels) -> None:
        super().__init__()
        self.channels, self.pixels = channels, pixels
        self.words = f"{norm}, {pixels}"

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 1, S, S) in [0, 1] to maps (B, channels[i], side, side), finest first."""
        return self.features(self.pixels(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """What `forward` returns, of images as the network takes them."""
        raise NotImplementedError

    def by_stage(self) -> list[list[nn.Parameter]]:
        """The parameters that each map needs beyond those before it: every one once."""
        raise NotImplementedError


class StagedEncoder(Encoder):
    """Stages in a row, each at half the resolution of the one before."""

    def __init__(self, stages: list[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__(channels, "group", Pixels())
        self.stages = nn.ModuleList(stages)

    def features(self, images: Tensor) -> list[Tensor]:
        """See Encoder."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return features

    def by_stage(self) -> list[list[nn.Parameter]]:
        """See Encoder."""
        return [list(stage.parameters()) for stage in self.stages]


def _tiny() -> StagedEncoder:
    """A plain five-stage network of 0.29 M parameters for tests and the demo."""
    channels = (16, 32, 48, 96, 160)
    stages: list[nn.Module] = []
    width_in = 1
    for width in channels:
        stages.append(
            nn.Sequential(
                nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False),
                group_norm(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=1 if width < 96 else 8, bias=False),
                group_norm(width),
                nn.ReLU(),
            )
        )
        width_in = width
    return StagedEncoder(stages, channels)


def _multimix() -> StagedEncoder:
    """The encoder of MultiMix (arXiv 2110.13185; 1.18 M parameters), without its dropout.

    Instance normalisation without affine is GroupNorm with one channel a group.
    """
    channels = (16, 32, 64, 128, 256)
    stages: list[nn.Module] = []
    width_in = 1
    for width in channels:
        layers: list[nn.Module] = [] if width_in == 1 else [nn.MaxPool2d(2)]
        for into in (width_in, width):
            layers.append(nn.Conv2d(into, width, 3, padding=1))
            layers.append(nn.GroupNorm(width, width, affine=False))
            layers.append(nn.LeakyReLU(0.2))
        stages.append(nn.Sequential(*layers))
        width_in = width
    return StagedEncoder(stages, channels)


OURS: dict[str, Callable[[], StagedEncoder]] = {"tiny": _tiny, "multimix": _multimix}


def fold_batch_norm(
    weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """GroupNorm affine (C,), (C,) that acts like a BatchNorm, given its running statistics.

    BatchNorm computes g (x - m_c) / s_c + b per channel; GroupNorm normalises by the group's
    mean m_g and deviation s_g. Where the input has the running statistics, the two agree for
    g' = g s_g / s_c and b' = b + g (m_g - m_c) / s_c. Copying g and b alone would not.
    """
    channels = weight.numel()
    groups = gcd(GROUPS, channels)
    std = (var + eps).sqrt()
    mean_g = mean.view(groups, -1).mean(1, keepdim=True)
    second = (var + mean.square()).view(groups, -1).mean(1, keepdim=True)
    std_g = (second - mean_g.square() + eps).sqrt()
    spread = torch.ones_like(mean).view(groups, -1)
    scale = (std_g * spread).reshape(-1) / std
    shift = ((mean_g * spread).reshape(-1) - mean) / std
    return weight * scale, bias + weight * shift
