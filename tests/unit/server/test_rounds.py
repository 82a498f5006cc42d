import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import answer
from common.checkpoint import array_sha256, read_json, write_json
from common.errors import InputError, NotEnoughSitesError, RefusedError, RoundFailedError
from common.plan import Plan
from common.wire import Parcel
from server import run_folder
from server.roster import clean_code
from server.run_folder import RunFolder, begun, check_run, read_encoder
from server.transport import Reply
from tests.unit.server.federation_world import World, make_plan, start, target, weight

NAMES = ("ward", "icu", "rural")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch, NAMES)


def lines(world: World) -> list[dict]:
    text = (world.run_path / "rounds.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def with_delta(change):
    """A fault that changes the delta of every update, past the site's own guard."""

    def fault(action: str, parcel: Parcel) -> Parcel:
        if "delta" not in parcel.arrays:
            return parcel
        return replace(parcel, arrays={"delta": change(parcel.arrays["delta"])})

    return fault


def with_config(**values):
    def fault(action: str, parcel: Parcel) -> Parcel:
        return replace(parcel, config=parcel.config | values) if action == "train" else parcel

    return fault


def with_metrics(action_in: str, **metrics):
    def fault(action: str, parcel: Parcel) -> Parcel:
        return replace(parcel, metrics=metrics) if action_in in action else parcel

    return fault


class Odd:
    """A part of an answer that breaks whatever touches it."""

    def __getattr__(self, name: str) -> object:
        raise LookupError(f"no {name} " + "x" * 1000)


def test_three_rounds_are_the_weighted_mean_of_the_sites(world: World) -> None:
    folder = world.run(make_plan(wire="fp32"))
    layout, shared = start("local")
    total = sum(weight(name) for name in NAMES)
    for number in (1, 2, 3):  # McMahan et al., arXiv 1602.05629, algorithm 1
        steps = [
            weight(name)
            / total
            * (0.1 * (target(name, layout.size) - shared) + 0.01 * (number - 1))
            for name in NAMES
        ]
        shared = shared + sum(steps)
    np.testing.assert_allclose(folder.state.shared, shared, atol=2e-6)
    latest = read_encoder(world.run_path / "encoder-latest.safetensors", layout)
    assert array_sha256(latest) == read_json(world.run_path / "state.json")["encoder_sha256"]


def test_the_run_folder_tells_the_whole_story(world: World) -> None:
    world.run(make_plan())
    state = read_json(world.run_path / "state.json")
    assert (state["status"], state["exit_code"], state["round"]) == ("completed", 0, 3)
    assert state["finish"]["sites"]["icu"] == {"val_macro_auroc": 0.9}
    records = lines(world)
    assert [record["round"] for record in records] == [1, 2, 3]
    assert list(records[0]["sites"]) == ["icu", "rural", "ward"]
    assert records[1]["score"] == {"metric": "val_macro_auroc", "mean": pytest.approx(0.8)}
    assert records[-1]["encoder_sha256"] == state["encoder_sha256"]
    assert "site ward arrived" in world.lines
    assert any(line.startswith("round 2/3: ") and "3 sites ok" in line for line in world.lines)
    assert "mean val_macro_auroc 0.8000" in "\n".join(world.lines)
    assert make_plan() == run_folder.Plan.model_validate_json(
        json.dumps(run_folder.yaml.safe_load((world.run_path / "plan.yaml").read_text()))
    )


def test_best_encoder_is_the_best_scored_round_and_is_what_finish_sends(world: World) -> None:
    plan = make_plan(encoder="best", wire="fp32")
    world.run(plan)
    assert read_json(world.run_path / "state.json")["best"]["round"] == 2
    layout, _ = start("local")
    best = read_encoder(world.run_path / "encoder-best.safetensors", layout)
    assert array_sha256(best) == lines(world)[1]["encoder_sha256"]
    [sent] = answer.open_once(world.transport.folders[11]).finished
    np.testing.assert_allclose(sent, best, atol=1e-6)
    assert len(list((world.run_path / "checkpoints").iterdir())) == 2


def test_bytes_per_parameter_and_direction(world: World) -> None:
    world.run(make_plan())
    layout, _ = start("local")
    record = lines(world)[1]  # round 1 also carries the base
    assert record["bytes_up"] / 3 / layout.size <= 2.02
    assert record["bytes_down"] / 3 / layout.size <= 2.02
    assert lines(world)[0]["bytes_down"] == 3 * layout.size * (2 + 4)


def test_killed_at_any_write_and_resumed_ends_with_the_same_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(rounds=2, strategy={"name": "fedadam"})  # has moments to lose
    whole = World(tmp_path / "whole", monkeypatch, NAMES)
    expected = array_sha256(whole.run(plan).state.shared)
    written = [0]
    real = {name: getattr(run_folder, name) for name in ("write_arrays", "write_json")}

    class Killed(BaseException):
        """Nothing in the server may catch this, as nothing catches SIGKILL."""

    def kill_at(doomed: int) -> None:
        written[0] = 0

        def counting(name):
            def write(*arguments):
                if written[0] == doomed:
                    raise Killed
                written[0] += 1
                real[name](*arguments)

            return write

        for name in real:
            monkeypatch.setattr(run_folder, name, counting(name))

    died = 0
    for doomed in range(40):
        world = World(tmp_path / f"killed-{doomed}", monkeypatch, NAMES)
        kill_at(doomed)
        try:
            world.run(plan)
        except Killed:
            died += 1
        else:
            break
        kill_at(-1)
        folder = world.run(plan)
        assert array_sha256(folder.state.shared) == expected
        assert [record["round"] for record in lines(world)] == [1, 2]
        assert read_json(world.run_path / "state.json")["status"] == "completed"
    assert died >= 10


def test_a_torn_line_of_an_unfinished_round_is_dropped(world: World) -> None:
    plan = make_plan(rounds=1)
    world.run(plan)
    with (world.run_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "status": "fai')
    world.run(plan)
    assert [record["round"] for record in lines(world)] == [1]
    assert "resumed after round 1/1" in world.lines


def test_site_that_lost_its_base_is_sent_it_in_the_same_round(world: World) -> None:
    ward = world.transport.folders[11]

    def lose(action: str, parcel: Parcel) -> Parcel:
        if action == "train":
            for file in (ward / "state").glob("base-*"):
                file.unlink()
        return parcel

    world.transport.faults["ward"] = lose
    world.run(make_plan(rounds=2))
    to_ward = [arrays for action, node, arrays in world.transport.sent if node == 11]
    assert to_ward[1:4] == [("delta", "base"), ("delta",), ("delta", "base")]
    assert all(not record["failed"] and not record["missing"] for record in lines(world))


def test_base_is_not_sent_to_a_site_that_says_it_holds_it(world: World) -> None:
    plan = make_plan(rounds=1)
    world.run(plan)
    world.transport.sent.clear()
    world.run(plan)  # resumed: only the finish is left
    assert {arrays for action, _, arrays in world.transport.sent if action != "query.hello"} == {
        ("delta",)
    }


@pytest.mark.parametrize(
    ("fault", "code", "detail"),
    [
        (with_delta(lambda d: np.full_like(d, 0x7FC0)), "not-finite", "NaN"),
        (with_delta(lambda d: d[:-1]), "layout", "parameters, not"),
        (with_delta(lambda d: d.astype(np.int32)), "schema", "does not hold 'bf16' values"),
        (with_delta(lambda d: np.full_like(d, 0x4900)), "norm", "above"),
        (with_config(layout="0" * 64), "layout", "layout 000000000000"),
        (with_config(plan="0" * 64), "stale-plan", "plan 000000000000"),
        (with_config(round=7), "stale-round", "round 7, not 1"),
        (with_config(schema=99), "schema", "version 99"),
        (with_config(schema="x"), "schema", "not a number"),
        (with_config(covers="all"), "schema", "not a list"),
        (with_config(covers=["Broken Heart"]), "coverage", "Broken Heart"),
        (with_config(weight=-1.0), "weight", "-1"),
        (with_config(weight=1e12), "weight", "no count of images"),
        (with_config(weight=1e308), "weight", "no count of images"),
        (with_config(round=float("inf")), "schema", "infinity"),
        (with_config(schema=float("inf")), "schema", "infinity"),
        (with_config(covers=[["Mass"]]), "coverage", "Mass"),
        (with_metrics("train", val_dice=[0.5]), "schema", "metric val_dice is [0.5]"),
        (with_metrics("train", val_dice=1e308), "schema", "metric val_dice is 1e+308"),
        (with_delta(lambda d: Odd()), "schema", "LookupError: no nbytes x"),
        (with_config(seconds=float("nan")), "not-finite", "seconds"),
        (with_config(site="icu"), "schema", "in the name of 'icu'"),
    ],
)
def test_bad_update_is_rejected_by_name_and_the_round_goes_on(
    world: World, fault, code: str, detail: str
) -> None:
    world.transport.faults["ward"] = fault
    world.run(make_plan(rounds=1))
    [record] = lines(world)
    [rejected] = record["rejected"]
    assert (rejected["site"], rejected["code"]) == ("ward", code)
    assert detail in rejected["detail"]
    assert len(rejected["detail"]) <= 200
    assert list(record["sites"]) == ["icu", "rural"]


def test_huge_metrics_of_two_sites_do_not_end_the_run(world: World) -> None:
    fault = with_metrics("train", val_macro_auroc=1e308)
    world.transport.faults = {"ward": fault, "icu": fault}
    world.run(make_plan(rounds=1, min_sites=1))
    [record] = lines(world)
    assert [rejected["site"] for rejected in record["rejected"]] == ["icu", "ward"]


@pytest.mark.parametrize("value", [[0.5], 1e308, float("nan")])
def test_bad_metrics_at_the_finish_are_rejected_by_name(world: World, value: object) -> None:
    world.transport.faults["ward"] = with_metrics("finish", val_dice=value)
    world.run(make_plan(rounds=1))
    finish = read_json(world.run_path / "state.json")["finish"]
    assert list(finish["sites"]) == ["icu", "rural"]
    [rejected] = finish["rejected"]
    assert (rejected["site"], rejected["code"]) == ("ward", "schema")
    assert "metric val_dice is" in rejected["detail"]


def test_a_site_cannot_take_the_average_over_later(world: World) -> None:
    def grow(action: str, parcel: Parcel) -> Parcel:
        late = parcel.config.get("round", 1) > 1
        return with_config(weight=1e8)(action, parcel) if late else parcel

    world.transport.faults["ward"] = grow
    world.run(make_plan(rounds=2))
    assert [[r["code"] for r in record["rejected"]] for record in lines(world)] == [[], ["weight"]]
    assert "weight 1e+08, but 4 when" in lines(world)[1]["rejected"][0]["detail"]


def interrupt(world: World, plan: Plan, number: int) -> None:
    """Run the plan until its server is interrupted in round `number`."""

    def stop(action: str, parcel: Parcel) -> Parcel:
        if parcel.config.get("round") == number:
            raise KeyboardInterrupt
        return parcel

    world.transport.faults["ward"] = stop
    with pytest.raises(KeyboardInterrupt):
        world.run(plan)


def test_a_resumed_server_remembers_the_weights(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(rounds=2)
    interrupt(world, plan, 2)
    world.transport.faults["ward"] = with_config(weight=1e8)
    world.run(plan)
    assert [r["code"] for r in lines(world)[1]["rejected"]] == ["weight"]


def test_a_resumed_server_remembers_whose_a_name_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server was away a node has come that says that it is the ward, and greets first."""
    plan = make_plan(rounds=2)
    interrupt(world, plan, 2)
    assert read_json(world.run_path / "state.json")["names"] == {
        "11": "ward", "12": "icu", "13": "rural",
    }  # fmt: skip
    world.transport.faults.clear()
    world.transport.folders[14] = world.transport.folders[11]
    world.run(plan)
    record = lines(world)[1]
    assert list(record["sites"]) == ["icu", "rural", "ward"]
    [rejected] = record["rejected"]
    assert (rejected["site"], rejected["code"]) == ("node-14", "name")
    assert "another node's name" in rejected["detail"]


def test_a_resume_with_other_numbers_of_nodes_goes_on(world: World) -> None:
    plan = make_plan(rounds=2)
    interrupt(world, plan, 2)
    world.transport.faults.clear()
    world.transport.folders = {n + 10: f for n, f in world.transport.folders.items()}
    world.run(plan)
    assert list(lines(world)[1]["sites"]) == ["icu", "rural", "ward"]
    assert list(read_json(world.run_path / "state.json")["names"]) == ["21", "22", "23"]


def test_a_site_with_nearly_all_the_weight_is_named_and_held_to_its_share(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(make_plan(rounds=1))
    assert not any("of the weight" in line for line in world.lines)
    heavy = World(world.run_path / "x", monkeypatch, NAMES)
    heavy.transport.faults["icu"] = with_config(weight=1e4)
    folder = heavy.run(make_plan(rounds=1, wire="fp32"))
    assert "  icu: claims 99.9% of the weight of this round, has 50.0%" in heavy.lines
    assert lines(heavy)[0]["sites"]["icu"]["weight"] == 1e4
    layout, base = start("local")
    steps = {name: 0.1 * (target(name, layout.size) - base) for name in NAMES}
    # ward has 4 and rural 5 of what is left.
    step = steps["icu"] / 2 + (4 * steps["ward"] + 5 * steps["rural"]) / 18
    np.testing.assert_allclose(folder.state.shared, base + step, atol=2e-6)


def test_a_weight_and_a_norm_together_are_rejected(world: World) -> None:
    world.transport.faults["icu"] = with_config(weight=1e6)
    world.run(make_plan(rounds=1))
    [rejected] = lines(world)[0]["rejected"]
    assert (rejected["site"], rejected["code"]) == ("icu", "norm")
    assert "weight x L2 norm" in rejected["detail"]


def test_best_encoder_is_the_latest_while_no_round_is_scored(world: World) -> None:
    world.transport.faults = dict.fromkeys(NAMES, with_metrics("train"))
    world.run(make_plan(encoder="best"))
    state = read_json(world.run_path / "state.json")
    layout, _ = start("local")
    best = read_encoder(world.run_path / "encoder-best.safetensors", layout)
    assert state["best"] is None
    assert array_sha256(best) == state["encoder_sha256"]


def test_two_nodes_that_say_one_name_are_both_left_out(world: World) -> None:
    world.transport.folders[14] = world.transport.folders[11]
    world.run(make_plan(rounds=2))
    for record in lines(world):
        assert list(record["sites"]) == ["icu", "rural"]
        assert [(r["site"], r["code"]) for r in record["rejected"]] == [
            ("node-11", "name"),
            ("node-14", "name"),
        ]
        assert "says that it is 'ward', as another node does" in record["rejected"][0]["detail"]
    asked = [(action, node) for action, node, _ in world.transport.sent if action == "train"]
    assert {node for _, node in asked} == {12, 13}  # a private round would be paid for nothing


def test_a_name_stays_with_its_node_once_a_round_is_done(world: World) -> None:
    def come(action: str, parcel: Parcel) -> Parcel:
        if action == "train":
            world.transport.folders.setdefault(14, world.transport.folders[11])
        return parcel

    world.transport.faults["rural"] = come
    world.run(make_plan(rounds=3))
    for record in lines(world)[1:]:
        assert list(record["sites"]) == ["icu", "rural", "ward"]
        [rejected] = record["rejected"]
        assert (rejected["site"], rejected["code"]) == ("node-14", "name")
        assert "says that it is 'ward', which is another node's name" in rejected["detail"]


@pytest.mark.parametrize("site", ["..", ".", "a/b", "\x1b[31m", "node-12", "x" * 65, "", 7, ["a"]])
def test_what_is_no_name_names_nobody(world: World, site: object) -> None:
    def rename(action: str, parcel: Parcel) -> Parcel:
        return replace(parcel, config=parcel.config | {"site": site})

    world.transport.faults["ward"] = rename
    world.run(make_plan(rounds=1))
    [record] = lines(world)
    [rejected] = record["rejected"]
    assert (rejected["site"], rejected["code"]) == ("node-11", "schema")
    assert all(line.isprintable() for line in world.lines)
    finish = read_json(world.run_path / "state.json")["finish"]
    assert list(finish["sites"]) == ["icu", "rural"]


def test_nobody_finishes_in_anothers_name(world: World) -> None:
    def rename(action: str, parcel: Parcel) -> Parcel:
        return replace(parcel, config={"site": "icu"}) if "finish" in action else parcel

    world.transport.faults["ward"] = rename
    world.run(make_plan(rounds=1))
    finish = read_json(world.run_path / "state.json")["finish"]
    assert list(finish["sites"]) == ["icu", "rural"]
    assert [(r["site"], r["code"]) for r in finish["rejected"]] == [("ward", "schema")]


def test_second_and_unasked_answers_are_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site answers twice, and a node that nobody asked says that it lacks the base."""
    ask = world.transport.ask

    def flood(action: str, parcels, timeout: float):
        yield Reply(99, Parcel({}, {"site": "x", "error": "base-missing"}, {}), "base-missing")
        for reply in ask(action, parcels, timeout):
            yield reply
            yield reply
            yield Reply(reply.node, Parcel({}, {"error": "base-missing"}, {}), "base-missing")

    monkeypatch.setattr(world.transport, "ask", flood)
    world.run(make_plan(rounds=2))
    for record in lines(world):
        assert list(record["sites"]) == ["icu", "rural", "ward"]
        assert (record["rejected"], record["failed"], record["missing"]) == ([], [], [])
        assert record["unasked"] == ["icu", "node-99", "rural", "ward"]


@pytest.mark.parametrize("sites", [2, 3])
@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "fedavgm"])
@pytest.mark.parametrize("value", [0x4080, 0x6A00, 0x7F00])  # 4, 3.9e25, 1.7e38 in bfloat16
def test_a_huge_update_is_left_out_however_few_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: int, name: str, value: int
) -> None:
    world = World(tmp_path, monkeypatch, NAMES[:sites])

    def late(action: str, parcel: Parcel) -> Parcel:
        if parcel.config.get("round") != 2:
            return parcel
        return with_delta(lambda d: np.full_like(d, value))(action, parcel)

    world.transport.faults["ward"] = late
    folder = world.run(make_plan(min_sites=1, strategy={"name": name}))
    assert [r["code"] for r in lines(world)[1]["rejected"]] == ["norm"]
    assert np.isfinite(folder.state.shared).all()
    assert all(np.isfinite(moment).all() for moment in folder.state.strategy.values())
    hashes = [record["encoder_sha256"] for record in lines(world)]
    assert len(set(hashes)) == 3  # every round still moves the model


