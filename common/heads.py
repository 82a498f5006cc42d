"""Heads: the part of the model that, by default, stays at its site."""

from math import log

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
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        widths = [min(width * 2**stage, 4 * width) for stage in range(len(channels))]
        coarse_first = list(reversed(range(len(channels))))
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels[stage], widths[stage], kernel_size=1) for stage in coarse_first
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

    def forward(self, features: list[Tensor]) -> Tensor:
        """Five feature maps, the finest at stride 2, to lung logits (B, 1, S, S)."""
        coarsest, *finer = reversed(features)
        x = self.lateral[0](coarsest)
        stages = zip(finer, self.lateral[1:], self.narrow, self.smooth, strict=True)
        for feature, lateral, narrow, smooth in stages:
            x = functional.interpolate(narrow(x), size=feature.shape[-2:], mode="nearest")
            x = smooth(x + lateral(feature))
        logits: Tensor = self.logit(x)
        return functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
