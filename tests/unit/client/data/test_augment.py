"""Augmentation: image and mask move together, nothing leaves [0, 1], seeds repeat."""

import pytest
import torch

from client.data.augment import affine, augment, intensity, warp
from common.sections import AugmentPlan

STILL = AugmentPlan(
    rotate_degrees=0, translate=0, scale=0, brightness=0, contrast=0, gamma=0, noise=0
)


def blob(side: int = 32) -> torch.Tensor:
    """An off-centre square, so that every motion shows."""
    image = torch.zeros(1, 1, side, side)
    image[..., 4:12, 18:26] = 1.0
    return image


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_ranges_change_nothing() -> None:
    image = torch.rand(3, 1, 32, 32)
    out, _ = augment(image, image[:0], torch.empty(0, dtype=torch.int64), STILL, rng())
    assert torch.allclose(out, image, atol=1e-5)


def test_the_same_seed_repeats_and_another_differs() -> None:
    image, none = torch.rand(3, 1, 32, 32), torch.empty(0, dtype=torch.int64)
    first, again, other = (
        augment(image, image[:0], none, AugmentPlan(), rng(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_masks_follow_their_image() -> None:
    images = blob().repeat(4, 1, 1, 1)
    rows = torch.tensor([1, 3])
    plan = STILL.model_copy(update={"rotate_degrees": 30.0, "translate": 0.2, "scale": 0.3})
    out, masks = augment(images, images[rows], rows, plan, rng())
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    for mask, row in zip(masks, rows, strict=True):
        overlap = (mask * (out[row] > 0.5)).sum() * 2 / (mask.sum() + (out[row] > 0.5).sum())
        assert overlap > 0.95
    assert not torch.equal(masks[0], masks[1])


def test_directions_and_sizes() -> None:
    shift = torch.tensor([[[1.0, 0, 0.5], [0, 1.0, 0]]])  # looks a quarter to the right
    moved = warp(blob(), shift)
    assert moved[0, 0, 8, 14] == pytest.approx(1.0)  # column 22 came to 22 - 8
    assert moved[0, 0, 8, 24] == pytest.approx(0.0)
    zoomed = affine(200, STILL.model_copy(update={"scale": 0.5}), rng())
    assert (zoomed[:, 0, 0] >= 1 / 1.5 - 1e-6).all()
    assert (zoomed[:, 0, 0] <= 2.0 + 1e-6).all()
    turned = affine(200, STILL.model_copy(update={"rotate_degrees": 10.0}), rng())
    degrees = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0])).abs()
    assert 8 < degrees.max() <= 10 + 1e-4
    shifted = affine(200, STILL.model_copy(update={"translate": 0.1}), rng())
    assert 0.15 < shifted[:, :, 2].abs().max() <= 0.2  # 0.1 of a side that is 2 long


def test_flip_is_off_unless_asked_for() -> None:
    assert (affine(100, AugmentPlan(), rng())[:, 0, 0] > 0).all()
    flipped = affine(100, STILL.model_copy(update={"flip": True}), rng())[:, 0, 0]
    assert 20 < (flipped < 0).sum() < 80


def test_intensities_have_the_asked_range() -> None:
    image = torch.full((500, 1, 4, 4), 0.5)
    bright = intensity(image, STILL.model_copy(update={"brightness": 0.1}), rng()).mean((1, 2, 3))
    assert 0.4 <= bright.min() < 0.41
    assert 0.59 < bright.max() <= 0.6
    noisy = intensity(image, STILL.model_copy(update={"noise": 0.05}), rng())
    assert noisy.std() == pytest.approx(0.05, rel=0.05)
    gamma = intensity(image, STILL.model_copy(update={"gamma": 0.2}), rng())
    assert gamma.min() >= 0.5**1.2 - 1e-5
    assert gamma.max() <= 0.5**0.8 + 1e-5


def test_warping_is_exact_inside_autocast() -> None:
    """A teacher's answer is moved where the network around it runs in bf16."""
    images = torch.rand(3, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    theta = affine(3, AugmentPlan(), torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = warp(images, theta)
    assert torch.equal(inside, warp(images, theta))
