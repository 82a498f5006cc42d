"""Encoders: the shared part of the model.

Every encoder takes (B, 1, S, S) float images in [0, 1] and returns five feature maps, finest
first, at strides 2, 4, 8, 16 and 32 (`multimix`: 1 to 16). GroupNorm everywhere: it has no
running statistics that would have to be averaged or could leak, and it is what differential
privacy allows. No operation on the path is in-place, because per-sample gradient hooks cannot
follow those.

To add a backbone: write a function that returns an `Encoder`, name it in `OURS`, or in
`common.torchvision_encoders.BACKBONES`, and in `common.sections.Backbone`.
"""

from collections.abc import Callable
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


class Encoder(nn.Module):
    """Five stages in a row, each at half the resolution of the one before; `channels[i]` wide."""

    def __init__(self, stages: list[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 1, S, S) in [0, 1] to five maps (B, channels[i], side, side), finest first."""
        x = standardise(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _tiny() -> Encoder:
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
    return Encoder(stages, channels)


def _multimix() -> Encoder:
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
    return Encoder(stages, channels)


OURS: dict[str, Callable[[], Encoder]] = {"tiny": _tiny, "multimix": _multimix}


def build_encoder(backbone: str) -> Encoder:
    """A randomly initialised encoder. Raises KeyError for an unknown name.

    torchvision takes 2 s to import, so it is loaded for a network of its own alone.
    """
    if backbone in OURS:
        encoder = OURS[backbone]()
    else:
        from common.torchvision_encoders import BACKBONES

        encoder = BACKBONES[backbone]()
    for module in encoder.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return encoder


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