def test_two_sites_are_held_to_earlier_rounds_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, NAMES[:2])
    plan = make_plan(min_sites=1, max_share=1.0, wire="fp32")
    interrupt(world, plan, 3)
    norms = [said["norm"] for record in lines(world) for said in record["sites"].values()]

    def grow(action: str, parcel: Parcel) -> Parcel:
        factor = np.float32(10.5 * np.median(norms))
        return with_delta(lambda d: d / np.linalg.norm(d) * factor)(action, parcel)

    monkeypatch.setattr("server.firewall.START_FACTOR", 1000.0)  # that it is not what judges
    world.transport.faults["ward"] = grow
    world.run(plan)
    [rejected] = lines(world)[2]["rejected"]
    assert (rejected["site"], rejected["code"]) == ("ward", "norm")
    assert f"above {10 * np.median(norms):.4g}" in rejected["detail"]


def test_silent_site_is_missing_by_name(world: World) -> None:
    world.transport.faults["rural"] = lambda action, parcel: None if action == "train" else parcel
    world.run(make_plan(rounds=1))
    [record] = lines(world)
    assert record["missing"] == ["rural"]
    assert any("1 missing" in line for line in world.lines)


def test_site_that_left_is_missing_by_name(world: World) -> None:
    def leave(action: str, parcel: Parcel) -> Parcel:
        if action == "train":
            world.transport.folders.pop(13, None)
        return parcel

    world.transport.faults["rural"] = leave
    world.run(make_plan(rounds=2))
    assert [record["missing"] for record in lines(world)] == [[], ["rural"]]


