"""Split lists and bounding boxes."""

from pathlib import Path

import pytest

from client.nih import read_boxes, read_list
from common.errors import DataError

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write(folder: Path, text: str) -> Path:
    path = folder / "file.csv"
    path.write_bytes(text.encode())
    return path


def test_a_list_with_mark_windows_lines_and_blanks(tmp_path: Path) -> None:
    assert read_list(write(tmp_path, "\ufeffb.png\r\n\r\n a.png \r\n")) == ["b.png", "a.png"]


def test_a_list_that_names_an_image_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: found 'a.png', which is in line 1 already"):
        read_list(write(tmp_path, "a.png\nb.png\na.png\n"))


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_list(tmp_path / "absent.txt")


def test_boxes_and_the_alias_of_the_box_list(tmp_path: Path) -> None:
    boxes = read_boxes(write(tmp_path, HEADER + "\na.png,Infiltrate,1.5,2,30,40.25,,,\n"))
    assert list(boxes.columns) == ["image", "finding", "x", "y", "w", "h"]
    assert boxes.iloc[0].tolist() == ["a.png", "Infiltration", 1.5, 2.0, 30.0, 40.25]


def test_a_box_list_with_a_header_alone(tmp_path: Path) -> None:
    boxes = read_boxes(write(tmp_path, HEADER + "\n"))
    assert list(boxes.columns) == ["image", "finding", "x", "y", "w", "h"]
    assert len(boxes) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,Cough,1,2,3,4,,,", r"row 2, column 'Finding Label': found 'Cough'; allowed: Atel"),
        ("a.png,Mass,1,2,x,4,,,", r"row 2: found 1, 2, nan, 4; allowed: x, y, w, h inside 1024"),
        ("a.png,Mass,1,2,0,4,,,", r"row 2: found 1, 2, 0, 4"),
        ("a.png,Mass,1000,2,50,4,,,", r"row 2: found 1000, 2, 50, 4"),
        ("a.png,Mass,1", r"found 3 columns; allowed: image, finding, x, y, w, h"),
        ('a.png,"Mass', "a readable UTF-8 text file"),
    ],
)
def test_a_bad_box_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(write(tmp_path, HEADER + "\n" + row + "\n"))


def test_the_official_lists_and_boxes(shared_dir: Path) -> None:
    folder = shared_dir / "nih_metadata"
    train_val, test = (read_list(folder / f"{n}_list.txt") for n in ("train_val", "test"))
    assert (len(train_val), len(test)) == (86_524, 25_596)
    assert not set(train_val) & set(test)
    boxes = read_boxes(folder / "BBox_List_2017.csv.gz")
    assert (len(boxes), boxes["image"].nunique()) == (984, 880)
    assert boxes["finding"].value_counts().to_dict() == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123,
        "Pneumonia": 120, "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip
    assert set(boxes["image"]) <= set(test)
