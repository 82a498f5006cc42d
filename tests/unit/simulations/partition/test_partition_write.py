"""Site folders on disk, the summary, the printed table and the figure."""

import io
import json
import shutil
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
import yaml
from rich.console import Console

from common.errors import PartitionError
from common.findings import FINDINGS
from common.simulated import PartitionPlan
from simulations.partition import (
    Partition,
    draw_summary,
    partition,
    print_summary,
    summary,
    write_sites,
)
from tests.unit.simulations.partition.partition_tables import hand_table, make_table


@pytest.fixture(scope="module")
def parts() -> Partition:
    spec = PartitionPlan(findings_per_site=(5, 8), label_fraction=(1.0, 0.5, 0.0))
    return partition(make_table(unlabelled=0.1), spec, 3, seed=0)


@pytest.fixture(scope="module")
def folders(parts: Partition, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("run")
    (root / "cache").mkdir()
    return write_sites(parts, root / "cache", root / "new" / "sites", device="cpu")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def printed(parts: Partition) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_summary(console, parts)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_site_folder_holds_what_a_site_needs(parts: Partition, folders: list[Path]) -> None:
    assert [folder.name for folder in folders] == ["outpatient", "ward", "icu"]
    for folder in folders:
        settings = yaml.safe_load((folder / "site.yaml").read_text())
        assert settings == {
            "name": folder.name,
            "cache": "../../../cache",
            "rows": "rows.parquet",
            "annotates": list(parts.annotates[folder.name]),
            "device": "cpu",
        }
        assert (folder / settings["cache"]).is_dir()
        assert (folder / "state").is_dir()
        assert (folder / "reports").is_dir()
        rows = pd.read_parquet(folder / settings["rows"])
        assert rows.equals(parts.sites[folder.name][["image", "split", "labelled"]])


def test_the_overview_beside_the_sites(parts: Partition, folders: list[Path]) -> None:
    out = folders[0].parent
    assert pd.read_parquet(out / "global_test.parquet").equals(parts.test)
    overview = json.loads((out / "partition.json").read_text())
    assert overview["seed"] == 0
    assert overview["spec"]["findings_per_site"] == [5, 8]
    assert overview["sites"]["icu"]["images"] == len(parts.sites["icu"])
    assert overview["sites"]["icu"]["annotates"] == list(parts.annotates["icu"])
    assert sum(overview["test"]["by_site"].values()) == len(parts.test)
    missing = next(finding for finding in FINDINGS if finding not in parts.annotates["icu"])
    assert overview["sites"]["icu"][missing] is None
    height, width = matplotlib.image.imread(out / "partition.png").shape[:2]
    assert width > 1000
    assert height > 300
    assert names(out.parent) == ["sites"]  # no draft left


def test_sites_and_cache_can_move_together(parts: Partition, tmp_path: Path) -> None:
    (tmp_path / "run" / "cache").mkdir(parents=True)
    write_sites(parts, tmp_path / "run" / "cache", tmp_path / "run" / "sites")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    ward = tmp_path / "moved" / "sites" / "ward"
    assert (ward / yaml.safe_load((ward / "site.yaml").read_text())["cache"]).is_dir()


def test_an_out_behind_a_link_finds_its_cache(parts: Partition, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    folder = write_sites(parts, tmp_path / "cache", tmp_path / "link" / "sites")[0]
    assert (folder / yaml.safe_load((folder / "site.yaml").read_text())["cache"]).is_dir()


def test_an_empty_out_is_taken(parts: Partition, tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    assert all(folder.is_dir() for folder in write_sites(parts, tmp_path, tmp_path / "sites"))


def test_an_out_in_use_is_refused_and_kept(parts: Partition, tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine.txt").write_text("kept")
    with pytest.raises(PartitionError, match="found a folder with files in it"):
        write_sites(parts, tmp_path, tmp_path / "sites")
    with pytest.raises(PartitionError, match="found a file; allowed: a new or an empty folder"):
        write_sites(parts, tmp_path, tmp_path / "sites" / "mine.txt")
    assert (tmp_path / "sites" / "mine.txt").read_text() == "kept"
    assert names(tmp_path) == ["sites"]


def test_an_out_that_cannot_be_made(parts: Partition, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PartitionError, match="allowed: a folder that can be written"):
        write_sites(parts, tmp_path, tmp_path / "file" / "deep" / "sites")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    table = hand_table({str(number): "P" for number in range(6)})
    parts = partition(table, PartitionPlan(case_mix=("outpatient",)), 1, seed=0)
    endless = {"x" * 300: parts.sites["outpatient"]}  # no file system takes this name
    broken = Partition(
        endless, {"x" * 300: FINDINGS}, parts.test, parts.left_out, parts.spec, 0, table
    )
    with pytest.raises(PartitionError, match="found File name too long"):
        write_sites(broken, tmp_path, tmp_path / "sites")
    assert names(tmp_path) == []


def test_summary_counts_by_hand() -> None:
    table = hand_table({"1": "PA", "2": "P", "3": "A", "4": "P?"}, {"2": 20.0, "3": 30.0})
    table["split"] = ["train_val"] * 4 + ["test"] * 2
    table.loc[[2, 4], "Edema"] = 1
    table.loc[2, "sex"] = "M"
    table.loc[3, "labelled"] = False
    frame = summary(partition(table, PartitionPlan(scheme="iid"), 1, seed=0), table)
    assert frame.index.tolist() == ["site-1", "global test"]
    site, test = frame.loc["site-1"], frame.loc["global test"]
    assert site["patients"] == 3
    assert (site["images"], site["train"] + site["val"], site["labelled"]) == (4, 4, 3)
    assert (site["PA"], site["AP"], site["AP %"]) == (2, 2, 50.0)
    assert site["median age"] == 30.0
    assert site["women %"] == pytest.approx(200 / 3)
    assert (site["Edema"], site["Hernia"], test["Edema"]) == (1, 0, 1)
    assert (test["patients"], test["images"], test["AP %"]) == (1, 2, 0.0)


def test_print_side_by_side(parts: Partition) -> None:
    text = printed(parts)
    assert "3 hospitals, scheme case-mix" in text
    assert all(name in text for name in (*parts.sites, *FINDINGS, "global test", "median age"))
    edema = int(summary(parts, parts.table).loc["global test", "Edema"])
    assert f"{edema} (" in text


def test_print_many_hospitals_in_rows() -> None:
    parts = partition(make_table(), PartitionPlan(scheme="iid"), 12, seed=0)
    text = printed(parts)
    assert "site-12" in text
    assert "Hernia" not in text


def test_print_what_is_left_out() -> None:
    parts = partition(make_table(), PartitionPlan(), 2, seed=0)
    line = f"Left out: {len(parts.left_out)} images (no hospital of the plan takes"
    assert line in printed(parts)


def test_the_figure_of_many_hospitals_is_cut_and_says_so() -> None:
    parts = partition(make_table(), PartitionPlan(scheme="iid", label_fraction=None), 45, seed=0)
    figure = draw_summary(summary(parts, parts.table), "Title")
    assert figure.get_suptitle() == "Title (5 more hospitals not drawn)"
    assert len(figure.axes[0].get_yticks()) == 41


def test_the_figure_of_an_archive_without_labels_or_views() -> None:
    table = hand_table({str(number): "?" for number in range(6)})
    table["labelled"] = False
    table[list(FINDINGS)] = -1
    parts = partition(table, PartitionPlan(scheme="iid"), 1, seed=0)
    figure = draw_summary(summary(parts, table), "Masks")
    assert {text.get_text() for text in figure.axes[0].texts} == {"-"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unknown"]