def test_all_sites_failing_fails_the_run_and_names_each(world: World) -> None:
    for folder in world.transport.folders.values():
        (folder / "broken").touch()
    with pytest.raises(RoundFailedError) as caught:
        world.run(make_plan())
    message = str(caught.value)
    assert "round 1 failed: 0 good answers, the plan needs 2" in message
    for name in NAMES:
        assert f"{name}: internal (error at the site)" in message
    assert "/data/patients" not in message + "\n".join(world.lines)
    log = (world.transport.folders[11] / "reports" / "site.log").read_text()
    assert "secret text with a path /data/patients" in log
    [record] = lines(world)
    assert (record["status"], len(record["failed"])) == ("failed", 3)


def test_refusals_are_told_from_faults(world: World) -> None:
    (world.transport.folders[11] / "refuses").touch()
    world.run(make_plan(rounds=1))
    [record] = lines(world)
    name = record["failed"][0]["site"]
    assert record["failed"] == [{"site": name, "code": "budget-spent", "fits": 7}]
    assert f"  {name}: budget-spent: 7 more steps would fit" in world.lines
    assert "secret text" not in "\n".join(world.lines)


def test_a_round_that_only_refusals_have_stopped_is_refused(world: World) -> None:
    for node in (11, 12):
        (world.transport.folders[node] / "refuses").touch()
    with pytest.raises(RefusedError, match="its budget allows 7 more steps") as caught:
        world.run(make_plan())
    assert caught.value.exit_code == 3


