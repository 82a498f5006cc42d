"""What a cache tells of its pixels: once, with counts and names, and again when it is reused."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless

from client.data.cache import build_cache, open_cache
from client.data.cache.remarks import identical_images
from client.data.nih import open_archive
from client.data.pixels.notes import WORDS, Note, remarks
from common.errors import DataError
from tests.unit.client.data.pictures import RAMP
from tests.unit.client.data.test_pixels_dicom import WIDE, dataset, dicom

Factory = Callable[..., Path]


def image(root: Path, patient: int, number: int) -> Path:
    """A file of the archive; its rows alternate between two folders."""
    row = (patient - 1) * 2 + number
    return root / f"images_{row % 2 + 1:03d}/images" / f"{patient:08d}_{number:03d}.png"


def odd_archive(factory: Factory) -> Path:
    """Two black images, one of 12 bits, one that lies on its side, a mask with small lungs."""
    root = factory(masks=True)
    for number in (0, 1):
        Image.new("L", (32, 32)).save(image(root, 1, number))
    Image.fromarray(RAMP[:32, :32].astype(np.uint16) * 32).save(image(root, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(RAMP[:32, 32:].copy()).save(image(root, 2, 1), exif=exif)
    dot = np.zeros((32, 32), np.uint8)
    dot[4:8, 4:8] = 255
    Image.fromarray(dot).save(root / "masks/00000003_000.png")
    return root


ODD = (
    "2 images of a single grey level, which show nothing: 00000001_000.png, 00000001_001.png",
    "1 images with 16 bits a pixel that use fewer, scaled by the bits in use: "
    "00000002_000.png (12 bits)",
    "1 files turned upright by the orientation in their EXIF data: 00000002_001.png",
    "1 masks in which the lungs cover less than 2 % or more than 60 % of the picture: "
    "mask 00000003_000.png (1.6%)",
)


def test_remarks_are_kept_with_the_cache(nih_archive: Factory, tmp_path: Path) -> None:
    archive, folder = open_archive(odd_archive(nih_archive)), tmp_path / "cache"
    built = build_cache(archive, folder, 32, workers=2)
    assert built.remarks == ODD
    assert open_cache(folder).remarks == ODD
    assert build_cache(archive, folder, 32).remarks == ODD
    sound = build_cache(open_archive(nih_archive("sound", masks=True)), tmp_path / "other", 32)
    assert sound.remarks == ()


def test_remarks_survive_a_build_that_goes_on(nih_archive: Factory, tmp_path: Path) -> None:
    root, folder = odd_archive(nih_archive), tmp_path / "cache"
    for patient in range(7, 20):  # a second chunk, which is bad
        Image.fromarray(RAMP[:32, :32] ^ np.uint8(patient)).save(
            root / f"images_001/images/{patient:08d}_000.png"
        )
    last = root / "images_001/images/00000019_000.png"
    content = last.read_bytes()
    last.write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        build_cache(open_archive(root), folder, 32)
    last.write_bytes(content)
    for patient in (1, 2):  # of the finished chunk: not decoded again, and so not missed
        for number in (0, 1):
            facts = image(root, patient, number).stat()
            image(root, patient, number).write_bytes(bytes(facts.st_size))
            os.utime(image(root, patient, number), ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert build_cache(open_archive(root), folder, 32).remarks == ODD


def test_a_bad_file_is_tried_again(nih_archive: Factory, tmp_path: Path) -> None:
    """Mended without a change of size or time, as by chmod or by a package installed since."""
    root, folder = nih_archive(), tmp_path / "cache"
    path = image(root, 3, 0)
    content, facts = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match="nothing but zero bytes"):
        build_cache(open_archive(root), folder, 32)
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert len(build_cache(open_archive(root), folder, 32).index) == 12


def test_skip_bad_leaves_out_a_mask_that_cannot_be_lungs(
    nih_archive: Factory, tmp_path: Path
) -> None:
    root, folder = nih_archive(masks=True), tmp_path / "cache"
    for name, shade in (("00000001_000", 0), ("00000002_000", 255)):
        Image.new("L", (32, 32), shade).save(root / f"masks/{name}.png")
    with pytest.raises(DataError) as caught:
        build_cache(open_archive(root), folder, 32)
    assert len(caught.value.problems) == 2
    cache = build_cache(open_archive(root), folder, 32, skip_bad=True)
    assert len(cache.index) == 12
    assert cache.index["mask_row"].eq(-1).sum() == 2
    assert cache.skipped["reason"].tolist() == [
        "mask: a mask without lungs: 0 everywhere",
        "mask: a mask of nothing but lungs: 100.0% of the picture",
    ]


def test_skip_bad_does_not_leave_out_every_mask(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive(masks=True)
    for path in (root / "masks").iterdir():
        Image.new("L", (32, 32)).save(path)
    with pytest.raises(DataError) as caught:
        build_cache(open_archive(root), tmp_path / "cache", 32, skip_bad=True)
    assert len(caught.value.problems) == 1
    text = str(caught.value)
    assert text.startswith(f"{root}/masks: found none of 12 masks that can be used; 0000")
    assert "for one: a mask without lungs: 0 everywhere; allowed: a mask with lungs" in text


def test_skip_bad_never_drops_what_only_lacks_a_decoder(
    nih_archive: Factory, tmp_path: Path
) -> None:
    """High-throughput JPEG 2000, which none of the packages of a plain installation decodes."""
    from pydicom.pixels.decoders.base import get_decoder

    if get_decoder(HTJ2KLossless).is_available:
        pytest.skip("pylibjpeg-openjpeg is installed")
    root, folder = nih_archive(), tmp_path / "cache"
    image(root, 1, 0).write_bytes(b"")
    data, stream = dataset(WIDE, HTJ2KLossless), io.BytesIO()
    data.PixelData = encapsulate([bytes(40)])
    data["PixelData"].is_undefined_length = True
    data.save_as(stream, enforce_file_format=True)
    image(root, 2, 0).write_bytes(stream.getvalue())
    for skip_bad, count in ((False, 2), (True, 1)):
        with pytest.raises(DataError, match="--skip-bad does not leave it out") as caught:
            build_cache(open_archive(root), folder, 32, skip_bad=skip_bad)
        assert len(caught.value.problems) == count
    dicom(image(root, 2, 0), WIDE)  # converted
    cache = build_cache(open_archive(root), folder, 32, skip_bad=True)
    assert len(cache.index) == 11


def test_films_of_several_patients_that_show_the_same(nih_archive: Factory, tmp_path: Path) -> None:
    """Other bytes, another format: the same pixels."""
    root = nih_archive(size=64)
    for patient, kind in ((1, "png"), (4, "rgb"), (6, "dcm")):  # 6 is a patient of the test list
        path = image(root, patient, 0)
        if kind == "dcm":
            tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
            spread = {"WindowCenter": 128, "WindowWidth": 256}  # value = shade, PS3.3 C.11.2.1.2
            dicom(path, RAMP, **tags, **spread)
        else:
            Image.fromarray(RAMP).convert("RGB" if kind == "rgb" else "L").save(path)
    for patient, kind in ((2, "L"), (3, "RGB")):
        film = Image.fromarray(RAMP[::-1] // 2 + RAMP.T // 4)
        film.convert(kind).save(image(root, patient, 1))
    Image.fromarray(RAMP.T.copy()).save(image(root, 5, 0))
    Image.fromarray(RAMP.T.copy()).save(image(root, 5, 1))  # twice one patient's: nobody is misled
    for patient in (2, 3):  # black shows nothing, so it is not the same film
        Image.new("L", (64, 64)).save(image(root, patient, 0))
    cache = build_cache(open_archive(root), tmp_path / "cache", 64)
    assert cache.remarks[1:] == (
        "5 images of 5 patients are 2 pictures, 1 of them in both official lists, equal in every "
        "pixel: 00000001_000.png = 00000004_000.png = 00000006_000.png, "
        "00000002_001.png = 00000003_001.png",
    )


def test_identical_images_of_rows_that_are_left() -> None:
    index = pd.DataFrame(
        {"image": ["a", "b", "c"], "patient": ["1", "2", "3"], "split": "", "row": [0, 2, 3]}
    )
    files = pd.Series(["1", "2", "3", "4"], dtype="str")
    assert identical_images(index, pd.Series(["x", "y", "y", ""], dtype="str"), files) == []
    alike = pd.Series(["x", "y", "x", ""], dtype="str")
    assert identical_images(index, alike, files) == [
        "2 images of 2 patients are 1 pictures, equal in every pixel: a = b"
    ]
    nothing = pd.Series([], dtype="str")
    assert identical_images(index.iloc[:0], nothing, nothing) == []


def test_files_of_equal_bytes_were_told_already() -> None:
    index = pd.DataFrame(
        {"image": list("abc"), "patient": list("123"), "split": "", "row": range(3)}
    )
    shown = pd.Series(["x"] * 3, dtype="str")
    assert identical_images(index, shown, pd.Series(["1"] * 3, dtype="str")) == []
    one_copied = pd.Series(["1", "1", "2"], dtype="str")  # the third is news
    assert identical_images(index, shown, one_copied) == [
        "3 images of 3 patients are 1 pictures, equal in every pixel: a = b = c"
    ]


def test_warnings_of_the_libraries_do_not_reach_a_build(
    nih_archive: Factory, tmp_path: Path
) -> None:
    """An EXIF block that is cut off, of which Pillow warns; here a warning is an error."""
    root = nih_archive()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"
    path = image(root, 1, 0)
    Image.fromarray(RAMP).save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()
    with (
        pytest.warns(UserWarning, match="Corrupt EXIF data"),
        Image.open(path.with_suffix(".jpg")) as picture,
    ):
        picture.getexif()
    assert len(build_cache(open_archive(root), tmp_path / "cache", 32).index) == 12


def test_words_of_remarks() -> None:
    """In their order, with a count and the first five names."""
    found = remarks((str(number), Note("tags", "Modality CT")) for number in range(7))
    assert found == [
        "7 DICOM images that are not an upright frontal chest film by their tags: "
        "0 (Modality CT), 1 (Modality CT), 2 (Modality CT), 3 (Modality CT), 4 (Modality CT), ..."
    ]
    everything = remarks(("a", Note(code)) for code in reversed(WORDS))
    assert [text.split(":")[0] for text in everything] == [w.format(1) for w in WORDS.values()]
    assert remarks([]) == []
