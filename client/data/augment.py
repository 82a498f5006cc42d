"""Augmentation of a whole batch at once, on the device that holds it.

The geometric part is one affine map per image, applied to image and mask alike; intensities
are changed afterwards. Nothing here flips, inverts, posterises or solarises by default: a
radiograph's laterality and grey scale carry findings.
"""

from math import pi

import torch
from torch import Tensor
from torch.nn import functional

from common.sections import AugmentPlan


def affine(count: int, plan: AugmentPlan, generator: torch.Generator) -> Tensor:
    """Random rotation, zoom, shift and (if asked) flip: (B, 2, 3) float32 on the CPU.

    Maps output to input coordinates in [-1, 1], as `torch.nn.functional.affine_grid` wants.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    angle = uniform(-plan.rotate_degrees, plan.rotate_degrees) * (pi / 180)
    zoom = 1 / (1 + uniform(-plan.scale, plan.scale))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if plan.flip else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * zoom * flip, -angle.sin() * zoom
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * zoom * flip, angle.cos() * zoom
    # The image side is 2 in these coordinates.
    shifts = [uniform(-2 * plan.translate, 2 * plan.translate) for _ in range(2)]
    theta[:, :, 2] = torch.stack(shifts, dim=1)
    return theta


def warp(images: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """Apply (B, 2, 3) affine maps to (B, C, S, S) floats; outside the image is 0.

    Never in reduced precision: bf16 has 8 bits, and a grid in it is wrong by a pixel at 256 px.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = functional.affine_grid(
            theta.to(images.device, images.dtype), list(images.shape), align_corners=False
        )
        return functional.grid_sample(images, grid, mode=mode, align_corners=False)


def intensity(images: Tensor, plan: AugmentPlan, generator: torch.Generator) -> Tensor:
    """Random gamma, contrast, brightness and noise on (B, 1, S, S) in [0, 1]; same range."""
    count, device = images.shape[0], images.device

    def around(centre: float, spread: float) -> Tensor:
        values = torch.empty(count, 1, 1, 1).uniform_(
            centre - spread, centre + spread, generator=generator
        )
        return values.to(device)

    out = images.clamp(0, 1) ** around(1.0, plan.gamma)
    mean = out.mean(dim=(2, 3), keepdim=True)
    out = (out - mean) * around(1.0, plan.contrast) + mean + around(0.0, plan.brightness)
    if plan.noise > 0:
        # Drawn where the images are: as many numbers as pixels are too many to send.
        seed = int(torch.randint(2**62, (1,), generator=generator))
        local = torch.Generator(device).manual_seed(seed)
        out = out + plan.noise * torch.randn(out.shape, generator=local, device=device)
    return out.clamp(0, 1)


def augment(
    images: Tensor,
    masks: Tensor,
    lung_rows: Tensor,
    plan: AugmentPlan,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Warp images (B, 1, S, S) and their masks (M, 1, S, S) together, then change intensities.

    Row i of `masks` belongs to image `lung_rows[i]`. Masks come back binary.
    """
    theta = affine(images.shape[0], plan, generator).to(images.device)
    warped = warp(images, theta)
    if masks.shape[0]:
        masks = (warp(masks, theta[lung_rows]) > 0.5).to(masks.dtype)
    return intensity(warped, plan, generator), masks