def test_refusals_beside_faults_are_a_failure(world: World) -> None:
    (world.transport.folders[11] / "refuses").touch()
    (world.transport.folders[12] / "broken").touch()
    with pytest.raises(RoundFailedError, match="error at the site") as caught:
        world.run(make_plan())
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("said", [-1, 10**12, "many", 1.5, True])
def test_what_would_fit_is_not_believed_blindly(world: World, said: object) -> None:
    (world.transport.folders[11] / "refuses").touch()

    def boast(action: str, parcel: Parcel) -> Parcel:
        if "fits" in parcel.config:
            return Parcel({}, parcel.config | {"fits": said}, {})
        return parcel

    for name in NAMES:
        world.transport.faults[name] = boast
    world.run(make_plan(rounds=1))
    [record] = lines(world)
    assert "fits" not in record["failed"][0]


def test_failed_round_is_done_again_on_resume(world: World) -> None:
    expected = World(world.run_path / "x", pytest.MonkeyPatch(), NAMES)
    plan = make_plan()
    hash_of = {}
    for name, one in (("whole", expected), ("mended", world)):
        if name == "mended":
            (one.transport.folders[11] / "broken").touch()
            (one.transport.folders[12] / "broken").touch()
            with pytest.raises(RoundFailedError, match="1 good answers"):
                one.run(plan)
            (one.transport.folders[11] / "broken").unlink()
            (one.transport.folders[12] / "broken").unlink()
        hash_of[name] = array_sha256(one.run(plan).state.shared)
    assert hash_of["whole"] == hash_of["mended"]
    assert [record["status"] for record in lines(world)] == ["done"] * 3


