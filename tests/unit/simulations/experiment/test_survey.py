"""What the tables tell before anything is decoded: hospitals, masks, names, remarks."""

from pathlib import Path

import pandas as pd
import pytest

from common.errors import DataError, InputError, PartitionError
from common.plan import Plan
from simulations.experiment.folder import Request
from simulations.experiment.survey import Survey, remarks, survey
from simulations.phantom import make_phantom
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_plan
from tests.unit.simulations.experiment.test_prepare import mask_set

SIMULATION = {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}, "mask_test": 3}


def plan_of(**simulation: object) -> Plan:
    return small_plan(simulation=SIMULATION | simulation)


def rows_of(found: Survey) -> dict[str, pd.DataFrame]:
    return {each.name: each.rows.set_index("image").sort_index() for each in found.cut.hospitals}


@pytest.mark.parametrize("scheme", ["iid", "hospitals"])
def test_a_phantom_is_surveyed_as_if_it_were_there(tmp_path: Path, scheme: str) -> None:
    plan = plan_of(phantom_images=60, partition={"scheme": scheme})
    make_phantom(tmp_path / "a", images=60, size=32, hospitals=2, seed=plan.seed, workers=1)
    drawn = survey(plan, Request(tmp_path / "a", None))
    ahead = survey(plan, Request(None, None))
    first, second = rows_of(drawn), rows_of(ahead)
    assert list(first) == list(second)
    for name, rows in first.items():
        columns = ["patient", "split", "labelled", "outlined", "Mass"]
        pd.testing.assert_frame_equal(rows[columns], second[name][columns])
    assert set(drawn.cut.lungs_test) == set(ahead.cut.lungs_test)
    assert drawn.remarks == ahead.remarks
    assert len(first) == 2


def test_where_the_masks_of_a_second_archive_are(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    """13 masks: 3 to test, of the other 10 a fifth to validate."""
    request = Request(nih_archive(patients=12), mask_set(tmp_path / "lungs", 13))
    found = survey(plan_of(), request).cut
    assert found.masks() == {"train": 8, "val": 2, "test": 3, "left_out": 0}
    last = found.hospitals[-1]
    assert (last.name, last.settings.annotates, len(last.labels)) == ("masks", (), 0)
    assert last.settings.outlines_lungs


def test_where_the_archives_own_masks_are(nih_archive: ArchiveFactory) -> None:
    """12 patients with 2 images each, all with masks: the last third of them is the test."""
    found = survey(plan_of(), Request(nih_archive(patients=12, masks=True), None)).cut
    masks = found.masks()
    assert masks["test"] == 8
    assert masks["train"] + masks["val"] == 16
    assert masks["val"] == sum((each.rows["split"] == "val").sum() for each in found.hospitals)


def test_a_hospital_declares_about_what_it_has(nih_archive: ArchiveFactory) -> None:
    found = survey(plan_of(), Request(nih_archive(patients=12), None)).cut
    for each in found.hospitals:
        patients = set(each.rows.loc[each.rows["split"] == "train", "patient"])
        assert each.settings.nominal_units == len(patients) < 10  # two digits are exact here
        assert not each.settings.outlines_lungs
        assert set(each.training["split"]) == {"train"}


@pytest.mark.parametrize("name", ["masks", "Pooled", "MASKS", "global_test", "Lungs_Test"])
def test_names_of_ours_are_no_hospitals(nih_archive: ArchiveFactory, name: str) -> None:
    archive = nih_archive(patients=12)
    lines = [f"{number},{name if number % 2 else 'north'}" for number in range(1, 13)]
    (archive / "hospitals.csv").write_text("\n".join(["Patient ID,Hospital", *lines]) + "\n")
    plan = plan_of(partition={"scheme": "hospitals"})
    said = rf"hospitals\.csv: .*a hospital named '{name}'.* a name other than global_test, lungs_"
    with pytest.raises(PartitionError, match=said):
        survey(plan, Request(archive, None))


def test_hospitals_behind_a_broken_link_are_missed(nih_archive: ArchiveFactory) -> None:
    """Somebody put the file there; dealing patients out as if there were none helps nobody."""
    archive = nih_archive(patients=12)
    (archive / "hospitals.csv").symlink_to(archive / "moved" / "hospitals.csv")
    with pytest.raises(PartitionError, match=r"hospitals\.csv: found No such file"):
        survey(plan_of(), Request(archive, None))


def test_masks_that_fit_no_phantom_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--masks: found .*no such folder, without --data"):
        survey(plan_of(), Request(None, tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"--masks: found .*a folder without images/"):
        survey(plan_of(), Request(None, tmp_path))
    masks = mask_set(tmp_path / "lungs", 8)
    assert survey(plan_of(), Request(None, masks)).cut.hospitals[-1].name == "masks"
    for part in ("images", "masks"):
        (masks / part / "m0.png").rename(masks / part / "00000001_000.png")
    with pytest.raises(DataError, match="found 1 names that the archive has too"):
        survey(plan_of(), Request(None, masks))


def test_hospitals_beside_the_table_or_in_the_folder_that_was_named(
    nih_archive: ArchiveFactory,
) -> None:
    archive = nih_archive(patients=12)
    lines = [f"{number},{'ns'[number % 2]}" for number in range(1, 13)]
    (archive / "hospitals.csv").write_text("\n".join(["Patient ID,Hospital", *lines]) + "\n")
    plan = plan_of(partition={"scheme": "hospitals"})
    found = survey(plan, Request(archive, None))
    assert [each.name for each in found.cut.hospitals] == ["n", "s"]


def test_remarks_come_from_both_archives_once_and_print_on_a_line(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    """An image without a row in the archive, and one in that of the masks without a mask."""
    archive, masks = nih_archive(patients=12), mask_set(tmp_path / "lungs", 13)
    odd = "odd\x1b[31m\n.png"
    picture = next(archive.rglob("00000001_000.png"))
    (picture.parent / odd).write_bytes((masks / "images" / "m0.png").read_bytes())
    plan, request = plan_of(), Request(archive, masks, skip_bad=True)
    next(archive.rglob("00000002_001.png")).unlink()
    found = survey(plan, request)
    [unlabelled] = [each for each in found.remarks if r"odd\x1b[31m\n.png" in each]
    assert unlabelled.isprintable()
    [gone] = [each for each in found.remarks if "--skip-bad" in each and "file" in each]
    assert "00000002_001.png" in gone
    assert len(set(found.remarks)) == len(found.remarks)
    sources, done = found.sources, found.cut
    again = remarks(plan, sources, done, sources.skipped, (found.remarks[0], "of \x1b pixels"))
    assert sorted(again) == sorted([*found.remarks, r"of \x1b pixels"])


def test_all_of_it_is_json(nih_archive: ArchiveFactory) -> None:
    value = survey(plan_of(), Request(nih_archive(patients=12), None)).overview()
    assert list(value["sites"]) == ["site-1", "site-2"]
    assert value["masks"] == {"train": 0, "val": 0, "test": 0, "left_out": 0}
    assert value["remarks"][-1] == (
        "no training image has a lung mask: nothing teaches the lungs head"
    )
