"""The archive on disk: layout, headers, split, determinism, reader, errors."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.nih.archive import open_archive
from client.data.tables.lists import read_boxes
from common.errors import InputError
from common.findings import FINDINGS
from simulations.phantom import archive, make_phantom

OFFICIAL = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
IMAGES = 60


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "archive"
    return make_phantom(out, images=IMAGES, size=64, hospitals=3, seed=11, workers=1)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_the_official_one(phantom: Path) -> None:
    assert {path.name for path in phantom.iterdir()} == {
        "images_001",
        "masks",
        "Data_Entry_2017_v2020.csv",
        "BBox_List_2017.csv",
        "train_val_list.txt",
        "test_list.txt",
        "hospitals.csv",
    }
    pictures = sorted((phantom / "images_001" / "images").glob("*.png"))
    masks = sorted((phantom / "masks").glob("*.png"))
    assert len(pictures) == IMAGES
    assert [path.name for path in pictures] == [path.name for path in masks]
    assert pictures[0].name == "00000001_000.png"
    for picture, mask in zip(pictures[:6], masks[:6], strict=True):
        with Image.open(picture) as image, Image.open(mask) as lungs:
            assert (image.mode, image.size) == ("L", (64, 64))
            assert (lungs.mode, lungs.size) == ("L", (64, 64))
            assert set(np.unique(np.asarray(lungs))) == {0, 255}


def test_table_has_the_official_header_and_values(phantom: Path) -> None:
    text = (phantom / "Data_Entry_2017_v2020.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == OFFICIAL
    rows = rows_of(phantom / "Data_Entry_2017_v2020.csv")[1:]
    assert len(rows) == IMAGES
    for row in rows:
        assert len(row) == 11
        name, labels, follow_up, patient, age, sex, view = row[:7]
        assert name == f"{int(patient):08d}_{int(follow_up):03d}.png"
        assert set(labels.split("|")) <= {*FINDINGS, "No Finding", ""}
        assert 1 <= int(age) <= 95
        assert sex in ("M", "F")
        assert view in ("PA", "AP")


def test_split_is_by_patient_and_complete(phantom: Path) -> None:
    train = (phantom / "train_val_list.txt").read_text().split()
    test = (phantom / "test_list.txt").read_text().split()
    assert len(train) + len(test) == len(set(train + test)) == IMAGES
    assert test
    assert not {name[:8] for name in train} & {name[:8] for name in test}


def test_boxes_have_the_official_header_and_are_read(phantom: Path) -> None:
    text = (phantom / "BBox_List_2017.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    boxes = read_boxes(phantom / "BBox_List_2017.csv")
    assert len(boxes) == len(text.splitlines()) - 1 > 10
    labels = {row[0]: row[1].split("|") for row in rows_of(phantom / archive.TABLE)[1:]}
    for box in boxes.itertuples():
        assert box.finding in labels[str(box.image)]
        assert 0 <= box.x < box.x + box.w <= 1024
        assert 0 <= box.y < box.y + box.h <= 1024


def test_hospitals_name_every_patient_once(phantom: Path) -> None:
    rows = rows_of(phantom / "hospitals.csv")
    assert rows[0] == ["Patient ID", "Hospital"]
    patients = {row[3] for row in rows_of(phantom / archive.TABLE)[1:]}
    assert sorted(row[0] for row in rows[1:]) == sorted(patients)
    assert {row[1] for row in rows[1:]} == {"hospital-1", "hospital-2", "hospital-3"}


def test_the_reader_opens_it(phantom: Path) -> None:
    opened = open_archive(phantom, masks=phantom / "masks")
    assert len(opened.table) == IMAGES
    assert len(opened.skipped) == 0
    assert set(opened.table["split"]) == {"train_val", "test"}
    assert (opened.table["mask"] != "").all()
    assert 0 < (~opened.table["labelled"]).mean() < 0.3


def test_bytes_are_the_same_for_any_number_of_workers(phantom: Path, tmp_path: Path) -> None:
    again = make_phantom(
        tmp_path / "new" / "again", images=IMAGES, size=64, hospitals=3, seed=11, workers=2
    )
    assert digest(again) == digest(phantom)


def test_another_seed_gives_other_pictures(phantom: Path, tmp_path: Path) -> None:
    other = make_phantom(tmp_path / "other", images=3, size=64, seed=12, workers=1)
    name = "images_001/images/00000001_000.png"
    assert digest(other)[name] != digest(phantom)[name]


def test_progress_counts_up_to_the_number_of_images(tmp_path: Path) -> None:
    seen: list[int] = []
    make_phantom(tmp_path / "x", images=11, size=32, workers=1, progress=seen.append)
    assert seen == [8, 11]


def test_an_empty_folder_may_be_the_target(tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    make_phantom(target, images=1, size=32, hospitals=1, workers=1)
    assert (target / "test_list.txt").read_text() == ""
    assert len((target / "train_val_list.txt").read_text().split()) == 1


def test_folders_fill_up_as_in_the_release() -> None:
    study = archive.sample_cohort(1, 1, seed=0)[0]

    def folder(number: int) -> str:
        return Path(archive._task(Path("a"), number, study, 32).picture).parent.parent.name

    assert [folder(n) for n in (0, 4998, 4999, 14998, 14999)] == [
        "images_001",
        "images_001",
        "images_002",
        "images_002",
        "images_003",
    ]


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("images", 0, "1 or more"),
        ("size", 31, "32 to 1024 pixels"),
        ("size", 1025, "32 to 1024 pixels"),
        ("hospitals", 0, "1 or more"),
        ("seed", -1, "0 or more"),
        ("unlabelled", 1.5, "a share from 0 to 1"),
        ("unlabelled", float("nan"), "a share from 0 to 1"),
        ("workers", 0, "1 or more, or none for all cores"),
    ],
)
def test_an_argument_out_of_range_is_refused(
    tmp_path: Path, argument: str, value: float, allowed: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_phantom(tmp_path / "x", **{argument: value})
    assert str(caught.value) == (
        f"phantom: {argument}: found {value}; allowed: {allowed}. "
        f"Give another value for {argument}."
    )
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        make_phantom(tmp_path, images=0, size=4)
    assert len(caught.value.problems) == 3


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="found a folder that is not empty; allowed: a new or"):
        make_phantom(tmp_path, images=1, size=32, workers=1)
    with pytest.raises(InputError, match="found a file; allowed: a new or empty folder"):
        make_phantom(tmp_path / "note.txt", images=1, size=32, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="found cannot write: File exists; allowed: a folder"):
        make_phantom(tmp_path / "note.txt" / "x", images=1, size=32, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_when_the_work_is_stopped(tmp_path: Path, workers: int) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "x", images=17, size=32, workers=workers, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found a folder that cannot be read: File name too long"):
        make_phantom(tmp_path / ("x" * 300), images=1, size=32, workers=1)