def test_failing_finish_fails_the_run(world: World) -> None:
    def refuse(action: str, parcel: Parcel) -> Parcel:
        return Parcel({}, {"site": "x", "error": "No Path /x"}, {}) if "fin" in action else parcel

    world.transport.faults = dict.fromkeys(NAMES, refuse)
    with pytest.raises(RoundFailedError, match=r"the finish failed.*ward: unknown-error"):
        world.run(make_plan(rounds=1))
    assert read_json(world.run_path / "state.json")["status"] == "running"


def test_too_few_sites_at_the_start(world: World) -> None:
    plan = make_plan(min_sites=4)
    with pytest.raises(NotEnoughSitesError, match=r"needs 4 sites; .* came 3: "):
        world.run(plan)


def test_too_few_sites_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(action: str, parcel: Parcel) -> Parcel:
        if action == "train":
            monkeypatch.setattr(world.transport, "nodes", lambda: [11])
        return parcel

    world.transport.faults["rural"] = leave
    with pytest.raises(NotEnoughSitesError, match="1 sites are connected, the plan needs 2"):
        world.run(make_plan())
    assert begun(world.run_path)


def test_arrival_with_an_error_is_said_and_names_nobody(world: World) -> None:
    world.transport.faults["ward"] = lambda action, parcel: Parcel(
        {}, {"site": "icu", "error": "bad-cache"}, {}
    )
    world.run(make_plan(rounds=1))
    assert "site node-11 arrived, but says bad-cache" in world.lines
    assert lines(world)[0]["failed"] == [{"site": "node-11", "code": "bad-cache"}]


