"""The table of a phantom that was never drawn is that of the one that is."""

from pathlib import Path

import pandas as pd

from client.data.nih import open_archive
from simulations.partition import read_groups
from simulations.phantom import make_phantom, phantom_table


def test_a_table_without_pictures_is_the_archives_own(tmp_path: Path) -> None:
    make_phantom(tmp_path / "a", images=30, size=32, hospitals=3, seed=5, workers=1)
    archive = open_archive(tmp_path / "a")
    table, groups = phantom_table(30, 3, 5)
    drawn = archive.table.drop(columns=["path", "mask"])
    assert sorted(table.columns) == sorted(drawn.columns)
    pd.testing.assert_frame_equal(table[list(drawn.columns)], drawn)
    assert groups == read_groups(tmp_path / "a" / "hospitals.csv")
    assert archive.table["mask"].ne("").all()  # every phantom has a mask
