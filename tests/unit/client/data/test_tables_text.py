"""What is no text, or no CSV file as it should be, is told in one sentence with its row."""

import gzip
import zipfile
from pathlib import Path

import pytest

from client.data.tables.csv_file import read_csv
from client.data.tables.text import read_text
from common.errors import DataError

NAMES = ("Name", "Value")


def write(folder: Path, data: bytes | str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_csv(path, NAMES)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    return f"{problem.at}: {problem.found}" if problem.at else problem.found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_text_in_any_marked_encoding(tmp_path: Path, encoding: str, packed: bool) -> None:
    data = "Köln\r\nü\n".encode(encoding)
    path = write(tmp_path, gzip.compress(data) if packed else data, "f.gz" if packed else "f")
    assert read_text(path) == "Köln\r\nü\n"


def test_a_mark_that_stands_twice(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "\ufeff\ufeffName\na\n"), NAMES).header == ["Name"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"PK\x03\x04\x14\0\xff", "a zip or Excel file"),
        (b"\xd0\xcf\x11\xe0\xa1", "an Excel file of the older kind"),
        (gzip.compress(b"Name\n", mtime=0), "a gzip file"),  # the bytes name the test
        (b"%PDF-1.4", "a PDF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, not the file"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html>", "an HTML or XML page, perhaps of a login"),
        (b"<?xml version='1.0'?>", "an HTML or XML page, perhaps of a login"),
        (b'{"error": 1}', "a JSON file"),
        (b"", "an empty file"),
        (b"\xef\xbb\xbf\r\n \r\n", "an empty file"),
        (b",,\n,,\n", "an empty file"),
        (b"Name\nx\nMu\xe9ller\n", "row 3: the byte 0xe9, which is not UTF-8"),
        (b"Name\r\nx\r\n\xff\n", "row 3: the byte 0xff, which is not UTF-8"),
        (b"Name\rx\r\xff\r", "row 3: the byte 0xff, which is not UTF-8"),
        (b"\xff\xfeN\0a\0\n\0\0\xd8x\0", "row 2: the byte 0x00, which is not UTF-16"),
        ("Name\nx\n".encode("utf-16-le"), "row 1: a zero byte"),
        (b"Name\nx\ny\0\n", "row 3: a zero byte"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, data: bytes, found: str) -> None:
    assert error(write(tmp_path, data)) == found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert error(tmp_path / "absent") == "No such file or directory"
    assert error(tmp_path) == "Is a directory"
    with zipfile.ZipFile(tmp_path / "empty.csv", "w"):
        pass
    assert error(tmp_path / "empty.csv") == "an empty zip file"
    assert error(write(tmp_path, b"Name\n", "x.csv.gz")) == "a file that is not gzipped"
    whole = gzip.compress(b"Name\n" * 9)
    damaged = "a gzip file that is damaged or ends too early"
    assert error(write(tmp_path, whole[:-5], "x.csv.gz")) == damaged
    assert error(write(tmp_path, whole[:12] + b"xx" + whole[14:], "x.csv.gz")) == damaged


def test_rows_and_their_lines(tmp_path: Path) -> None:
    text = '\n Name ,Value,,\r\n\r\na,"1,5",,\r\n,,,\n"b\n",2\n c , ,,,\n'
    table = read_csv(write(tmp_path, text), NAMES)
    assert table.header == ["Name", "Value"]
    assert table.lines == [4, 6, 8]
    assert table.columns == [["a", "b\n", " c "], ["1,5", "2", " "]]
    assert table.remarks == []


def test_a_header_alone(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "Name,Value"), NAMES)
    assert (table.lines, table.columns) == ([], [[], []])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Name,Value\na,1\n"b,2\nc,3\n', "row 3: a quote that opens here and never closes"),
        ('Name,Value\na,1\n"b,2', "row 3: a quote that opens here and never closes"),
        ('Name,Value\na,1\nb,"2\n', "row 3: a quote that opens here and never closes"),
        ('Name,Value\na,1\nb,"\n', "row 3: a quote that opens here and never closes"),
        ('Name,"Value\na,1\nb,2\n', "row 1: a quote that opens here and never closes"),
        ('Name,Value\n"a,1\nb,"2"\nc,3\n', "row 2: a quote that opens here and closes in row 3"),
        ('Name,Value\na,"x\ny"\n\n\nb,1\n', "row 2: a quote that opens here and closes in row 3"),
        ('Name,Value\na,1\n"b,2\n' + "c,3\n" * 40_000,
         "row 3: a quote that opens here and never closes"),
        ("Name,Value\na," + "x" * 140_000, "row 2: a cell of more than 131,072 characters"),
    ],
)  # fmt: skip
def test_a_quote_left_open_is_named_where_it_opens(tmp_path: Path, text: str, found: str) -> None:
    assert error(write(tmp_path, text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Name;Value\na;1\n", "row 1: cells separated by ';'"),
        ('"name";"value"\na;1\n', "row 1: cells separated by ';'"),
        ("sep=;\nName;Value\na;1\n", "row 2: cells separated by ';'"),
        ("Name\tValue\na\t1\n", "row 1: cells separated by tabs"),
        ("Name|Value\na|1\n", "row 1: cells separated by '|'"),
        ("Table 1\n\nName,Value\na,1\n", "row 3: the names of the columns below 1 other rows"),
        ("a,1\nb,2\n", "row 1: no header, but 'a,1'"),
        ("Name,Value\nr1,a,1\nr2,b,2\n", "header: 2 names over rows of 3 cells"),
        ("Name,Value\na,1\nb\n", "row 3: 1 columns"),
        ("Name,Value\na,1\nb,2,x\n", "row 3: 3 columns"),
    ],
)
def test_a_file_that_is_not_as_its_header_says(tmp_path: Path, text: str, found: str) -> None:
    assert error(write(tmp_path, text)) == found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (",Name\n0,a\n1,b\n", "1 ('', an index)"),
        ("Unnamed: 0,Name\n1,a\n2,b\n", "1 ('Unnamed: 0', an index)"),
        ("index,Name\n7,a\n3,b\n", "1 ('index', an index)"),
        ("Name,Unnamed: 1,level_0\na,,\nb, ,\n", "2 ('Unnamed: 1', blank), 3 ('level_0', blank)"),
    ],
)
def test_a_column_without_a_name_is_passed_over(tmp_path: Path, text: str, what: str) -> None:
    path = write(tmp_path, text)
    table = read_csv(path, NAMES)
    assert (table.header, table.columns) == (["Name"], [["a", "b"]])
    count = what.count("(")
    assert table.remarks == [f"{path}: {count} columns without a name passed over: {what}"]


@pytest.mark.parametrize(
    "text", [",Name\nx,a\ny,b\n", ",Name\n0,a\n0,b\n", ",Name\n0,a\n,b\n", ",Name\n1.5,a\n2,b\n"]
)
def test_a_column_without_a_name_that_holds_something(tmp_path: Path, text: str) -> None:
    first = text.split("\n")[1].split(",")[0]
    assert error(write(tmp_path, text)) == f"header: no name for column 1, which holds {first!r}"


def test_a_quoted_header_cell_that_names_several_columns(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, 'Name,"Box [x,y]",,\na,1,2\nb,3,4\n'), NAMES)
    assert table.header == ["Name", "Box [x", "y]"]
