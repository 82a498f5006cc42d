"""Weak and strong views: on one image, in range, repeatable, never mirrored unasked."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from client.data.augment import warp
from client.learning.views import blur, cut_out, make_views
from common.sections import SemiSupervisionPlan, StrongView, WeakView

STILL = {"rotate_degrees": 0.0, "translate": 0.0, "scale": 0.0}
PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "noise": 0.0}
SHARP = {"blur": 0.0, "cutout": 0.0}


def images(count: int = 6, side: int = 32) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_defaults_keep_shape_range_and_laterality() -> None:
    plan = SemiSupervisionPlan()
    views = make_views(images(), plan, seeded())
    for view in (views.weak, views.strong):
        assert view.shape == (6, 1, 32, 32)
        assert float(view.min()) >= 0.0
        assert float(view.max()) <= 1.0
    assert not plan.weak.flip
    assert not plan.strong.flip
    # A positive determinant: turned and zoomed, not mirrored.
    assert (torch.linalg.det(views.theta[:, :, :2]) > 0).all()
    again = make_views(images(), plan, seeded())
    assert torch.equal(views.strong, again.strong)
    assert not torch.equal(views.strong, make_views(images(), plan, seeded(1)).strong)


def test_the_strong_view_is_the_weak_one_moved() -> None:
    """Without changes of tone, moving the weak view by theta gives the strong view."""
    plan = SemiSupervisionPlan(weak=WeakView(**PLAIN), strong=StrongView(**PLAIN, **SHARP))
    views = make_views(images(), plan, seeded())
    assert torch.equal(views.weak, images())
    assert torch.allclose(warp(views.weak, views.theta), views.strong, atol=1e-6)
    assert not torch.equal(views.strong, views.weak)


def test_a_weak_view_that_moves_moves_the_strong_one_with_it() -> None:
    weak = WeakView(**PLAIN, rotate_degrees=20.0)
    plan = SemiSupervisionPlan(weak=weak, strong=StrongView(**PLAIN, **SHARP, **STILL))
    views = make_views(images(), plan, seeded())
    assert not torch.allclose(views.weak, images(), atol=0.05)
    assert torch.allclose(views.strong, views.weak, atol=1e-5)


def test_blur_is_a_gaussian_of_each_images_own_width() -> None:
    pictures = images(3, 64)
    ours = blur(pictures, torch.tensor([0.0, 1.0, 2.0]) / 64, 2.0 / 64)
    assert torch.allclose(ours[0], pictures[0], atol=1e-6)
    for row, sigma in ((1, 1.0), (2, 2.0)):
        theirs = gaussian_blur(pictures[row : row + 1], [13, 13], [sigma, sigma])
        assert torch.allclose(ours[row : row + 1], theirs, atol=2e-3)


def test_no_image_changes_the_blur_of_another() -> None:
    pictures = images(3, 64)
    sharp = blur(pictures, torch.tensor([1.0, 0.0, 0.0]) / 64, 2.0 / 64)
    assert torch.equal(sharp[0], blur(pictures, torch.tensor([1.0, 2.0, 2.0]) / 64, 2.0 / 64)[0])


def test_cutout_blanks_one_square_with_the_images_mean() -> None:
    pictures = images(40)
    cut = cut_out(pictures, 0.5, seeded())
    changed = cut != pictures
    assert int(changed.flatten(1).any(dim=1).sum()) > 0
    for row in range(40):
        where = changed[row, 0].nonzero()
        if len(where):
            high, wide = (where.amax(dim=0) - where.amin(dim=0) + 1).tolist()
            assert max(high, wide) <= 17
            filled = cut[row][changed[row]]
            assert torch.allclose(filled, pictures[row].mean().expand_as(filled))


@pytest.mark.parametrize("side", [32, 33])
def test_views_do_not_mix_images(side: int) -> None:
    """A row's views do not change when another row's image does."""
    one, other = images(2, side), images(2, side)
    other[1] = 0.5
    first = make_views(one, SemiSupervisionPlan(), seeded())
    second = make_views(other, SemiSupervisionPlan(), seeded())
    assert torch.allclose(first.strong[0], second.strong[0], atol=1e-6)
    assert torch.equal(first.weak[0], second.weak[0])
