"""Real Flower, real Ray, real training: what only real processes can show."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from client.data.cache import build_cache
from client.data.nih import open_archive
from common.checkpoint import read_json
from common.plan import Plan
from simulations.experiment.hospitals import OPEN
from simulations.flower.ending import RunFailedError
from simulations.flower.processes import marked
from simulations.flower.runtime import run_simulation

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("icu", "paediatric", "rural", "ward")
pytestmark = pytest.mark.timeout(400)


def make_plan(**federation: object) -> Plan:
    return Plan.model_validate(
        {
            "name": "integration",
            "deterministic": True,
            "model": {"backbone": "tiny", "image_size": 32, "decoder_width": 8},
            "training": {"local_steps": 2, "batch_size": 4},
            "federation": {"rounds": 2, "min_sites": 2, "round_timeout": 60.0, **federation},
        }
    )


@pytest.fixture
def sites(nih_archive, tmp_path: Path) -> Path:
    """Four hospitals with six images each, over one cache."""
    archive = open_archive(nih_archive(patients=12, images=2))
    cache = build_cache(archive, tmp_path / "cache", 32, workers=1)
    images = cache.index["image"].to_numpy()
    folder = tmp_path / "sites"
    for number, name in enumerate(NAMES):
        own = images[number * 6 : number * 6 + 6]
        (folder / name).mkdir(parents=True)
        rows = {"image": own, "split": ["train"] * 4 + ["val"] * 2, "labelled": True}
        pd.DataFrame(rows).to_parquet(folder / name / "rows.parquet")
        (folder / name / "site.yaml").write_text(
            yaml.safe_dump({"name": name, "cache": "../../cache", "device": "cpu", **OPEN})
        )
    return folder


@pytest.fixture
def faulty_app(tmp_path: Path) -> Path:
    """Our app with the ClientApp that can misbehave."""
    folder = tmp_path / "app"
    for package in ("common", "client", "server", "simulations"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, folder / package, ignore=ignored)
    shutil.copy(Path(__file__).with_name("faulty_app.py"), folder / "client" / "faulty.py")
    shutil.copy(REPOSITORY / "LICENSE", folder / "LICENSE")
    text = (REPOSITORY / "pyproject.toml").read_text()
    changed = text.replace('clientapp = "client.app:app"', 'clientapp = "client.faulty:app"')
    assert changed != text
    (folder / "pyproject.toml").write_text(changed)
    return folder


def rounds_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def tag(monkeypatch: pytest.MonkeyPatch) -> str:
    """Marks the processes of this test alone: others may run on this machine as well."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("CONSILIUM_TEST", value)
    return value


def left_over() -> dict[int, str]:
    return marked(os.environ["CONSILIUM_TEST"], "CONSILIUM_TEST")


def nothing_left() -> bool:
    return not left_over()


def test_two_good_sites_and_two_bad_ones(sites: Path, faulty_app: Path, tmp_path: Path) -> None:
    (sites / "rural" / "fault").write_text("nan")
    (sites / "ward" / "fault").write_text("layout")
    run, text = tmp_path / "run", io.StringIO()
    run_simulation(make_plan(), run, sites, 4, Console(file=text, width=200), faulty_app)
    state = read_json(run / "state.json")
    assert (state["status"], state["exit_code"], state["round"]) == ("completed", 0, 2)
    assert sorted(state["finish"]["sites"]) == list(NAMES)
    for record in rounds_of(run):
        assert list(record["sites"]) == ["icu", "paediatric"]
        rejected = {(r["site"], r["code"]) for r in record["rejected"]}
        assert rejected == {("rural", "not-finite"), ("ward", "layout")}
    shown = text.getvalue()
    assert "site rural arrived" in shown
    assert "rural: rejected, not-finite: 1 of " in shown
    assert "round 2/2: " in shown
    assert "2 sites ok, 2 rejected" in shown
    assert left_over() == {}
    assert (run / "flower.log").stat().st_size > 0


@pytest.mark.slow
def test_all_sites_failing(sites: Path, faulty_app: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (sites / name / "fault").write_text("raise")
    (sites / "icu" / "fault").unlink()
    pd.DataFrame({"image": ["other.png"]}).to_parquet(sites / "icu" / "rows.parquet")
    run = tmp_path / "run"
    with pytest.raises(RunFailedError) as caught:
        run_simulation(make_plan(), run, sites, 4, Console(file=io.StringIO()), faulty_app)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "round 1 failed: 0 good answers, the plan needs 2" in message
    assert "icu: bad-data (error at the site)" in message
    assert "ward: client-app-raised-exception" in message
    assert str(tmp_path) not in message
    state = read_json(run / "state.json")
    assert (state["status"], state["exit_code"], state["reason"]) == ("failed", 1, message)
    assert left_over() == {}


# Run in a process of its own, so that it can be killed as a whole or its server alone.
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from common.plan import load_plan
from simulations.flower.runtime import run_simulation
plan, run, sites = map(Path, sys.argv[1:4])
run_simulation(load_plan(plan), run, sites, 2, Console())
"""


def drive(plan: Path, run: Path, sites: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(plan), str(run), str(sites)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_and_resume_end_with_the_same_encoder(sites: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(make_plan(rounds=6).model_dump(mode="json")))
    copy = tmp_path / "copy"
    shutil.copytree(sites, copy / "sites")
    shutil.copytree(tmp_path / "cache", copy / "cache")
    run, whole = tmp_path / "killed", tmp_path / "whole"

    def finished_rounds() -> int:
        file = run / "state.json"
        return read_json(file)["round"] if file.exists() else 0

    # First the server process alone: the wrapper notices, says so, and leaves nothing behind.
    driver = drive(plan, run, sites)
    wait_for(lambda: finished_rounds() >= 1)
    for pid, command in left_over().items():
        if "flwr-simulation" in command:  # which holds the ServerApp
            os.kill(pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "the server process died; resume the run" in " ".join(output.split())
    assert left_over() == {}
    before = finished_rounds()
    assert 1 <= before < 6
    # Then everything at once, by killing the wrapper: the reaper leaves nothing behind.
    driver = drive(plan, run, sites)
    wait_for(lambda: finished_rounds() > before)
    driver.kill()
    driver.communicate()
    wait_for(nothing_left, 20.0)
    assert finished_rounds() < 6
    driver = drive(plan, run, sites)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    assert "resumed after round " in output
    driver = drive(plan, whole, copy / "sites")
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    states = [read_json(folder / "state.json") for folder in (run, whole)]
    assert states[0]["status"] == states[1]["status"] == "completed"
    assert states[0]["encoder_sha256"] == states[1]["encoder_sha256"]
    assert [record["round"] for record in rounds_of(run)] == [1, 2, 3, 4, 5, 6]
    assert left_over() == {}


@pytest.mark.slow
def test_terminated_run_leaves_no_process(sites: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(make_plan(rounds=50).model_dump(mode="json")))
    driver = drive(plan, tmp_path / "run", sites)
    wait_for(lambda: "raylet" in " ".join(left_over().values()))
    driver.terminate()
    driver.communicate(timeout=30)
    assert driver.returncode == 128 + signal.SIGTERM
    assert left_over() == {}
