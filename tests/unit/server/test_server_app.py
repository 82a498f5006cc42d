"""Both Flower apps with Flower's own messages, in one process."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

import client.app
import server.app
from client import answer as courier
from common.checkpoint import read_json
from common.errors import InputError, NotEnoughSitesError, PlanError, Problem, RoundFailedError
from common.plan import Plan
from common.wire import Parcel
from server.app import FlowerTransport, read_settings
from tests.unit.server.federation_world import NumericSite, make_plan

NAMES = ("icu", "ward")
HELLO = Parcel({}, {"base_sha256": "0" * 64}, {})


class DirectGrid(Grid):
    """Flower's grid, with the ClientApp called at once instead of on another machine."""

    def __init__(self, run_config: dict[str, object], nodes: int = 2) -> None:
        self.config, self.count = run_config, nodes
        self.replies: dict[str, Message] = {}
        self.pulls = 0
        self.change = lambda message, reply: reply

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:
        raise NotImplementedError

    def create_message(self, *arguments: object, **options: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *arguments: object, **options: object) -> list[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(100, 100 + self.count)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"message-{len(self.replies)}-{self.pulls}-{message.metadata.dst_node_id}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            number = message.metadata.dst_node_id - 100
            context = Context(1, number, {"partition-id": number}, RecordDict(), self.config)
            reply = self.change(message, client.app.app(message, context))
            if reply is not None:
                self.replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        if self.pulls % 2:  # nothing yet: the transport has to look again
            return []
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(courier, "_sites", {})
    monkeypatch.setattr(courier.Site, "open", NumericSite)
    monkeypatch.setattr(server.app, "POLL_FIRST", 0.01)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    for name in NAMES:
        (tmp_path / "sites" / name).mkdir(parents=True)
        (tmp_path / "sites" / name / "site.yaml").touch()
    monkeypatch.setenv("CONSILIUM_SITES", str(tmp_path / "sites"))
    return {
        "plan": write_plan(tmp_path, make_plan(rounds=2)),
        "run": str(tmp_path / "run"),
        "resume": 0,
        "start-timeout": 1,
    }


def write_plan(folder: Path, plan: Plan) -> str:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    return str(folder / "plan.yaml")


def serve(grid: DirectGrid) -> dict[str, object]:
    try:
        server.app.main(grid, SimpleNamespace(run_config=grid.config))
    finally:
        state = Path(str(grid.config["run"])) / "state.json"
        result = read_json(state) if state.exists() else {}
    return result


def test_a_run_through_flowers_messages(config: dict[str, object], capsys) -> None:
    state = serve(DirectGrid(config))
    assert (state["status"], state["exit_code"], state["round"]) == ("completed", 0, 2)
    assert list(state["finish"]["sites"]) == list(NAMES)
    progress = (Path(str(config["run"])) / "progress.log").read_text()
    assert progress == capsys.readouterr().out
    assert "round 2/2: " in progress


def test_resume_goes_on(config: dict[str, object]) -> None:
    first = serve(DirectGrid(config))
    second = serve(DirectGrid(config | {"resume": 1}))
    assert first["encoder_sha256"] == second["encoder_sha256"]


def test_failing_sites_end_in_state_json_and_an_exception(
    config: dict[str, object], tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / "sites" / name / "broken").touch()
    with pytest.raises(RoundFailedError) as caught:
        serve(DirectGrid(config))
    state = read_json(Path(str(config["run"])) / "state.json")
    assert (state["status"], state["exit_code"]) == ("failed", 1)
    assert state["reason"] == str(caught.value)
    assert "icu: internal (error at the site); ward: internal" in state["reason"]


def test_flowers_errors_become_codes_without_their_text(config: dict[str, object]) -> None:
    grid = DirectGrid(config, nodes=2)

    def die(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        error = Error(code=ErrorCode.NODE_UNAVAILABLE, reason="/home/secret")
        return Message(error, reply_to=message)

    grid.change = die
    with pytest.raises(RoundFailedError, match="icu: node-unavailable") as caught:
        serve(grid)
    assert "secret" not in str(caught.value)


def test_malformed_reply(config: dict[str, object]) -> None:
    grid = DirectGrid(config)

    def strip(message: Message, reply: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    grid.change = strip
    with pytest.raises(RoundFailedError, match="node-100: malformed-reply"):
        serve(grid)


def test_silence_ends_with_the_timeout(config: dict[str, object], tmp_path: Path) -> None:
    write_plan(tmp_path, make_plan(rounds=1, round_timeout=0.2))
    grid = DirectGrid(config)
    grid.change = lambda message, reply: None if message.metadata.message_type == "train" else reply
    with pytest.raises(RoundFailedError, match=r"icu: no answer within 0.2 s"):
        serve(grid)


def test_too_few_sites_exit_code(config: dict[str, object]) -> None:
    with pytest.raises(NotEnoughSitesError):
        serve(DirectGrid(config | {"start-timeout": 0.05}, nodes=1))
    state = read_json(Path(str(config["run"])) / "state.json")
    assert (state["status"], state["exit_code"]) == ("failed", 4)


def test_bad_plan_is_recorded_and_the_folder_can_be_used_again(
    config: dict[str, object], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    good = plan.read_text()
    plan.write_text(good.replace("rounds: 2", "rounds: -2"))
    with pytest.raises(PlanError):
        serve(DirectGrid(config))
    state = read_json(tmp_path / "run" / "state.json")
    assert (state["status"], state["exit_code"]) == ("failed", 2)
    assert "key 'federation.rounds'" in state["reason"]
    plan.write_text(good)
    assert serve(DirectGrid(config))["status"] == "completed"


def test_state_of_an_earlier_run_is_not_overwritten(config: dict[str, object]) -> None:
    before = serve(DirectGrid(config))
    with pytest.raises(InputError, match="an earlier run"):
        serve(DirectGrid(config))
    assert read_json(Path(str(config["run"])) / "state.json") == before


def test_unexpected_error_is_recorded(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(transport: FlowerTransport) -> list[int]:
        raise OSError("connection lost")

    monkeypatch.setattr(FlowerTransport, "nodes", explode)
    with pytest.raises(OSError, match="connection lost"):
        serve(DirectGrid(config))
    state = read_json(Path(str(config["run"])) / "state.json")
    assert (state["status"], state["exit_code"]) == ("failed", 1)
    assert state["reason"] == "internal error: OSError: connection lost"


def test_more_nodes_than_site_folders(config: dict[str, object]) -> None:
    serve(DirectGrid(config, nodes=3))
    text = (Path(str(config["run"])) / "rounds.jsonl").read_text()
    assert '"failed":[{"site":"node-102","code":"bad-input"}]' in text


def test_a_node_that_does_not_know_its_folder_says_so_in_a_code(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_SITES", "not/absolute")
    transport = FlowerTransport(DirectGrid(config, nodes=1))
    [reply] = transport.ask("query.hello", {100: HELLO}, 5.0)
    assert reply.error == "bad-input"


def test_courier_never_raises(config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.app.own_folder", lambda *arguments: 1 / 0)
    transport = FlowerTransport(DirectGrid(config, nodes=1))
    [reply] = transport.ask("query.hello", {100: HELLO}, 5.0)
    assert reply.error == "internal"


def test_an_answer_of_another_node_does_not_count(config: dict[str, object]) -> None:
    grid = DirectGrid(config, nodes=2)

    def impostor(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 100:
            reply.metadata.__dict__["_src_node_id"] = 101
        return reply

    grid.change = impostor
    replies = list(FlowerTransport(grid).ask("query.hello", {100: HELLO, 101: HELLO}, 0.1))
    assert [reply.node for reply in replies] == [101]


def test_an_error_that_another_node_gives_does_not_count(config: dict[str, object]) -> None:
    grid = DirectGrid(config, nodes=1)

    def impostor(message: Message, reply: Message) -> Message:
        wrong = Message(Error(code=ErrorCode.UNKNOWN), reply_to=message)
        wrong.metadata.__dict__["_src_node_id"] = 101
        return wrong

    grid.change = impostor
    assert list(FlowerTransport(grid).ask("query.hello", {100: HELLO}, 0.1)) == []


def test_the_answer_to_another_question_does_not_count(config: dict[str, object]) -> None:
    grid = DirectGrid(config, nodes=1)

    def stale(message: Message, reply: Message) -> Message:
        reply.metadata.__dict__["_reply_to_message_id"] = "of an earlier round"
        return reply

    grid.change = stale
    assert list(FlowerTransport(grid).ask("query.hello", {100: HELLO}, 0.1)) == []


def test_bytes_that_flower_cannot_read_are_one_sites_fault(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = DirectGrid(config, nodes=2)
    pull = grid.pull_messages

    def choke(message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        if any(key.endswith("-100") for key in ids):
            raise ValueError("unexpected object head")
        return pull(ids)

    monkeypatch.setattr(grid, "pull_messages", choke)
    asked = {100: HELLO, 101: HELLO}
    replies = {r.node: r.error for r in FlowerTransport(grid).ask("query.hello", asked, 5.0)}
    assert replies == {100: "malformed-reply", 101: ""}


def npy(promised: int, held: int) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<i2", "fortran_order": False, "shape": (promised,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + b"\0" * (2 * held)


@pytest.mark.parametrize(
    "arrays",
    [
        {"delta": Array("int16", (10**15,), "numpy.ndarray", npy(10**15, 5))},  # 2 PB promised
        {"delta": Array("int16", (5,), "numpy.ndarray", npy(5, 6))},
        {"delta": Array("int16", (5,), "numpy.ndarray", b"")},
        {"delta": Array("int16", (5,), "numpy.ndarray", b"\x93NUMPY\x02\x00")},
        {"delta": Array("int16", (5,), "torch", npy(5, 5))},
        {f"a{number}": Array(np.zeros(1)) for number in range(1000)},
    ],
)
def test_arrays_are_looked_at_before_they_are_read(
    config: dict[str, object], arrays: dict[str, Array]
) -> None:
    grid = DirectGrid(config, nodes=1)

    def change(message: Message, reply: Message) -> Message:
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    grid.change = change
    [reply] = FlowerTransport(grid).ask("query.hello", {100: HELLO}, 5.0)
    assert reply.error == "malformed-reply"
    good = {"delta": Array("int16", (5,), "numpy.ndarray", npy(5, 5))}
    grid.change = lambda message, reply: (
        reply.content.update({"arrays": ArrayRecord(good)}),
        reply,
    )[1]
    [reply] = FlowerTransport(grid).ask("query.hello", {100: HELLO}, 5.0)
    assert reply.parcel is not None
    assert reply.parcel.arrays["delta"].shape == (5,)


def test_every_mistake_of_the_run_configuration_is_told() -> None:
    with pytest.raises(InputError) as caught:
        read_settings({"plan": "relative.yaml", "run": "", "resume": 2, "start-timeout": 0})
    assert len(caught.value.problems) == 4
    message = str(caught.value)
    assert "key 'plan': found 'relative.yaml'; allowed: an absolute path" in message
    assert "key 'run': found nothing" in message
    assert "`consilium-sim run` prepares the sites" in message
    assert "--run-config 'plan=" in message


def test_settings_are_read() -> None:
    settings = read_settings({"plan": "/p", "run": "/r", "resume": 1})
    assert (settings.plan, settings.run) == (Path("/p"), Path("/r"))
    assert settings.resume
    assert settings.start_timeout == 300.0


def test_why_it_failed_is_also_told_beside_the_run_folder(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder's own disk may be what is full."""
    told = tmp_path / "told.json"
    monkeypatch.setenv("CONSILIUM_ENDING", str(told))

    def full(name: str) -> Callable[..., None]:
        def write(*arguments: object) -> None:
            raise InputError(Problem(name, "", "No space left on device", "a file", "Go."))

        return write

    monkeypatch.setattr("server.run_folder.RunFolder.commit", full("round-00001"))
    monkeypatch.setattr("server.run_folder.RunFolder.fail", full("state.json"))
    with pytest.raises(InputError, match="round-00001: found No space left"):
        serve(DirectGrid(config))
    value = read_json(told)
    assert value["exit_code"] == 2
    assert value["reason"].startswith("round-00001: found No space left on device")
    assert read_json(tmp_path / "run" / "state.json")["status"] == "running"


def test_a_file_that_the_system_refuses_is_named(config: dict[str, object], tmp_path: Path) -> None:
    progress = tmp_path / "run" / "progress.log"
    progress.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        serve(DirectGrid(config))
    state = read_json(tmp_path / "run" / "state.json")
    assert (state["status"], state["exit_code"]) == ("failed", 2)
    assert state["reason"] == f"{progress}: Is a directory"


def test_links_are_followed_to_the_users_own_paths(tmp_path: Path) -> None:
    (tmp_path / "ü b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ü b")
    link = str(tmp_path / "link")
    settings = read_settings({"plan": f"{link}/plan.yaml", "run": link})
    assert settings.run == tmp_path / "ü b"
    assert settings.plan == tmp_path / "ü b" / "plan.yaml"


@pytest.mark.parametrize("damage", ["[]", "{", "null", '{"plan_sha256": ', ""])
def test_a_damaged_state_is_named(config: dict[str, object], tmp_path: Path, damage: str) -> None:
    serve(DirectGrid(config))
    state = tmp_path / "run" / "state.json"
    state.write_text(damage)
    with pytest.raises(InputError, match=r"state\.json: found .*; allowed: a JSON"):
        server.app.main(DirectGrid(config), SimpleNamespace(run_config=config | {"resume": 1}))
    assert state.read_text() == damage


def test_damaged_lines_of_rounds_are_dropped_on_resume(
    config: dict[str, object], tmp_path: Path
) -> None:
    serve(DirectGrid(config))
    file = tmp_path / "run" / "rounds.jsonl"
    before = file.read_text()
    file.write_text(before + '[1]\n{"status": "done"}\n{"status"\n')
    serve(DirectGrid(config | {"resume": 1}))
    assert file.read_text() == before
