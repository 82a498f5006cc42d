"""A private federation through real Flower: budgets bind and the others go on."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from client import cli as site_cli
from client.ledger import Ledger, verify
from client.privacy.accounting import Charge, epsilon
from common.checkpoint import read_json
from common.plan import Plan, plan_from_json
from server import cli as server_cli
from simulations.experiment.prepare import Prepared, prepare
from simulations.flower.ending import RunFailedError
from simulations.flower.runtime import run_simulation

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
ROUNDS, STEPS, NOISE = 5, 2, 1.0


def make_plan(name: str, seed: int = 0, min_sites: int = 3) -> Plan:
    value: dict[str, object] = {
        "name": name,
        "seed": seed,
        "model": {"backbone": "tiny", "image_size": 32, "decoder_width": 8},
        "training": {"local_steps": STEPS, "batch_size": 8, "max_gradient_norm": None},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": NOISE, "images_per_unit": 1},
        "federation": {
            "rounds": ROUNDS, "min_sites": min_sites, "round_timeout": 120.0, "weighting": "equal",
        },
        "simulation": {
            "sites": 4, "phantom_images": 160, "partition": {"scheme": "hospitals"},
        },
    }  # fmt: skip
    return plan_from_json(json.dumps(value))


def spend(site: Path, rounds: int) -> float:
    """What so many rounds of the plan cost this site, worked out apart from its ledger."""
    [charge] = {*Ledger(site / "ledger.sqlite").charges()}
    return epsilon([Charge(NOISE, charge.sampling_rate, STEPS * rounds)], 1e-5)


def rounds_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Four hospitals, none of which has done anything yet."""
    run = tmp_path / "prepared"
    run.mkdir()
    return prepare(make_plan("first"), run, None, None, False, Console(file=io.StringIO()))


def ledger_of(prepared: Prepared, name: str) -> Path:
    return prepared.folder(name) / "ledger.sqlite"


def cap(prepared: Prepared, name: str, rounds: int) -> None:
    """Give a hospital a budget for so many rounds."""
    file = prepared.folder(name) / "site.yaml"
    value = yaml.safe_load(file.read_text())
    rate = min(1.0, 8 / value["nominal_units"])
    value["policy"]["epsilon"] = epsilon([Charge(NOISE, rate, STEPS * rounds)], 1e-5) * 1.0001
    file.write_text(yaml.safe_dump(value))


def federate(plan: Plan, run: Path, prepared: Prepared) -> str:
    text = io.StringIO()
    sites = prepared.sites_folder
    run_simulation(plan, run, sites, len(prepared.sites), Console(file=text, width=200))
    return text.getvalue()


def test_budgets_bind_while_the_others_go_on(prepared: Prepared, tmp_path: Path) -> None:
    short = prepared.sites[0]
    cap(prepared, short, 3)
    run = tmp_path / "first"
    shown = federate(make_plan("first"), run, prepared)
    state = read_json(run / "state.json")
    assert (state["status"], state["exit_code"], state["round"]) == ("completed", 0, ROUNDS)
    for record in rounds_of(run):
        refused = {short} if record["round"] > 3 else set()
        assert set(record["sites"]) == set(prepared.sites) - refused
        assert {f["site"] for f in record["failed"]} == refused
        assert all(f["code"] == "budget-spent" and f["fits"] == 0 for f in record["failed"])
        for name, said in record["sites"].items():
            assert (said["metrics"], said["seconds"], said["weight"]) == ({}, 0.0, 1.0)
            expected = spend(prepared.folder(name), record["round"])
            assert said["spent"]["epsilon"] == pytest.approx(expected)
    assert f"{short}: budget-spent: 0 more steps would fit" in shown
    ledger = Ledger(prepared.folder(short) / "ledger.sqlite")
    assert len(ledger.charges()) == 3
    assert [e.kind for e in ledger.entries()].count("refused") == 1  # repeats are merged
    assert_reports(prepared, run, short)


def assert_reports(prepared: Prepared, run: Path, short: str) -> None:
    """The officer's report and the coordinator's agree with the ledger."""
    folder = prepared.folder(short)
    runner = CliRunner()
    shown = runner.invoke(site_cli.app, ["ledger", "verify", str(folder)])
    assert shown.exit_code == 0, shown.output
    shown = runner.invoke(site_cli.app, ["report", "privacy", str(folder)])
    assert shown.exit_code == 0, shown.output
    page = (folder / "reports" / "privacy.html").read_text()
    assert "budget-spent" in page
    assert f"{spend(folder, 3):.2f}" in page
    shown = runner.invoke(server_cli.app, ["report", "privacy", str(run)])
    assert shown.exit_code == 0, shown.output
    page = (run / "privacy.html").read_text()
    assert short in page
    assert "budget-spent" in page


def test_a_second_plan_starts_from_what_was_really_spent(
    prepared: Prepared, tmp_path: Path
) -> None:
    short, longer, other, _ = prepared.sites
    cap(prepared, short, 3)
    cap(prepared, longer, 9)
    federate(make_plan("before", seed=4), tmp_path / "before", prepared)
    done = {name: len(Ledger(ledger_of(prepared, name)).charges()) for name in prepared.sites}
    assert (done[short], done[longer], done[other]) == (3, ROUNDS, ROUNDS)

    run = tmp_path / "after"
    federate(make_plan("after", seed=5, min_sites=2), run, prepared)
    assert read_json(run / "state.json")["exit_code"] == 0
    for record in rounds_of(run):
        assert short not in record["sites"]
        assert (longer in record["sites"]) == (record["round"] <= 4)  # 9 rounds, 5 were done
        expected = spend(prepared.folder(other), ROUNDS + record["round"])
        assert record["sites"][other]["spent"]["epsilon"] == pytest.approx(expected)
    for name in prepared.sites:
        verify(ledger_of(prepared, name))


def test_when_every_budget_is_spent_the_run_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    for name in prepared.sites:
        cap(prepared, name, 1)
    run = tmp_path / "all"
    with pytest.raises(RunFailedError, match=r"round 2 failed.*budget") as caught:
        federate(make_plan("all"), run, prepared)
    assert caught.value.exit_code == 3
    assert read_json(run / "state.json")["exit_code"] == 3
