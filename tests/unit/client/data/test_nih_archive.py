"""Archives as people have them on disk, and what can be wrong with them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.nih import open_archive
from client.data.pixels import read_image
from common.errors import DataError
from common.findings import FINDINGS

Factory = Callable[..., Path]
TABLE, TEST, TRAIN = "Data_Entry_2017_v2020.csv", "test_list.txt", "train_val_list.txt"


def error(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_archive(root, **options)  # type: ignore[arg-type]
    return str(caught.value)


def picture(path: Path, side: int = 32) -> None:
    """An image that no other name has: equal files would be copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.name.encode())).integers(0, 256, (side, side))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize("layout", ["official", "short", "images", "flat"])
def test_every_layout_gives_the_same_table(nih_archive: Factory, layout: str) -> None:
    root = nih_archive(layout=layout, masks=True)
    archive = open_archive(root)
    table = archive.table
    assert len(table) == 12
    assert table["patient"].tolist() == [str(n) for n in range(1, 7) for _ in range(2)]
    assert table["split"].value_counts().to_dict() == {"train_val": 8, "test": 4}
    assert set(table.loc[table["split"] == "test", "patient"]) == {"5", "6"}
    assert (~table["labelled"]).sum() == 2
    assert table["mask"].ne("").all()
    for path, name, mask in zip(table["path"], table["image"], table["mask"], strict=True):
        assert Path(path).name == Path(mask).name == name
        assert Path(path).is_absolute()
        assert read_image(Path(path), 32).shape == (32, 32)
    assert len(archive.skipped) == 0
    assert archive.remarks == ()
    assert archive.boxes.columns.tolist() == ["image", "finding", "x", "y", "w", "h"]


def test_an_image_without_a_row_is_unlabelled(nih_archive: Factory) -> None:
    root = nih_archive()
    picture(root / "images_001/images/00000005_099.png")  # of patient 5, who is in the test list
    picture(root / "images_002/images/ward-film.png")
    archive = open_archive(root)
    extra = archive.table[-2:]
    assert extra["patient"].tolist() == ["5", "ward-film"]
    assert extra["split"].tolist() == ["test", ""]
    assert not extra["labelled"].any()
    assert (extra[list(FINDINGS)] == -1).all(axis=None)
    assert archive.table["follow_up"].dtype == np.int64
    assert archive.table["Mass"].dtype == np.int8
    (remark,) = archive.remarks
    assert "2 images without a row kept as unlabelled: 00000005_099.png, ward-film.png" in remark


def test_a_row_without_an_image(nih_archive: Factory) -> None:
    root = nih_archive()
    shutil.rmtree(root / "images_002")
    text = error(root)
    assert "found 6 rows without an image file: 00000001_001.png, 00000002_001.png" in text
    assert "or leave them out with --skip-bad" in text
    archive = open_archive(root, skip_bad=True)
    assert len(archive.table) == len(archive.skipped) == 6
    assert archive.table.index.tolist() == list(range(6))
    assert set(archive.skipped["reason"]) == {"no image file"}
    assert archive.skipped["image"][0] == "00000001_001.png"


def test_the_same_image_twice(nih_archive: Factory) -> None:
    root = nih_archive()
    shutil.copy(root / "images_001/images/00000001_000.png", root / "images_002/images")
    assert "found the image a second time; first in" in error(root)
    assert "every image once" in error(root, skip_bad=True)


def test_a_list_that_names_an_unknown_image(nih_archive: Factory) -> None:
    root = nih_archive()
    with (root / TEST).open("a") as stream:
        stream.write("00009999_000.png\n")
    assert f"{TEST}: found 1 images with neither row nor file: 00009999_000" in error(root)
    archive = open_archive(root, skip_bad=True)
    assert archive.skipped["image"].tolist() == ["00009999_000"]
    assert archive.skipped["reason"].tolist() == [f"in {TEST}, with neither row nor file"]
    assert len(archive.table) == 12


@pytest.mark.parametrize("image", ["00000005_000.png", "00000001_000.png"])
def test_a_patient_in_two_splits(nih_archive: Factory, image: str) -> None:
    root = nih_archive()
    lists = {name: (root / name).read_text() for name in (TRAIN, TEST)}
    if image.startswith("00000005"):  # one image moved: the patient's other image stays
        (root / TEST).write_text(lists[TEST].replace(f"{image}\n", ""))
        (root / TRAIN).write_text(lists[TRAIN] + f"{image}\n")
    else:  # one image in both lists
        (root / TEST).write_text(lists[TEST] + f"{image}\n")
    for skip_bad in (False, True):
        text = error(root, skip_bad=skip_bad)
        assert f"patient '{image[7]}': found images in both split lists" in text


