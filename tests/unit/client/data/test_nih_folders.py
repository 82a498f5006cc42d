"""Folders and files as people have them on disk: what is read, what is named, what is refused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from client.data.nih import open_archive
from common.errors import DataError

Factory = Callable[..., Path]
TABLE = "Data_Entry_2017_v2020.csv"
FIRST = "00000001_000.png"
CHECKOUT = Path(__file__).resolve().parents[4]


def error(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_archive(root, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.isprintable() or all(line.isprintable() for line in text.split("\n"))
    return text


def remarks(root: Path, **options: object) -> str:
    return "\n".join(open_archive(root, **options).remarks)  # type: ignore[arg-type]


def dicom(path: Path) -> None:
    """A file that says that it is DICOM: opening an archive asks no more."""
    path.write_bytes(b"\0" * 128 + b"DICM" + path.name.encode())


@pytest.mark.parametrize(
    "place",
    [
        "Images",
        "IMAGES",
        "images-001/images",
        "images_001 (1)/images",
        "images 001",
        "images.001/Images",
        "images_001/images_001/images",
        "images/images_001",
        "image",
    ],
)
def test_image_folders_in_every_spelling(nih_archive: Factory, place: str) -> None:
    root = nih_archive(layout="images")
    moved = root / "moved"
    (root / "images").rename(moved)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    moved.rename(root / place)
    archive = open_archive(root)
    assert len(archive.table) == 12
    assert archive.remarks == ()


def test_a_zip_unpacked_in_its_own_folder(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive(masks=True)
    outer = tmp_path / "download"
    outer.mkdir()
    root.rename(outer / "archive")
    archive = open_archive(outer)
    assert archive.root == outer / "archive"
    assert len(archive.table) == archive.table["mask"].ne("").sum() == 12
    assert archive.remarks == (f"{outer}: the archive in {outer}/archive was read",)
    shutil.copytree(outer / "archive", outer / "second")
    text = error(outer)
    assert "found no label table in it, but in archive, second; allowed: Data_Entry" in text
    assert "Give one of these folders" in text


def test_images_in_the_folder_beside_the_table(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", lists=False)
    (root / "sample").mkdir()
    (root / "images").rename(root / "sample/images")
    shutil.copytree(root / "sample", root / "sample/sample")  # as in the Kaggle sample's zip
    shutil.copy(root / TABLE, root / "sample" / TABLE)
    archive = open_archive(root)
    assert len(archive.table) == 12
    assert archive.remarks == (f"{root}: no image folder in it; sample/images was read",)


def test_the_folder_of_the_images_alone(nih_archive: Factory) -> None:
    root = nih_archive()
    text = error(root / "images_001/images")
    assert f"found no label table; it lies in {root}; " in text
    assert f"Give that folder: --data {root}" in text


def test_a_table_away_from_the_images(nih_archive: Factory) -> None:
    root = nih_archive()
    (root / "csv").mkdir()
    (root / TABLE).rename(root / "csv" / TABLE)
    assert "no label table in it, but in csv" in (text := error(root))
    assert "put the table beside the image folders" in text


def test_packed_images_and_images_elsewhere(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    (root / "images").rename(root / "train")
    assert "Such files lie in train: move them to images/. Or leave" in error(root)
    (root / "images_001.zip").write_bytes(b"PK")
    (root / "images_002.tar.gz").write_bytes(b"\x1f\x8b")
    (root / "BBox_List_2017.csv.gz.bak").write_bytes(b"\x1f\x8b")
    assert "Unpack images_001.zip, images_002.tar.gz. Or leave" in error(root)
    (root / "images_003").mkdir()
    (root / "train" / FIRST).rename(root / "images_003" / FIRST)
    assert "11 rows without an image file" in (text := remarks(root, skip_bad=True))
    assert "Unpack images_001.zip, images_002.tar.gz." in text
    (root / TABLE).unlink()
    assert "found no label table" in (text := error(root))
    assert "Unpack images_001.zip, images_002.tar.gz." in text


def test_a_file_is_no_folder(nih_archive: Factory) -> None:
    root = nih_archive()
    packed = root / "archive.zip"
    packed.write_bytes(b"PK")
    assert "archive.zip: found a file, not a folder; allowed: a folder. Unpack it" in error(packed)
    assert f"Give the folder that it lies in: {root}" in error(root / TABLE)
    assert "allowed: a folder of masks" in error(root, masks=root / TABLE)


def test_pictures_beside_the_image_folders(nih_archive: Factory) -> None:
    root = nih_archive()
    (root / "images_001/images" / FIRST).rename(root / FIRST)  # the table asks for this one
    shutil.copy(root / FIRST, root / "overview.png")
    archive = open_archive(root)
    assert len(archive.table) == 12
    assert (archive.table["path"] == str(root / FIRST)).sum() == 1
    (remark,) = archive.remarks
    assert "1 images beside the image folders were not read: overview.png. Move them" in remark


def test_dicom_under_any_ending(nih_archive: Factory) -> None:
    root = nih_archive(patients=6, images=1)
    names = ["00000001_000.dicom", "00000002_000.DCM", "00000003_000", "00000004_000.IMA"]
    for name in names:
        png = next(root.glob(f"images_*/images/{name[:12]}.png"))
        png.unlink()
        dicom(png.parent / name)
    uids = ["1.2.840.113619.2.5.1", "1.2.840.113619.2.5.2"]
    for uid in uids:  # one image each, and not one name with two endings
        dicom(root / "images_001/images" / uid)
    table = open_archive(root).table
    assert [Path(path).name for path in table["path"]][:4] == names
    assert table["patient"].tolist()[6:] == table["image"].tolist()[6:] == uids


def test_endings_that_are_not_read(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    folder = root / "images"
    for kind, name in (("TIFF", "00000007_000.tif"), ("GIF", "a.gif"), ("BMP", "b.bmp")):
        Image.new("L", (8, 8)).save(folder / name, format=kind)
    for name in ("x.nii.gz", "notes.txt", "00000002_000.png.crdownload", ".00000003_000.png"):
        (folder / name).write_bytes(b"12")
    for name in (".DS_Store", "Thumbs.db", "DESKTOP.INI", "._00000001_000.png", "Icon\r"):
        (folder / name).write_bytes(b"12")
    (folder / "__MACOSX").mkdir()
    shutil.copy(folder / FIRST, folder / "__MACOSX")
    (root / "scan.webp").write_bytes(b"RIFF")
    (root / "README").write_text("no picture, and not among the images")
    (remark,) = open_archive(root).remarks
    assert "8 files were not read, such as images/.00000003_000.png; endings: .bmp (1)" in remark
    assert ".crdownload (1), .gif (1), .gz (1), .png (1), .tif (1), .txt (1), .webp (1)" in remark
    assert "; read are .png, .jpg, .jpeg, .dcm, .dicom, and DICOM files" in remark


def test_a_row_whose_image_has_an_ending_that_is_not_read(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    picture = Image.open(root / "images" / FIRST)
    picture.save(root / "images/00000001_000.tif")
    (root / "images" / FIRST).unlink()
    (root / "images/00000002_000.png").rename(root / "images/00000002_000")  # no ending, no DICOM
    text = error(root)
    assert "2 rows whose image is there, but has an ending that is not read: " in text
    assert "00000001_000.tif, 00000002_000; allowed: .png, .jpg" in text
    assert "Convert them to PNG, or leave them out with --skip-bad." in text
    assert "without an image file" not in text
    skipped = open_archive(root, skip_bad=True).skipped
    assert skipped.to_numpy().tolist() == [
        [FIRST, "an ending that is not read"],
        ["00000002_000.png", "an ending that is not read"],
    ]


def test_names_of_images_that_are_no_files(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    folder = root / "images"
    names = sorted(path.name for path in folder.iterdir())[:4]
    for name in names:
        (folder / name).unlink()
    (folder / names[0]).mkdir()
    (folder / names[1]).symlink_to("/nowhere/at/all.png")
    (folder / names[2]).symlink_to(names[2])
    os.mkfifo(folder / names[3])
    text = error(root)
    assert "4 rows whose image is no file: 00000001_000.png is a folder" in text
    assert "00000001_001.png is a link to nothing" in text
    assert "00000002_000.png is a link that leads nowhere (Too many levels" in text
    assert "00000002_001.png is neither a file nor a folder" in text
    assert len(open_archive(root, skip_bad=True).table) == 8
    lists = remarks(root, skip_bad=True)
    assert "4 names of images are no files: 00000001_000.png is a folder" in lists


def test_links_that_go_round(nih_archive: Factory) -> None:
    root = nih_archive()
    (root / "images_001/images_again").symlink_to(".")
    (root / "images_up").symlink_to("..")
    (root / "images_003").symlink_to("images_001")
    (root / "images_self").symlink_to("images_self")
    archive = open_archive(root)
    assert len(archive.table) == 12
    assert archive.remarks == ()


def test_folders_that_are_too_deep(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    (root / "images/batch").mkdir()
    (root / "images" / FIRST).rename(root / "images/batch" / FIRST)
    assert "Such files lie in images/batch: move them to images/." in error(root)
    assert "1 folders inside the image folders hold images that were not read: images/batch" in (
        remarks(root, skip_bad=True)
    )


def test_the_same_image_in_two_folders(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    shutil.copytree(root / "images", root / "images (1)")
    text = error(root)  # the folders come sorted: the blank stands before all letters
    assert f"{root}/images (1): found 12 images a second time: 00000001_000.png, 00" in text
    assert f"first in {root}/images; allowed: every image once, whatever its ending" in text


def test_names_in_two_unicode_forms(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    composed, decomposed = "M\u00fcller.png", "Mu\u0308ller.png"
    for file in (TABLE, "train_val_list.txt"):
        text = (root / file).read_text(encoding="utf-8").replace(FIRST, composed)
        (root / file).write_text(text, encoding="utf-8")
    (root / "images" / FIRST).rename(root / "images" / decomposed)
    (root / "masks" / FIRST).rename(root / "masks" / decomposed)
    table = open_archive(root).table
    assert table["image"][0] == composed
    assert Path(table["path"][0]).name == Path(table["mask"][0]).name == decomposed
    assert table["split"][0] == "train_val"
    shutil.copy(root / "images" / decomposed, root / "images" / composed)
    assert "found the image a second time" in error(root)


def test_names_that_differ_in_case(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    for file in (TABLE, "train_val_list.txt"):
        text = (root / file).read_text()
        (root / file).write_text(
            text.replace(FIRST, "Ward-A.png" if file == TABLE else "WARD-A.png")
        )
    (root / "images" / FIRST).rename(root / "images/WARD-a.PNG")
    (root / "masks" / FIRST).rename(root / "masks/ward-a.png")
    archive = open_archive(root)
    assert archive.table["mask"].ne("").all()
    assert archive.table["split"][0] == "train_val"
    assert Path(archive.table["path"][0]).name == "WARD-a.PNG"
    (remark,) = archive.remarks
    assert "1 images found by names that differ from the table's in upper and lower" in remark
    shutil.copy(root / "images/00000002_000.png", root / "images/ward-A.png")
    assert "names that differ by more than upper and lower case. Remove one" in error(root)


@pytest.mark.parametrize("name", [b"00000001_00\xe9.png", b"new\nline.png", b"\x1b[31mred.png"])
def test_names_that_no_table_can_hold(nih_archive: Factory, name: bytes) -> None:
    root = nih_archive(layout="images")
    shutil.copy(os.fsencode(root / "images" / FIRST), os.fsencode(root / "images") + b"/" + name)
    shown = {0xE9: r"00000001_00\xe9.png", 0x0A: r"new\nline.png", 0x1B: r"\x1b[31mred.png"}
    (escaped,) = (text for byte, text in shown.items() if byte in name)
    text = error(root)
    assert "found 1 files whose names hold control characters or bytes that are not UTF-8: " in text
    assert f"not UTF-8: {escaped}; allowed: names in UTF-8" in text
    archive = open_archive(root, skip_bad=True)
    assert len(archive.table) == 12
    assert archive.skipped["image"].tolist() == [escaped]


def test_a_path_that_is_not_utf_8(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive()
    moved = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    root.rename(moved)
    assert r"caf\xe9: found a path with control characters, or not in UTF-8" in error(moved)
    assert "Rename the folder." in error(moved)
    (moved / "images_001").rename(Path(os.fsdecode(os.fsencode(moved) + b"/images_\xe9")))
    moved.rename(root)
    text = error(root)
    assert r"images_\xe9/images: found 6 files whose folder's name holds control chara" in text
    assert "that are not UTF-8: 00000001_000.png, 00000002_000.png" in text


LOCKED = """
import sys
from pathlib import Path
from client.data.nih import open_archive
from common.errors import DataError
try:
    open_archive(Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("place", "mode"),
    [("images_001", 0o000), ("images_001/images", 0o444), ("masks", 0o000), (".", 0o111)],
)
def test_folders_that_may_not_be_listed(nih_archive: Factory, place: str, mode: int) -> None:
    root = nih_archive(masks=True)
    drop: list[str] = []
    if os.geteuid() == 0:  # root reads all, unless it gives that right away
        tool = shutil.which("setpriv")
        if tool is None:
            pytest.skip("root without setpriv reads every folder")
        rights = "-dac_override,-dac_read_search"
        drop = [tool, f"--bounding-set={rights}", f"--inh-caps={rights}"]
    (root / place).chmod(mode)
    try:
        command = [*drop, sys.executable, "-c", LOCKED, str(root)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    finally:
        (root / place).chmod(0o755)
    assert done.stderr == ""
    where = str(root / place) if place != "." else str(root)
    assert done.stdout == (
        f"{where}: found Permission denied; allowed: a folder that this user may list and enter. "
        "Ask its owner for the right to read it.\n"
    )


def test_masks_by_the_word_mask(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    patterns = ("{}_mask", "{}-Mask", "mask_{}", "{} lung mask", "{}_masks", "{}")
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        path.rename(path.with_stem(patterns[number % 6].format(path.stem)))
    archive = open_archive(root)
    assert archive.table["mask"].ne("").all()
    (remark,) = archive.remarks
    assert "masks: 10 masks taken by their image's name and the word mask: 00000001_000_" in remark
    shutil.copy(root / "masks/00000001_000_mask.png", root / "masks" / FIRST)
    assert f"found a second mask of {FIRST[:-4]}; the first is" in error(root)


def test_masks_that_cannot_be_matched(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    for path in (root / "masks").iterdir():
        path.rename(path.with_stem(path.stem + "_left"))
    text = error(root)
    assert "found 12 masks without an image: 00000001_000_left.png" in text
    assert "masks named as their images, as NAME.png or NAME_mask.png" in text
    assert "Rename 00000001_000_left.png if it is the mask of 00000001_000, or leave" in text
    text = error(root, skip_bad=True)
    assert "found no mask of an image of the archive among 12 files" in text


def test_a_folder_of_masks_that_gives_nothing(nih_archive: Factory) -> None:
    root = nih_archive(layout="images")
    folder = root / "masks"
    folder.mkdir()
    for skip_bad in (False, True):
        assert "masks: found an empty folder; allowed: one mask an image" in error(
            root, skip_bad=skip_bad
        )
    (folder / "left").mkdir()
    assert "found no mask, but the folders left; allowed" in error(root)
    for number in range(3):
        Image.new("L", (32, 32)).save(folder / f"0000000{number}_000.gif")
    text = error(root)
    assert "found no mask that can be read: 3 files with the endings .gif" in text
    assert "Save them as PNG with 0 and 255, such as 00000000_000.png." in text


def test_folders_of_masks_by_other_names(nih_archive: Factory) -> None:
    root = nih_archive(layout="images", masks=True)
    (root / "masks").rename(root / "Masks")
    assert open_archive(root).table["mask"].ne("").all()
    (root / "outer").mkdir()
    (root / "Masks").rename(root / "outer/masks")
    (root / "outer").rename(root / "masks")  # masks.zip unpacked in a folder of its name
    assert open_archive(root).table["mask"].ne("").all()
    (root / "masks/masks").rename(root / "lung_masks")
    (root / "masks").rmdir()
    archive = open_archive(root)
    assert archive.table["mask"].eq("").all()
    (remark,) = archive.remarks
    assert "no masks were read: lung_masks is not called masks. Rename it, or give it" in remark
    assert open_archive(root, masks=root / "lung_masks").remarks == ()


def test_masks_without_images(nih_archive: Factory) -> None:
    """One error, of the images: masks are not blamed for them."""
    root = nih_archive(layout="images", masks=True)
    shutil.rmtree(root / "images")
    assert error(root).count("\n") == 0
