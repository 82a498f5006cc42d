"""The label table: every quirk of the release is read, every mistake gets its message."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from client.data.tables import find_table, read_table
from client.data.tables.table import parse_table
from common.errors import DataError
from common.findings import FINDINGS

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
GOOD = "00000001_000.png,Effusion|Mass,0,1,58,M,PA,2682,2749,0.143,0.143"


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(("\n".join([header, *rows]) + "\n").encode())
    return path


def row(**cells: str) -> str:
    """One good row, with some cells changed; keys are places: c0 image, c1 labels, ..."""
    values = GOOD.split(",")
    for key, value in cells.items():
        values[int(key[1:])] = value
    return ",".join(values)


def errors(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return [str(problem) for problem in caught.value.problems]


def test_the_columns_have_the_promised_types(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD, row(c0="00000001_001.png", c1="", c2="3")))
    assert list(table.columns[:7]) == [
        "image", "patient", "follow_up", "age", "sex", "view", "labelled"
    ]  # fmt: skip
    assert table.columns[7:].tolist() == list(FINDINGS)
    assert table["follow_up"].dtype == np.int64
    assert table["age"].dtype == np.float32
    assert table["labelled"].tolist() == [True, False]
    assert all(table[finding].dtype == np.int8 for finding in FINDINGS)
    present = [finding for finding in FINDINGS if table[finding][0] == 1]
    assert present == ["Effusion", "Mass"]
    assert (table.loc[1, list(FINDINGS)] == -1).all()
    assert table["patient"].tolist() == ["1", "1"]
    assert table["follow_up"].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58), ("058Y", 58), ("013M", 13 / 12), ("001D", 1 / 365.25), ("", None),
     ("414", None), ("121Y", None), ("120", 120), ("0", 0), ("7.5", 7.5)],
)  # fmt: skip
def test_an_age_in_any_spelling(tmp_path: Path, text: str, years: float | None) -> None:
    age = read_table(write(tmp_path, row(c4=text)))["age"][0]
    assert np.isnan(age) if years is None else age == pytest.approx(years)


def test_ages_above_120_are_counted(tmp_path: Path) -> None:
    rows = [row(c0=f"{n}.png", c4=age) for n, age in enumerate(["414", "412", "30", "414"])]
    path = write(tmp_path, *rows)
    assert parse_table(path)[1] == [f"{path}: 3 ages above 120 years read as unknown"]


def test_the_2017_edition_ends_its_lines_with_a_comma(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD + ",", header=HEADER + ","))
    assert len(table) == 1
    table = read_table(write(tmp_path, GOOD + ","))  # rows only
    assert len(table) == 1


def test_patient_sex_mark_windows_lines_and_gzip(tmp_path: Path) -> None:
    header = HEADER.replace("Gender", "Sex")
    text = "\r\n".join(["\ufeff" + header, GOOD, "", ""]).encode()
    plain, packed = tmp_path / "table.csv", tmp_path / "table.csv.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    assert read_table(plain).equals(read_table(packed))
    assert read_table(plain)["sex"].tolist() == ["M"]


def test_kaggle_names_and_quoted_cells(tmp_path: Path) -> None:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    header += "View Position,OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,"
    header += "OriginalImagePixelSpacing_y"
    quoted = ",".join(f'"{cell}"' for cell in row(c4="060Y").split(","))
    assert read_table(write(tmp_path, quoted, header=header))["age"].tolist() == [60]


def test_the_aliases_of_findings(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, row(c1="Infiltrate|Pleural Thickening")))
    assert table["Infiltration"][0] == table["Pleural_Thickening"][0] == 1


def test_a_follow_up_as_a_float(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, row(c2="3.0"), row(c0="b.png", c2="")))
    assert table["follow_up"].tolist() == [3, 0]


def test_leading_zeros_of_a_patient_number_do_not_matter(tmp_path: Path) -> None:
    rows = [row(c0="a.png", c3="0012"), row(c0="b.png", c3="12"), row(c0="c.png", c3="P-007")]
    assert read_table(write(tmp_path, *rows))["patient"].tolist() == ["12", "12", "P-007"]


@pytest.mark.parametrize("rows", [[], ["", ",,,,,,,,,,"]])
def test_a_table_without_rows_is_refused(tmp_path: Path, rows: list[str]) -> None:
    path = write(tmp_path, *rows)
    assert errors(path) == [
        f"{path}: found 0 rows, a header alone; allowed: a row for every image. "
        "Copy the file again, or remove it."
    ]


def test_a_table_without_labels_is_remarked(tmp_path: Path) -> None:
    path = write(tmp_path, row(c1=""), row(c0="b.png", c1=" "))
    assert parse_table(path)[1] == [f"{path}: no row has a label"]
    assert parse_table(write(tmp_path, row(c1=""), row(c0="b.png")))[1] == []


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"c1": "Effusion|Cough"},
         "row 3, column 'Finding Labels': found 'Effusion|Cough'; allowed: Atelectasis, "),
        ({"c1": "Effusion|"}, "row 3, column 'Finding Labels': found 'Effusion|'"),
        ({"c1": "No Finding|Mass"},
         "row 3, column 'Finding Labels': found 'No Finding|Mass'; allowed: 'No Finding' alone"),
        ({"c2": "-1"}, "row 3, column 'Follow-up #': found '-1'; allowed: a whole number"),
        ({"c3": ""}, "row 3, column 'Patient ID': found ''; allowed: a number such as 12 (also"),
        ({"c3": "1.5"}, "row 3, column 'Patient ID': found '1.5'; allowed: a number such as 12"),
        ({"c3": "+1"}, "row 3, column 'Patient ID': found '+1'"),
        ({"c3": "1\u200b"}, "row 3, column 'Patient ID': found '1\\u200b'"),
        ({"c3": "\xa01"}, "row 3, column 'Patient ID': found '\\xa01'"),
        ({"c4": "old"}, "row 3, column 'Patient Age': found 'old'; allowed: years such as 58"),
        ({"c5": "X"}, "row 3, column 'Patient Sex': found 'X'; allowed: M, F, blank"),
        ({"c6": "LL"}, "row 3, column 'View Position': found 'LL'; allowed: PA, AP, blank"),
        ({"c0": ""}, "row 3, column 'Image Index': found ''; allowed: a file name"),
        ({"c0": "images/a.png"}, "row 3, column 'Image Index': found 'images/a.png'"),
        ({"c0": "00000001_000.png"},
         "row 3, column 'Image Index': found '00000001_000.png', which is in row 2 already"),
        ({"c0": "00000001_000.dcm"}, "which is in row 2 already; allowed: every image once"),
    ],
)  # fmt: skip
def test_a_bad_cell_is_named(tmp_path: Path, cells: dict[str, str], message: str) -> None:
    path = write(tmp_path, GOOD, row(**({"c0": "other.png"} | cells)))
    (found,) = errors(path)
    assert found.startswith(str(path))
    assert message in found


def test_all_mistakes_come_at_once_and_rows_count_blank_lines(tmp_path: Path) -> None:
    found = errors(write(tmp_path, GOOD, "", row(c0="b.png", c5="Q"), row(c0="c.png", c1="Flu")))
    assert len(found) == 2
    assert any("row 4, column 'Patient Sex'" in text for text in found)
    assert any("row 5, column 'Finding Labels'" in text for text in found)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("Patient ID,", ""), "header: found no column 'Patient ID'"),
        (HEADER.replace("Patient Gender", "Patient Age"), "column 'Patient Age' 2 times"),
        (HEADER + ",Diagnosis", "header: found unknown column 'Diagnosis'"),
        (HEADER.replace("Patient ID", "patient id"),
         "header: found the columns patient id; allowed: Patient ID. Rename them."),
    ],
)  # fmt: skip
def test_a_bad_header_is_named(tmp_path: Path, header: str, message: str) -> None:
    assert any(message in text for text in errors(write(tmp_path, GOOD, header=header)))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER.replace(",", ";"), [GOOD.replace(",", ";")], "row 1: found cells separated by ';'"),
        ("", [], "found an empty file"),
        (GOOD, [row(c0="b.png")], "row 1: found no header, but '00000001_000.png,Effusion|Mass"),
    ],
)
def test_a_file_of_another_kind_is_one_error(
    tmp_path: Path, header: str, rows: list[str], message: str
) -> None:
    (found,) = errors(write(tmp_path, *rows, header=header))
    assert message in found


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("00000001_001.png,Mass,0,1", "row 3: found 4 columns; allowed: 11. Mend the row."),
        (row(c0="b.png") + ",more", "row 3: found 12 columns; allowed: 11. Mend the row."),
        (row(c0="b.png", c1="Mass,Edema"), "row 3: found 12 columns; allowed: 11."),
    ],
)
def test_a_row_of_another_length_is_named(tmp_path: Path, bad: str, message: str) -> None:
    (found,) = errors(write(tmp_path, GOOD, bad))
    assert message in found


def test_an_index_column_is_passed_over_and_remarked(tmp_path: Path) -> None:
    rows = ["0," + GOOD, "1," + row(c0="b.png")]
    path = write(tmp_path, *rows, header="," + HEADER)
    table, remarks = parse_table(path)
    assert table["image"].tolist() == ["00000001_000.png", "b.png"]
    assert remarks == [f"{path}: 1 columns without a name passed over: 1 ('', an index)"]


def test_a_shifted_patient_column_is_refused_row_by_row(tmp_path: Path) -> None:
    rows = [row(c0=f"0000000{n}_000.png", c3=str(n % 3 + 1)) for n in (1, 2, 3)]
    found = errors(write(tmp_path, *rows, row(c0="00000001_001.png", c3="0001")))
    assert len(found) == 4
    assert "column 'Patient ID': found 3 of 4 rows whose patient is not the one" in found[0]
    assert (
        "row 2, column 'Patient ID': found '2' for the image 00000001_000; allowed: '1'"
        in (found[1])
    )
    assert "row 4, column 'Patient ID': found '1' for the image 00000003_000" in found[3]


def test_floats_among_the_patients_are_the_same_patients(tmp_path: Path) -> None:
    rows = [row(), row(c0="00000001_001.png", c3="1.0"), row(c0="00000001_002.png", c3="01")]
    path = write(tmp_path, *rows)
    table, remarks = parse_table(path)
    assert table["patient"].tolist() == ["1", "1", "1"]
    assert remarks == [f"{path}: 1 patient numbers such as 12.0 read as whole numbers"]


def test_the_newer_edition_is_found_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label table; allowed: Data_Entry_2017_v2020\.csv or"):
        find_table(tmp_path)
    for name in ("Data_Entry_2017.csv.gz", "Data_Entry_2017_v2020.csv"):
        (tmp_path / name).touch()
        assert find_table(tmp_path).name == name


def test_names_that_are_nearly_right_are_told(tmp_path: Path) -> None:
    for name in ("data_entry_2017.CSV", "Data_Entry_2017 (1).csv", "Labels.xlsx"):
        (tmp_path / name).touch()
    for name in ("._Data_Entry_2017.csv", "hospitals.csv", "BBox_List_2017.csv", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        find_table(tmp_path)
    assert (
        "found no label table, but Data_Entry_2017 (1).csv, Labels.xlsx, data_entry_2017.CSV;"
        in (str(caught.value))
    )


def test_a_folder_or_a_broken_link_by_the_name_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").symlink_to("gone.csv")
    (tmp_path / "sample_labels.csv").mkdir()
    with pytest.raises(DataError) as caught:
        find_table(tmp_path)
    assert (
        "Data_Entry_2017.csv, a link to gone.csv, which is not there, sample_labels.csv, a folder"
        in (str(caught.value))
    )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        find_table(tmp_path / "absent")


def test_the_full_release(shared_dir: Path) -> None:
    """All counts are those of the released table."""
    path = shared_dir / "nih_metadata" / "Data_Entry_2017_v2020.csv.gz"
    start = time.process_time()
    table = read_table(path)
    assert time.process_time() - start < 6.0  # about 2 s, 3 s with coverage on a busy machine
    assert (len(table), table["patient"].nunique()) == (112_120, 30_805)
    assert table["view"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert table["sex"].value_counts().to_dict() == {"M": 63_340, "F": 48_780}
    assert (table["age"].min(), table["age"].max()) == (0, 95)
    assert (table["age"] < 18).sum() == 5_402
    assert table["follow_up"].max() == 183
    assert table["labelled"].all()
    assert parse_table(path)[1] == []
    positives = (table[list(FINDINGS)] == 1).sum()
    assert positives.to_dict() == {
        "Atelectasis": 11_559, "Cardiomegaly": 2_776, "Effusion": 13_317,
        "Infiltration": 19_894, "Mass": 5_782, "Nodule": 6_331, "Pneumonia": 1_431,
        "Pneumothorax": 5_302, "Consolidation": 4_667, "Edema": 2_303, "Emphysema": 2_516,
        "Fibrosis": 1_686, "Pleural_Thickening": 3_385, "Hernia": 227,
    }  # fmt: skip
    labels = (table[list(FINDINGS)] == 1).sum(axis=1).clip(upper=4).value_counts()
    assert labels.to_dict() == {0: 60_361, 1: 30_963, 2: 14_306, 3: 4_856, 4: 1_634}
