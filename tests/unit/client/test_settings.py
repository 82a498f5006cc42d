"""site.yaml and rows.parquet: read, or refused with one clear message."""

from pathlib import Path

import pandas as pd
import pytest

from client.settings import open_site_folder
from common.errors import DataError
from common.findings import FINDINGS


def write(folder: Path, text: str) -> Path:
    (folder / "site.yaml").write_text(text)
    return folder


def test_a_site_folder_is_read(tmp_path: Path) -> None:
    folder = open_site_folder(write(tmp_path, "name: ward\ncache: ../cache\n"))
    assert folder.settings.name == "ward"
    assert folder.settings.annotates == FINDINGS
    assert folder.cache == tmp_path / "../cache"
    assert folder.state == tmp_path / "state"
    assert folder.reports == tmp_path / "reports"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache: c\n", "key 'name'"),
        ("name: ward\n", "key 'cache'"),
        ("name: ward\ncache: c\ncolour: red\n", "key 'colour': found 'red'"),
        ("name: ward\ncache: c\nannotates: [Mass, Flu]\n", "not Flu"),
        ("name: ward\ncache: c\ndevice: tpu\n", "key 'device': found 'tpu'"),
        ("name: a/b\ncache: c\n", "key 'name': found 'a/b'"),
        (
            "name: node-7\ncache: c\n",
            "key 'name': found 'node-7'; allowed: a name that does not begin with node-",
        ),
        ("a: [\n", "text that is not YAML"),
        ("- a\n", "found a list; allowed: a mapping of site settings"),
        ("name: a\ncache: c\nname: b\n", "key 'name': found a value in line 1 and in line 3"),
        (
            "name: a\ncache: c\npolicy:\n  epsilon: 1\n  delta: 1e-5\n  epsilon: 80\n",
            "key 'policy.epsilon': found a value in line 4 and in line 6",
        ),
        ("name: a\ncache: c\npolicy: {epsilon: .inf}\n", "allowed: a finite number"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        open_site_folder(write(tmp_path, text))
    assert expected in str(caught.value)
    assert str(tmp_path / "site.yaml") in str(caught.value)


def test_a_small_number_is_read_as_in_a_plan(tmp_path: Path) -> None:
    folder = write(tmp_path, "name: ward\ncache: c\npolicy: {delta: 1e-6}\n")
    assert open_site_folder(folder).settings.policy.delta == 1e-6


def test_a_folder_that_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site\.yaml: found No such file or directory"):
        open_site_folder(tmp_path)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, "found nothing; allowed: a Parquet table of rows"),
        (pd.DataFrame({"image": ["a"], "split": ["train"]}), "no column 'labelled'"),
        (
            pd.DataFrame({"image": ["a"], "split": ["dev"], "labelled": [True]}),
            "row 1, column 'split': found 'dev'; allowed: train, val, test",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: pd.DataFrame | None, expected: str) -> None:
    folder = open_site_folder(write(tmp_path, "name: ward\ncache: c\n"))
    if rows is not None:
        rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError) as caught:
        folder.rows()
    assert expected in str(caught.value)


def test_rows_that_are_no_parquet(tmp_path: Path) -> None:
    folder = open_site_folder(write(tmp_path, "name: ward\ncache: c\n"))
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(DataError, match=r"rows\.parquet: found .*; allowed: a Parquet table"):
        folder.rows()
