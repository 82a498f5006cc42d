"""Whose folder a node opens: only its own machine says."""

from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.app import own_folder
from common.errors import InputError
from common.wire import Parcel


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    for name in ("icu", "ward"):
        (tmp_path / "sites" / name).mkdir(parents=True)
        (tmp_path / "sites" / name / "site.yaml").touch()
    return tmp_path / "sites"


def test_a_deployed_node_names_its_folder(sites: Path) -> None:
    node = {"site-folder": str(sites / "ward"), "partition-id": 0}
    assert own_folder(node, {"CONSILIUM_SITES": str(sites)}) == sites / "ward"


def test_simulated_nodes_count_the_folders(sites: Path) -> None:
    environment = {"CONSILIUM_SITES": str(sites)}
    assert own_folder({"partition-id": 0}, environment) == sites / "icu"
    assert own_folder({"partition-id": 1}, environment) == sites / "ward"


def test_the_demo_is_what_is_left(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    (tmp_path / "demo-2-sites").mkdir()
    sites.rename(tmp_path / "demo-2-sites" / "sites")
    found = own_folder({"partition-id": 1, "num-partitions": 2}, {})
    assert found == tmp_path / "demo-2-sites" / "sites" / "ward"


@pytest.mark.parametrize(
    ("node", "sites", "found"),
    [
        ({"site-folder": "relative"}, "", "site-folder 'relative'"),
        ({"site-folder": 7}, "", "site-folder 7"),
        ({"site-folder": ""}, "/s", "site-folder ''"),
        ({}, "/s", "partition-id None"),
        ({"partition-id": -1}, "/s", "partition-id -1"),
        ({"partition-id": True}, "/s", "partition-id True"),
        ({"partition-id": 0}, "relative", "partition-id 0 and CONSILIUM_SITES 'relative'"),
        ({"partition-id": 0}, "", "no CONSILIUM_SITES, and num-partitions None"),
    ],
)
def test_a_node_without_a_folder_is_told(node: dict[str, object], sites: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        own_folder(node, {"CONSILIUM_SITES": sites})
    message = str(caught.value)
    assert f"node configuration: found {found}" in message
    assert "allowed: site-folder, an absolute path" in message
    assert "--node-config" in message


def test_the_coordinators_configuration_names_no_folder(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def answer(action: str, parcel: Parcel, folder: Path) -> Parcel:
        opened.append(folder)
        return Parcel({}, {}, {})

    monkeypatch.setattr(client.app, "answer", answer)
    monkeypatch.setenv("CONSILIUM_SITES", str(sites))
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    (tmp_path / "evil" / "trap").mkdir(parents=True)
    (tmp_path / "evil" / "trap" / "site.yaml").touch()
    evil = str(tmp_path / "evil")
    asked = dict.fromkeys(("sites", "site-folder", "CONSILIUM_SITES", "run", "plan"), evil)
    asked |= {"partition-id": 0, "num-partitions": 1}
    content = RecordDict(
        {"arrays": ArrayRecord(), "config": ConfigRecord(asked), "metrics": MetricRecord()}
    )
    for action in ("query.hello", "train", "query.finish"):
        message = Message(content=content, dst_node_id=1, message_type=action)
        context = Context(1, 1, {"partition-id": 1}, RecordDict(), asked)
        client.app.app(message, context)
    assert opened == [sites / "ward"] * 3
