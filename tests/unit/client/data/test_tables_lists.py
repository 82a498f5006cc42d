"""Split lists and bounding boxes."""

from pathlib import Path

import pytest

from client.data.tables import read_boxes, read_list
from client.data.tables.lists import parse_boxes
from common.errors import DataError

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write(folder: Path, text: str) -> Path:
    path = folder / "file.csv"
    path.write_bytes(text.encode())
    return path


def test_a_list_with_mark_windows_lines_and_blanks(tmp_path: Path) -> None:
    assert read_list(write(tmp_path, "\ufeffb.png\r\n\r\n a.png \r\n")) == ["b.png", "a.png"]


@pytest.mark.parametrize(
    "text",
    [
        '"b.png"\n"a,1.png"\n',
        "'b.png'\r'a,1.png'\r",
        "images_001/images/b.png\nimages/a,1.png\n",
        '"C:\\images\\b.png"\n.\\a,1.png',
    ],
)
def test_a_list_of_quoted_names_or_of_paths(tmp_path: Path, text: str) -> None:
    assert read_list(write(tmp_path, text)) == ["b.png", "a,1.png"]


def test_a_list_of_powershell_and_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("b.png\r\na.png\r\n".encode("utf-16"))
    assert read_list(path) == ["b.png", "a.png"]
    path.write_bytes(b"")
    assert read_list(path) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "a.png,train\nb.png,train\n",
            "line 1: found 2 lines of several cells, such as 'a.png,train'",
        ),
        (
            "Image,Fold\n\na.png,1\nb.png,2\n",
            "line 3: found 2 lines of several cells, such as 'a.png",
        ),
        ('"a.png";"x"\n"b.png";"x"\n', "line 1: found 2 lines of several cells"),
        ("0\ta.png\n1\tb.png\n", "line 1: found 2 lines of several cells"),
        ("Image Index\na.png\nb.png\n", "line 1: found 'Image Index', a header"),
        ("a.png\nb.png\na.PNG\n", "line 3: found 'a.PNG', which is in line 1 already"),
        ("x/a.png\n\ny/a.png\n", "line 3: found 'a.png', which is in line 1 already"),
        ("<html>", "found an HTML or XML page"),
    ],
)
def test_a_list_of_something_else(tmp_path: Path, text: str, found: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_list(path)
    (problem,) = caught.value.problems
    assert found in str(problem)
    assert str(problem).startswith(str(path))


def test_names_without_an_ending_are_no_header(tmp_path: Path) -> None:
    assert read_list(write(tmp_path, "a\nb\n")) == ["a", "b"]
    assert read_list(write(tmp_path, "a\n")) == ["a"]


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
        ("a.png,Cough,1,2,3,4,,,", r"row 3, column 'Finding Label': found 'Cough'; allowed: Atel"),
        ("a.png,Mass,1,2,x,4,,,", r"row 3: found 1, 2, x, 4; allowed: x, y, w, h inside 1024"),
        ("a.png,Mass,1,2,,4,,,", r"row 3: found 1, 2, blank, 4; allowed: x, y, w, h inside 1024"),
        ("a.png,Mass,1,2,0,4,,,", r"row 3: found 1, 2, 0, 4"),
        ("a.png,Mass,1000,2,50,4,,,", r"row 3: found 1000, 2, 50, 4"),
        (",Mass,1,2,3,4,,,", r"row 3, column 'Image Index': found ''; allowed: a file name"),
        ("images/a.png,Mass,1,2,3,4,,,", r"row 3, column 'Image Index': found 'images/a.png'"),
        ("a.png,Mass,1", r"row 3: found 3 columns; allowed: 6"),
        ("a.png,Mass,1,2,3,4,,,x", r"row 3: found 9 columns; allowed: 6"),
        ('"a.png,Mass,1,2,3,4,,,', r"row 3: found a quote that opens here and never closes"),
    ],
)
def test_a_bad_box_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(write(tmp_path, HEADER + "\n\n" + row + "\n"))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Image Index,Finding Label,x,y,w,h", "a.png,Mass,1,2,3,4"),
        ('Image Index,Finding Label,"Bbox [x,y,w,h]",,,', "a.png,Mass,1,2,3,4,,,"),
        (HEADER, "a.png,Mass,1,2,3,4,,,,,,"),
        ("," + HEADER, "0,a.png,Mass,1,2,3,4,,,"),
        (HEADER.rstrip(",") + ",Unnamed: 6,Unnamed: 7", "a.png,Mass,1,2,3,4,,"),
    ],
)
def test_box_lists_as_programs_write_them(tmp_path: Path, header: str, row: str) -> None:
    boxes, remarks = parse_boxes(write(tmp_path, f"{header}\n{row}\n"))
    assert boxes.iloc[0].tolist() == ["a.png", "Mass", 1.0, 2.0, 3.0, 4.0]
    assert len(remarks) == ("Unnamed" in header or header[0] == ",")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("a.png,Mass,1,2,3,4,,,\n", "row 1: found no header, but 'a.png,Mass"),
        (HEADER.replace(",", ";") + "\na.png;Mass;1\n", "row 1: found cells separated by ';'"),
        ("Finding Label,Image Index,x,y,w,h\n", "header: found the 6 columns Finding Label, Image"),
        ("Image Index,Finding Label,x,y,w\n", "header: found the 5 columns Image Index"),
        ("Image Index,Finding Label,x,y,w,h,reader\na.png,Mass,1,2,3,4,me\n",
         "header: found the 7 columns Image Index, Finding Label, x, y, w, h, reader"),
    ],
)  # fmt: skip
def test_a_box_list_of_another_kind(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_boxes(write(tmp_path, text))
    (problem,) = caught.value.problems
    assert message in str(problem)


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
