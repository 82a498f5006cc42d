"""Whose an image without a row is, and files that are equal byte for byte."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.data.nih import open_archive
from client.data.nih.copies import equal_files
from client.data.nih.folders import File
from client.data.nih.patients import Owner, Owners
from client.data.tables.names import stem, unsafe
from common.errors import DataError

Factory = Callable[..., Path]
TABLE = "Data_Entry_2017_v2020.csv"
FIRST = "00000001_000"


def owners(rows: dict[str, str], *files: str) -> Owners:
    table = pd.DataFrame({"stem": list(rows), "patient": list(rows.values())}, dtype="str")
    return Owners(table, [File(Path("/f"), f"{name}.png", name, 1) for name in files])


def reshade(source: Path, target: Path) -> None:
    """A copy with other pixels, so that it is a new image."""
    pixels = np.asarray(Image.open(source)) ^ 255
    Image.fromarray(pixels).save(target)


MARKS = (
    "{} (1)",
    "{}(12)",
    "{} - Copy",
    "{} - copy (2)",
    "{} - Copy - Copy (1)",
    "{} - Kopie",
    "{} - Kopie (2)",
    "{} - copie",
    "{} - copia",
    "{} - Kopia",
    "{} - cópia",
    "{} copy",
    "{} copy 2",
    "{}_copy",
    "{} のコピー",
    "{}のコピー2",
    "{} - コピー",
    "{} - 副本",
    "{}.1",
    "{}~",
    "{}  (3)",
    "Kopie von {}",
    "Copy of {}",
    "copy of {}",
    "Copy (2) of {}",
    "Copia de {}",
    "Copy of {} (1)",
)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", [FIRST, "ward-x"])
def test_marks_of_a_copy(name: str, mark: str) -> None:
    copy = stem(f"{mark.format(name)}.png")
    # of a row; of a row that is written in other letters; of an image without a row
    assert owners({name: "p7"}, copy).of(copy) == Owner("p7", name)
    assert owners({name.upper(): "p7"}, copy).of(copy) == Owner("p7", name.upper())
    patient = "1" if name == FIRST else name
    assert owners({}, name, copy).of(copy).patient == patient
    assert owners({}, copy).of(copy).patient == ("1" if name == FIRST else copy)


def test_names_that_bear_another() -> None:
    known = owners({"ward-x": "7", "ward-x_2": "8", "00000005_000": "H-5"}, "film")
    assert known.of("ward-x_lateral") == Owner("7", "ward-x")
    assert known.of("ward-x_1") == Owner("7", "ward-x")
    assert known.of("ward-x_2 (1)") == Owner("8", "ward-x_2")  # the longest name
    assert known.of("ward-x_2b") == Owner("7", "ward-x")
    assert known.of("ward-xy") == Owner("ward-xy", known=False)  # no separator
    assert known.of("export 00000005_000 final") == Owner("H-5", "00000005_000")
    # a follow-up of patient 5, whom the table calls H-5; and of one it does not know
    assert known.of("00000005_017") == Owner("H-5")
    assert known.of("export 00000005_017") == Owner("H-5", "00000005_017")
    assert known.of("00000017_003") == Owner("17")
    assert known.of("100000005_017") == Owner("100000005_017", known=False)  # nine digits
    # numbers behind the name of an unlabelled image may be a series of patients
    assert known.of("film_1") == Owner("film_1", known=False)
    assert known.of("film-2") == Owner("film-2", known=False)
    assert known.of("film copy") == Owner("film", "film")


def test_a_guess_in_another_spelling_is_the_same_patient() -> None:
    known = owners({"scan": "anon-7f"}, "ward-b", "WARD_B")
    assert known.of("ANON-7F") == Owner("anon-7f", known=False)
    assert known.of("anon 7 f") == Owner("anon-7f", known=False)
    assert known.of("anon-7e") == Owner("anon-7e", known=False)
    assert {known.of("ward-b"), known.of("WARD_B")} == {Owner("ward-b", known=False)}
    assert known.of("---") == Owner("---", known=False)
    assert known.of("___") == Owner("___", known=False)


def test_numbers_of_a_dicom_file_are_no_marks() -> None:
    known = owners({"1.2.840.11": "7"}, "1.2.840.12")
    assert known.of("1.2.840.11.3") == Owner("1.2.840.11.3", known=False)
    assert known.of("1.2.840.12.3") == Owner("1.2.840.12.3", known=False)


def test_stems() -> None:
    assert stem(" M\u0075\u0308.x.PNG ") == "M\u00fc.x"
    assert [stem(n) for n in ("a.png", "a.TIFF", "a.dicom", "a.IMA", "a")] == ["a"] * 5
    assert stem("1.2.840.113") == "1.2.840.113"
    assert stem("a.b") == "a.b"
    assert stem(".png") == ".png"
    assert [unsafe(n) for n in ("a\n", "\udce9", "  ", "\x7f")] == [True] * 4
    assert not any(map(unsafe, ("a b.png", "肺🫁.png", "a\u200fb.png")))


def test_a_copy_that_is_a_new_image(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    folder = root / "images"
    reshade(folder / "00000005_000.png", folder / "00000005_000 (1).png")  # patient 5: test
    archive = open_archive(root)
    extra = archive.table.iloc[-1]
    assert (len(archive.table), extra["patient"], extra["split"]) == (13, "5", "test")
    kept, bears = archive.remarks
    assert "1 images without a row kept as unlabelled: 00000005_000 (1).png" in kept
    assert "1 images without a row bear the name of another image, and were counted" in bears
    assert "00000005_000 (1).png (patient 5)" in bears
    assert not {"stem", "from_row", "known", "bears"} & set(archive.table)


def test_the_same_picture_twice_is_left_out(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    folder = root / "images"
    shutil.copy(folder / f"{FIRST}.png", folder / f"{FIRST} - Copy.png")
    shutil.copy(folder / "00000002_000.png", folder / "download.png")
    shutil.copy(folder / "00000002_000.png", folder / "00000099_000.png")
    (root / "masks/00000002_000.png").rename(root / "masks/download.png")
    archive = open_archive(root)
    assert len(archive.table) == 12
    masks = {Path(mask).name for mask in archive.table["mask"]}
    assert "download.png" in masks  # the mask of the copy is the image's own
    assert len(masks) == 12
    (remark,) = archive.remarks
    assert "3 files left out as copies, equal byte for byte: " in remark
    assert f"{FIRST}.png (patient 1) = {FIRST} - Copy.png (patient 1)" in remark
    assert "00000002_000.png (patient 2) = download.png (patient download)" in remark


def test_copies_without_a_table(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", patients=2, masks=True)
    (root / TABLE).unlink()
    folder = root / "images"
    shutil.copy(folder / f"{FIRST}.png", folder / "a.png")
    shutil.copy(folder / f"{FIRST}.png", folder / "b.png")
    shutil.copy(folder / f"{FIRST}.png", folder / "00000009_000.png")
    for file in ("train_val_list.txt", "test_list.txt"):
        (root / file).unlink()
    archive = open_archive(root)
    assert archive.table["patient"].tolist() == ["1", "1", "2", "2", "9"]
    left_out, of_many = archive.remarks
    assert "2 files left out as copies" in left_out
    # numbers in NIH names are no guesses: neither patient is left out
    assert "the same picture under several patients: 2 files of 1 picture, 2 patients" in of_many


def test_the_same_picture_of_two_patients(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    folder = root / "images"
    shutil.copy(folder / f"{FIRST}.png", folder / "00000002_000.png")  # both in train_val
    (remark,) = open_archive(root).remarks
    assert (
        "the same picture under several patients: 2 files of 1 picture, 2 patients, equal" in remark
    )
    assert f"{FIRST}.png (patient 1) = 00000002_000.png (patient 2). One person may be" in remark
    shutil.copy(folder / f"{FIRST}.png", folder / "00000006_001.png")  # in test
    archive = open_archive(root)
    assert len(archive.table) == 12
    both, many = archive.remarks
    assert "ATTENTION: the same picture lies in train_val and in test: 3 files of 1" in both
    assert "the same picture under several patients: 3 files of 1 picture, 3 patients" in many


def test_the_same_picture_twice_of_one_patient(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    shutil.copy(root / f"images/{FIRST}.png", root / "images/00000001_001.png")
    (remark,) = open_archive(root).remarks
    assert "the same picture twice under one patient: 2 files of 1 picture, 1 patient," in remark


def test_a_copy_in_the_other_list(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    shutil.copy(root / f"images/{FIRST}.png", root / f"images/{FIRST} (1).png")
    with (root / "test_list.txt").open("a") as stream:
        stream.write(f"{FIRST} (1).png\n")
    with pytest.raises(DataError, match="patient '1': found images in both split lists"):
        open_archive(root)


def test_files_that_are_equal(tmp_path: Path) -> None:
    middle = bytearray(100_000)
    contents = {
        "a": b"x" * 100_000,
        "b": b"x" * 100_000,
        "c": bytes(middle),
        "d": bytes(middle[:30_000] + b"y" + middle[30_001:]),  # differs between the pieces
        "e": bytes(middle),
        "f": bytes(middle[:99_999] + b"z"),  # differs in the last byte
        "g": b"",
        "h": b"",
        "i": b"1",
        "j": b"1",
        "k": b"2",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in contents]
    sizes = [len(data) for data in contents.values()]
    assert equal_files(paths, sizes) == [[0, 1], [2, 4], [8, 9]]
    (tmp_path / "b").unlink()  # went away meanwhile: decoding says so
    assert equal_files(paths, sizes) == [[2, 4], [8, 9]]