def test_lists_with_mark_and_windows_lines(nih_archive: Factory) -> None:
    root = nih_archive()
    expected = open_archive(root).table
    for name in (TABLE, TRAIN, TEST):
        text = (root / name).read_text().replace("\n", "\r\n")
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_archive(root).table.equals(expected)


def test_without_lists_there_is_no_split(nih_archive: Factory) -> None:
    assert set(open_archive(nih_archive(lists=False)).table["split"]) == {""}


def test_boxes_of_images_that_are_here(nih_archive: Factory) -> None:
    root = nih_archive()
    (root / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Infiltrate,10,20,30,40,,,\n"
        "00019999_000.png,Mass,10,20,30,40,,,\n"
    )
    archive = open_archive(root)
    boxes = archive.boxes
    told = "1 boxes on 1 images that are not in the archive: 00019999_000.png"
    assert [remark for remark in archive.remarks if "boxes" in remark] == [f"{root}: {told}"]
    assert boxes.iloc[0].tolist() == ["00000001_000.png", "Infiltration", 10, 20, 30, 40]
    assert len(boxes) == 1


def test_a_mask_without_an_image(nih_archive: Factory) -> None:
    root = nih_archive(masks=True)
    picture(root / "masks/stranger.png")
    assert "found 1 masks without an image: stranger.png" in error(root)
    archive = open_archive(root, skip_bad=True)
    assert archive.skipped.to_numpy().tolist() == [["stranger.png", "mask without an image"]]


def test_masks_from_another_folder(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive()
    picture(tmp_path / "elsewhere/00000002_001.png")
    table = open_archive(root, masks=tmp_path / "elsewhere").table
    assert table.loc[table["mask"].ne(""), "image"].tolist() == ["00000002_001.png"]


def test_a_folder_of_images_and_masks_alone(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        picture(tmp_path / "images" / f"{name}.png")
    for name in ("a", "b"):
        picture(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "._a.png").write_bytes(b"a resource fork")
    archive = open_archive(tmp_path)
    assert archive.table["image"].tolist() == ["a.png", "b.png", "c.png"]
    assert archive.table["patient"].tolist() == ["a", "b", "c"]
    assert archive.table["mask"].ne("").tolist() == [True, True, False]
    assert not archive.table["labelled"].any()
    assert archive.remarks == ()


def test_folders_that_are_no_archive(nih_archive: Factory, tmp_path: Path) -> None:
    assert "found no such folder; allowed: a folder." in error(tmp_path / "absent")
    assert "a folder of masks" in error(tmp_path, masks=tmp_path / "absent")
    assert "found no label table" in error(tmp_path)
    root = nih_archive(name="empty")
    for folder in ("images_001", "images_002"):
        shutil.rmtree(root / folder)
    assert "found 12 rows without an image file" in (text := error(root))
    assert "an image for every row, in this folder. Unpack them there, or leave them out" in text
    text = error(root, skip_bad=True)
    assert "found no image of the archive; allowed: files .png, .jpg" in text
    assert "in images_001/images/, images/ or here. Unpack the images here." in text
    (root / "images_001/images").mkdir(parents=True)
    assert "an image for every row, in images_001, images_001/images. " in error(root)


def test_an_error_of_the_table_is_passed_on(nih_archive: Factory) -> None:
    root = nih_archive()
    text = (root / TABLE).read_text()
    (root / TABLE).write_text(text.replace("Pneumonia", "Hiccup", 1))
    assert f"{TABLE}: row 4, column 'Finding Labels': found 'Hiccup'" in error(root)


def test_the_real_sample(shared_dir: Path) -> None:
    table = open_archive(shared_dir / "nih_sample").table
    assert (len(table), table["patient"].nunique()) == (667, 442)
    assert table["split"].value_counts().to_dict() == {"train_val": 515, "test": 152}
    assert table["view"].value_counts().to_dict() == {"AP": 386, "PA": 281}
    assert (table[["Pneumonia", "Infiltration", "Edema"]] == 1).sum().tolist() == [319, 120, 69]


def test_the_real_masks(shared_dir: Path) -> None:
    table = open_archive(shared_dir / "lung_masks").table
    assert len(table) == table["patient"].nunique() == table["mask"].ne("").sum() == 200
    assert not table["labelled"].any()
