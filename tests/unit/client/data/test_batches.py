"""From cache to batches: the right pixels, labels, units, and every unit once a pass."""

from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from client.data.batches import Stream, group_units, load_site_data, select, training_batches
from client.settings import open_site_folder
from common.errors import DataError
from common.findings import FINDINGS
from common.sections import AugmentPlan, TasksPlan
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_cache, write_folder

CPU = torch.device("cpu")


def test_a_batch_holds_what_the_cache_holds(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(masks=True), tmp_path / "cache")
    data = load_site_data(open_site_folder(write_folder(tmp_path / "ward", cache)), cache, CPU)
    rows = np.array([3, 0, 5])
    batch = data.batch(rows)
    assert batch.images.shape == (3, 1, 32, 32)
    assert batch.units == 3
    for position, row in enumerate(rows):
        image = data.table["image"][row]
        entry = cache.index.set_index("image").loc[image]
        pixels = torch.from_numpy(cache.images[entry["row"]].copy()).float() / 255
        assert torch.equal(batch.images[position, 0], pixels)
        known = entry[list(FINDINGS)].to_numpy(int)
        assert (batch.known[position].numpy() == (known >= 0)).all()
        assert (batch.targets[position].numpy() == (known == 1)).all()
        assert torch.equal(
            batch.masks[position, 0],
            torch.from_numpy(cache.masks[entry["mask_row"]].copy()).float(),
        )
    assert batch.lung_rows.tolist() == [0, 1, 2]


def test_a_site_uses_only_what_it_annotates(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(), tmp_path / "cache")
    folder = open_site_folder(write_folder(tmp_path / "ward", cache, ("Mass", "Edema")))
    data = load_site_data(folder, cache, CPU)
    annotated = [FINDINGS.index("Mass"), FINDINGS.index("Edema")]
    assert not np.delete(data.known, annotated, axis=1).any()
    labelled = data.table["image"].map(cache.index.set_index("image")["labelled"]).to_numpy(bool)
    assert (data.known[:, annotated] == labelled[:, None]).all()
    assert set(data.supervised("train", TasksPlan())) == set(np.flatnonzero(labelled)) & set(
        data.rows("train")
    )


def test_labels_held_back_row_by_row_and_finding_by_finding(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    cache = small_cache(nih_archive(), tmp_path / "cache")
    images = cache.index.loc[cache.index["labelled"], "image"].to_numpy()
    rows = pd.DataFrame({"image": images, "split": "train", "labelled": True})
    rows.loc[0, "labelled"] = False
    data = select(cache, rows.assign(Mass=False), FINDINGS, CPU, "test")
    assert not data.known[0].any()
    assert data.known[1:, FINDINGS.index("Edema")].all()
    assert not data.known[:, FINDINGS.index("Mass")].any()


def test_a_row_that_is_not_cached_is_named(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(), tmp_path / "cache")
    rows = pd.DataFrame({"image": ["other.png"], "split": ["train"], "labelled": [True]})
    with pytest.raises(DataError, match=r"ward: image 'other\.png': found 1 rows"):
        select(cache, rows, FINDINGS, CPU, "ward")


def test_units_are_images_or_patients(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(patients=5, images=3), tmp_path / "cache")
    data = load_site_data(open_site_folder(write_folder(tmp_path / "w", cache)), cache, CPU)
    rows = data.rows("train")
    assert [unit.tolist() for unit in group_units(data, rows, "image")] == [[r] for r in rows]
    patients = group_units(data, rows, "patient")
    assert sorted(np.concatenate(patients)) == sorted(rows)
    names = data.table["patient"].to_numpy()
    assert all(len(set(names[unit])) == 1 for unit in patients)
    assert len(patients) == len(set(names[rows]))
    assert group_units(data, rows[:0], "patient") == []


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_one_pass_sees_every_unit_once(
    tmp_path: Path, nih_archive: ArchiveFactory, unit: str
) -> None:
    cache = small_cache(nih_archive(patients=7, images=2), tmp_path / "cache")
    data = load_site_data(open_site_folder(write_folder(tmp_path / "w", cache)), cache, CPU)
    units = group_units(data, data.rows("train"), unit)
    steps = -(-len(units) // 4)
    still = AugmentPlan(
        rotate_degrees=0, translate=0, scale=0, brightness=0, contrast=0, gamma=0, noise=0
    )

    def seen(seed: int) -> list[float]:
        batches = list(islice(training_batches(data, [Stream(units, 4)], still, seed), steps))
        assert sum(batch.units for batch in batches) == len(units)
        return [float(image.sum()) for batch in batches for image in batch.images]

    first = seen(1)
    expected = [float(image.sum()) for image in data.batch(data.rows("train")).images]
    assert sorted(first) == pytest.approx(sorted(expected), rel=1e-4)
    assert seen(1) == first
    assert seen(2) != first
