"""Heads: the part of the model that, by default, stays at its site."""

from collections.abc import Collection
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.encoder import group_norm
from common.findings import FINDINGS

PRIOR = 0.05  # typical prevalence of a finding in NIH ChestX-ray14; a public constant


class FindingsHead(nn.Module):
    """Global average pooling and one linear row per finding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, len(FINDINGS))
        # Start at the prior instead of 0.5: with rare findings the first steps would
        # otherwise only learn that they are rare (Lin et al., "Focal loss", section 4.1).
        nn.init.constant_(self.linear.bias, log(PRIOR / (1 - PRIOR)))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Five feature maps to logits (B, 14)."""
        return self.from_pooled(pool(features))

    def from_pooled(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) to logits (B, 14)."""
        logits: Tensor = self.linear(pooled)
        return logits


def pool(features: list[Tensor]) -> Tensor:
    """Mean over space of the coarsest feature map, (B, C)."""
    return features[-1].mean(dim=(2, 3))


class LungsHead(nn.Module):
    """Decoder over the five feature maps, from coarse to fine, with a lateral input at each.

    The U-Net's idea (Ronneberger et al., MICCAI 2015, figure 1) in the cheaper form of a feature
    pyramid (Lin et al., CVPR 2017, section 3): every map is first reduced to the stage's width
    by a 1 x 1 convolution and then added. It stops at stride 2 and upsamples the logits: lung
    borders are smooth, and a stage at full resolution would cost more than all the others.

    `planes` more input channels, if any, join the lateral inputs of the stages that `bridged`
    names (0 is the finest): the saliency bridge, see common/saliency.py.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        width: int,
        planes: int = 0,
        bridged: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.bridged = frozenset(bridged)
        widths = [min(width * 2**stage, 4 * width) for stage in range(len(channels))]
        coarse_first = list(reversed(range(len(channels))))
        self.lateral = nn.ModuleList(
            nn.Conv2d(
                channels[stage] + (planes if stage in self.bridged else 0),
                widths[stage],
                kernel_size=1,
            )
            for stage in coarse_first
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(widths[stage + 1], widths[stage], kernel_size=1) for stage in coarse_first[1:]
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[stage], widths[stage], 3, padding=1, bias=False),
                group_norm(widths[stage]),
                nn.ReLU(),
            )
            for stage in coarse_first[1:]
        )
        self.logit = nn.Conv2d(widths[0], 1, kernel_size=1)

    def forward(self, features: list[Tensor], size: int, planes: Tensor | None = None) -> Tensor:
        """Five feature maps to lung logits (B, 1, S, S), where `size` is S.

        planes: (B, planes, S, S), needed by a head that was built with some.
        """
        if planes is not None:
            features = [
                self._joined(feature, planes) if stage in self.bridged else feature
                for stage, feature in enumerate(features)
            ]
        coarsest, *finer = reversed(features)
        x = self.lateral[0](coarsest)
        stages = zip(finer, self.lateral[1:], self.narrow, self.smooth, strict=True)
        for feature, lateral, narrow, smooth in stages:
            x = functional.interpolate(narrow(x), size=feature.shape[-2:], mode="nearest")
            x = smooth(x + lateral(feature))
        logits: Tensor = self.logit(x)
        return functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)

    def _joined(self, feature: Tensor, planes: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        small = functional.adaptive_avg_pool2d(planes, (height, width))
        return torch.cat([feature, small.to(feature.dtype)], dim=1)