def test_a_step_that_the_model_does_not_take_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rounds.LONGEST_STEP", 0.03)  # of norms 0.1, 0.02, 0.02 x start's
    sizes = {1: 1e-3, 2: 1.0, 3: 1e-3}

    def scaled(action: str, parcel: Parcel) -> Parcel:
        factor = np.float32(sizes.get(parcel.config.get("round"), 1.0))
        return with_delta(lambda d: d * factor)(action, parcel)

    world.transport.faults = dict.fromkeys(NAMES, scaled)
    folder = world.run(make_plan(encoder="best", wire="fp32", strategy={"name": "fedavgm"}))
    records = lines(world)
    assert [record["status"] for record in records] == ["done"] * 3
    assert [record["not_applied"] and record["not_applied"]["code"] for record in records] == [
        None,
        "too-long",
        None,
    ]
    hashes = [record["encoder_sha256"] for record in records]
    assert hashes[0] == hashes[1] != hashes[2]
    assert any("round 2 changes nothing, too-long: step of L2 norm" in line for line in world.lines)
    assert folder.state.best.round == 3  # round 2 has the best scores, of models that are not used


def test_a_run_of_which_no_round_could_be_applied_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rounds.LONGEST_STEP", 1e-9)
    plan = make_plan(rounds=3)
    with pytest.raises(RoundFailedError, match="none of the 3 rounds could be applied"):
        world.run(plan)
    assert [record["not_applied"]["code"] for record in lines(world)] == ["too-long"] * 3
    with pytest.raises(RoundFailedError, match="none of the 3 rounds could be applied"):
        world.run(plan)  # a resume says the same


