"""The same radiographs through another X-ray unit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data.cache import open_cache
from simulations.phantom import make_phantom
from simulations.study import equipment
from simulations.study.equipment import OTHER, equipment_cache, through_unit
from tests.unit.client.sites import small_cache


def test_a_shift_that_leaves_labels_masks_and_the_original_alone(tmp_path: Path) -> None:
    cache = small_cache(make_phantom(tmp_path / "archive", 24, 32, 2, 3), tmp_path / "cache")
    images = list(cache.index["image"][::2])
    before = np.array(cache.images)
    other = open_cache(equipment_cache(cache, images, tmp_path / "other", seed=1))
    again = open_cache(equipment_cache(cache, images, tmp_path / "again", seed=1))
    assert list(other.index["image"]) == images
    other.verify()
    np.testing.assert_array_equal(other.images, again.images)
    assert other.identity == again.identity
    np.testing.assert_array_equal(cache.images, before)
    facts = ["image", "patient", "view", "labelled", "Effusion", "Hernia"]
    same = cache.index[cache.index["image"].isin(images)].reset_index(drop=True)
    np.testing.assert_array_equal(other.index[facts], same[facts])
    for name in images[:5]:
        old = cache.index.set_index("image").loc[name]
        new = other.index.set_index("image").loc[name]
        assert (old["mask_row"] >= 0) == (new["mask_row"] >= 0)
        if old["mask_row"] >= 0:
            np.testing.assert_array_equal(
                cache.masks[old["mask_row"]], other.masks[new["mask_row"]]
            )
        assert np.abs(cache.images[old["row"]].astype(int) - other.images[new["row"]]).mean() > 10
    assert not (tmp_path / "other" / "pictures").exists()
    stamp = (other.folder / "manifest.json").stat().st_mtime_ns
    assert equipment_cache(cache, images, tmp_path / "other", seed=1) == other.folder
    assert (other.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_another_profile_draws_anew_and_the_first_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = small_cache(make_phantom(tmp_path / "archive", 8, 32, 2, 3), tmp_path / "cache")
    images = list(cache.index["image"])
    first = open_cache(equipment_cache(cache, images, tmp_path / "other", seed=1))
    with monkeypatch.context() as changed:
        changed.setattr(equipment, "OTHER", replace(OTHER, gamma=1.4))
        second = open_cache(equipment_cache(cache, images, tmp_path / "other", seed=1))
    assert second.identity != first.identity
    assert (np.asarray(second.images) != np.asarray(first.images)).any()
    assert equipment_cache(cache, images, tmp_path / "other", seed=1) == first.folder
    # What a cell's key is made of does not hang on the name of the folder.
    first.folder.rename(tmp_path / "cache-of-old")
    again = open_cache(equipment_cache(cache, images, tmp_path / "other", seed=1))
    assert again.identity == first.identity == open_cache(tmp_path / "cache-of-old").identity


def test_dark_stays_darker_than_light_and_the_border_is_cut() -> None:
    ramp = np.tile(np.linspace(20, 235, 128).astype(np.uint8), (128, 1))
    seen = through_unit(ramp, OTHER, np.random.default_rng(0))
    assert seen.dtype == np.uint8
    assert seen.shape == ramp.shape
    middle = seen[20:-20].mean(axis=0)
    thirds = [part.mean() for part in np.array_split(middle[10:-10], 3)]
    assert thirds == sorted(thirds)
    assert thirds[-1] - thirds[0] < 215 * 0.6  # less contrast than the original
    assert (seen[0] == 5).all()
