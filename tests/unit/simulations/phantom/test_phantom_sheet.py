"""The contact sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, InputError
from simulations.phantom import contact_sheet, make_phantom
from simulations.phantom.sheet import CAPTION, TILE


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "archive"
    return make_phantom(out, images=5, size=32, hospitals=1, unlabelled=0.4, workers=1)


def test_a_sheet_shows_tiles_with_captions(phantom: Path, tmp_path: Path) -> None:
    out = contact_sheet(phantom, tmp_path / "sheet.png", rows=2, columns=2)
    with Image.open(out) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (TILE + CAPTION), 2 * TILE)
    assert sheet[:TILE, :TILE].std() > 20
    assert sheet[TILE : TILE + CAPTION, :TILE].max() > 150
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_tiles_without_an_image_stay_black(phantom: Path, tmp_path: Path) -> None:
    out = contact_sheet(phantom, tmp_path / "sheet.png", rows=1, columns=6)
    with Image.open(out) as image:
        assert np.asarray(image)[:, 5 * TILE :].max() == 0


def test_rows_and_columns_below_one_are_refused(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        contact_sheet(phantom, tmp_path / "sheet.png", rows=0, columns=-1)
    assert str(caught.value).splitlines() == [
        "contact sheet: rows: found 0; allowed: 1 or more. Give another value for rows.",
        "contact sheet: columns: found -1; allowed: 1 or more. Give another value for columns.",
    ]


def test_a_folder_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no Data_Entry_2017_v2020\.csv; allowed: an NIH"):
        contact_sheet(tmp_path, tmp_path / "sheet.png", 1, 1)
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("Image Index\n")
    with pytest.raises(DataError, match="found no images; allowed: images_001/images/"):
        contact_sheet(tmp_path, tmp_path / "sheet.png", 1, 1)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    archive = make_phantom(tmp_path / "a", images=1, size=32, hospitals=1, workers=1)
    picture = archive / "images_001" / "images" / "00000001_000.png"
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(DataError, match=r"00000001_000\.png: found unreadable"):
        contact_sheet(archive, tmp_path / "sheet.png", 1, 1)


def test_a_place_that_cannot_be_written_is_refused(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found cannot write"):
        contact_sheet(phantom, tmp_path / "missing" / "sheet.png", 1, 1)
