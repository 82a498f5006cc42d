"""Weak and strong views of images that nobody has annotated, a whole batch at a time.

The teacher answers on the weak view, the student on the strong one, which is the same image moved
on from there and degraded: tone, noise, blur, a blank square. All of it happens to real radiographs
(positioning, exposure, dose, focus, a pacemaker); nothing is inverted, solarised or posterised,
and nothing is mirrored unless the plan allows it, for that would swap left and right.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from client.data.augment import affine, intensity, warp
from common.sections import SemiSupervisionPlan


@dataclass(frozen=True)
class Views:
    """weak, strong: (B, 1, S, S) in [0, 1]. theta: (B, 2, 3), where strong looks into weak."""

    weak: Tensor
    strong: Tensor
    theta: Tensor


def make_views(images: Tensor, plan: SemiSupervisionPlan, generator: torch.Generator) -> Views:
    """Both views of images (B, 1, S, S) in [0, 1]. All randomness comes from `generator`."""
    count = images.shape[0]
    first = affine(count, plan.weak, generator)
    placed = images if _still(first) else warp(images, first)
    theta = affine(count, plan.strong, generator).to(images.device)
    strong = intensity(warp(placed, theta), plan.strong, generator)
    if plan.strong.blur > 0:
        strong = blur(strong, _uniform(count, plan.strong.blur, generator), plan.strong.blur)
    if plan.strong.cutout > 0:
        strong = cut_out(strong, plan.strong.cutout, generator)
    return Views(intensity(placed, plan.weak, generator), strong, theta)


def _still(theta: Tensor) -> bool:
    """Whether the maps leave every image where it is: no need to resample it, then."""
    return bool((theta == torch.eye(2, 3)).all())


def _uniform(count: int, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count).uniform_(0.0, high, generator=generator)


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of (B, 1, S, S) by each image's own deviation.

    sigma: (B,) as a share of the side, at most `largest`. One grouped convolution a direction
    for the whole batch.
    """
    count, size = images.shape[0], images.shape[-1]
    pixels = sigma.to(images.device) * size
    # Three deviations hold 99.7 % of a Gaussian. The kernel's length is the plan's, not the
    # batch's: no image may change what becomes of another, or a unit's influence is not its own.
    reach = min(max(1, math.ceil(3 * largest * size)), size - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / pixels.clamp_min(1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.dtype)
    x = functional.pad(images.transpose(0, 1), (reach,) * 4, mode="reflect")
    x = functional.conv2d(x, kernel[:, None, :, None], groups=count)
    x = functional.conv2d(x, kernel[:, None, None, :], groups=count)
    return x.transpose(0, 1)


def cut_out(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Blank one square of each image (B, 1, S, S) with the image's own mean.

    largest: side of the largest square as a share of the image's (DeVries and Taylor,
    "Improved regularization with cutout", 2017).
    """
    count, size = images.shape[0], images.shape[-1]
    device = images.device
    half = (_uniform(count, largest, generator) / 2).to(device)[:, None]
    where = (torch.arange(size, device=device) + 0.5) / size
    inside = [
        (where[None, :] - _uniform(count, 1.0, generator).to(device)[:, None]).abs() < half
        for _ in range(2)
    ]
    square = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return torch.where(square, images.mean(dim=(2, 3), keepdim=True), images)
