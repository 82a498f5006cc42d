"""What plain `flwr run .` prepares for itself."""

from pathlib import Path

import pytest

from client.answer import site_folder
from common.home import demo_folder
from common.plan import load_plan
from simulations.app import demo_plan, prepare_demo, wait_for_nodes
from simulations.experiment.prepare import load_prepared


class Nodes:
    """A grid whose SuperNodes come one after the other."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def get_node_ids(self) -> range:
        return range(self.counts.pop(0) if len(self.counts) > 1 else self.counts[0])


def test_the_demo_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    assert demo_folder(2) == tmp_path / "demo-2-sites"
    monkeypatch.delenv("CONSILIUM_HOME")
    assert demo_folder(2) == Path.home() / ".consilium" / "demo-2-sites"


def test_all_nodes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert wait_for_nodes(Nodes([0, 1, 3, 4, 4])) == 4  # type: ignore[arg-type]


def test_a_demo_for_every_number_of_nodes() -> None:
    plan = demo_plan(2)
    assert plan.simulation.sites == 2
    assert plan.federation.min_sites == 2
    assert demo_plan(6).federation.min_sites == 3


def test_the_demo_is_prepared_once_and_run_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = demo_plan(2)
    small = plan.simulation.model_copy(update={"phantom_images": 60})
    plan = plan.model_copy(update={"simulation": small})
    config = prepare_demo(plan, tmp_path / "demo")
    assert load_plan(Path(str(config["plan"]))) == plan
    assert site_folder(tmp_path / "demo" / "sites", 1).is_dir()
    assert set(config) == {"plan", "run"}  # where the sites are is not the server's to say
    prepared = (tmp_path / "demo" / "prepared.json").stat().st_mtime_ns
    monkeypatch.setattr("time.strftime", lambda layout: "later")
    again = prepare_demo(plan, tmp_path / "demo")
    assert again["run"] != config["run"]
    assert (tmp_path / "demo" / "prepared.json").stat().st_mtime_ns == prepared
    assert load_prepared(tmp_path / "demo") is not None