def test_the_best_round_is_the_median_sites_word(world: World) -> None:
    """One site that praises the first round to the skies does not choose it."""

    def praise(action: str, parcel: Parcel) -> Parcel:
        score = {1: 1e6, 2: 0.0, 3: 0.0}.get(parcel.config.get("round"), 0.0)
        return with_metrics("train", val_macro_auroc=score)(action, parcel)

    world.transport.faults["ward"] = praise
    folder = world.run(make_plan(encoder="best"))
    assert (folder.state.best.round, folder.state.best.score) == (2, 0.8)


def test_with_fewer_than_three_scores_the_last_round_is_taken(world: World) -> None:
    world.transport.faults["ward"] = with_metrics("train")
    folder = world.run(make_plan(encoder="best"))
    assert folder.state.best is None
    assert array_sha256(folder.best_encoder()) == array_sha256(folder.state.shared)


def test_resume_with_another_plan_is_refused(world: World) -> None:
    world.run(make_plan(rounds=1))
    with pytest.raises(InputError, match="the plan that it was started with"):
        world.run(make_plan(rounds=2))


def test_new_run_in_the_folder_of_an_old_one_is_refused(world: World) -> None:
    plan = make_plan(rounds=1)
    layout, base = start("local")
    world.run(plan)
    with pytest.raises(InputError, match="an earlier run"):
        RunFolder.create(world.run_path, plan, layout, base)


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    layout, _ = start("local")
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder.resume(tmp_path, make_plan(), layout)


