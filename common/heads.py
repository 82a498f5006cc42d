"""Heads: the part of the model that, by default, stays at its site."""

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
    """U-Net style decoder on the five feature maps (Ronneberger et al., MICCAI 2015, fig. 1).

    It stops at stride 2 and upsamples the logits: lung borders are smooth, and the last stage
    at full resolution would cost more than all the others.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        widths = [min(width * 2**stage, 4 * width) for stage in range(len(channels) - 1)]
        self.merge = nn.ModuleList()
        below = channels[-1]
        for stage in reversed(range(len(channels) - 1)):
            self.merge.append(
                nn.Sequential(
                    nn.Conv2d(below + channels[stage], widths[stage], 3, padding=1, bias=False),
                    group_norm(widths[stage]),
                    nn.ReLU(),
                )
            )
            below = widths[stage]
        self.logit = nn.Conv2d(below, 1, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Five feature maps, the finest at stride 2, to lung logits (B, 1, S, S)."""
        x = features[-1]
        for merge, skip in zip(self.merge, reversed(features[:-1]), strict=True):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = merge(torch.cat([x, skip], dim=1))
        logits: Tensor = self.logit(x)
        return functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