def test_second_server_is_refused(tmp_path: Path) -> None:
    layout, base = start("local")
    first = RunFolder.create(tmp_path, make_plan(), layout, base)
    with pytest.raises(InputError, match="a server that is using it"):
        RunFolder.resume(tmp_path, make_plan(), layout)
    with pytest.raises(InputError, match="a server that is using it"):
        check_run(tmp_path, make_plan(), resume=True)  # before a simulation starts anything
    first.close()
    RunFolder.resume(tmp_path, make_plan(), layout).close()


def test_unwritable_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layout, base = start("local")
    with pytest.raises(InputError, match="a writable folder"):
        RunFolder.create(tmp_path / "file" / "run", make_plan(), layout, base)


def test_damaged_checkpoint_is_refused(world: World) -> None:
    plan = make_plan(rounds=1)
    world.run(plan)
    [file] = (world.run_path / "checkpoints").iterdir()
    arrays = run_folder.read_arrays(file)
    arrays["shared"][0] += 1
    run_folder.write_arrays(file, arrays)
    with pytest.raises(InputError, match="other parameters than the run saved"):
        world.run(plan)


def test_run_of_another_model_is_refused(world: World) -> None:
    plan = make_plan(rounds=1)
    world.run(plan)
    other, _ = start("shared")
    with pytest.raises(InputError, match="parameters of another model"):
        RunFolder.resume(world.run_path, plan, other)
    with pytest.raises(InputError, match="other parameters"):
        read_encoder(world.run_path / "encoder-latest.safetensors", other)


def test_a_run_that_never_began_can_be_started(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"status": "failed", "plan_sha256": None})
    assert not begun(tmp_path)
    layout, base = start("local")
    folder = RunFolder.create(tmp_path, make_plan(), layout, base)
    folder.fail(1, "reason")
    folder.close()
    state = read_json(tmp_path / "state.json")
    assert (state["status"], state["reason"], state["exit_code"]) == ("failed", "reason", 1)
    assert begun(tmp_path)


def test_shared_heads_travel_and_are_aggregated(tmp_path: Path, monkeypatch) -> None:
    world = World(tmp_path, monkeypatch, NAMES)
    folder = world.run(make_plan(heads="shared", rounds=1))
    layout, base = start("shared")
    head = np.concatenate(
        [np.full(np.prod(shape), not name.startswith("encoder."))
         for name, shape in zip(layout.names, layout.shapes, strict=True)]
    )  # fmt: skip
    moved = folder.state.shared != base
    assert moved[~head].mean() > 0.9
    assert not moved[head].any()  # the numeric sites annotate nothing


@pytest.mark.parametrize("code", ["secret-of-patient-7", "\x1b[31m/home/x", "", "x" * 10_000])
def test_only_codes_that_we_know_are_printed(code: str) -> None:
    assert clean_code("bad-cache") == "bad-cache"
    assert clean_code("budget-spent") == "budget-spent"
    assert clean_code(code) == "unknown-error"
