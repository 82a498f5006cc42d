"""How an experiment ends when something goes wrong: what it says, and what it leaves behind."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.checkpoint import read_json
from common.errors import ConsiliumError, InputError
from common.plan import Plan
from simulations.experiment import experiment
from simulations.experiment.baselines import train_baselines, write_baselines
from simulations.experiment.experiment import run_experiment
from simulations.experiment.folder import LOCK, Request, open_run
from simulations.experiment.prepare import prepare
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_plan

REPOSITORY = Path(__file__).resolve().parents[4]
SIMULATION = {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}}


def plan_of(**more: object) -> Plan:
    federation = {"rounds": 1, "min_sites": 2}
    return small_plan(**{"simulation": SIMULATION, "federation": federation} | more)


def silent() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (ZeroDivisionError("secret"), "ZeroDivisionError"),
        (ConsiliumError("no luck"), "no luck"),
    ],
)
def test_whatever_ends_a_run_is_raised_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "prepare", fail)
    open_run(plan_of(), tmp_path / "run", Request(tmp_path / "data", None))
    with pytest.raises(type(error)) as caught:
        run_experiment(plan_of(), tmp_path / "run", Request(tmp_path / "data", None), silent())
    assert caught.value is error
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (summary["status"], summary["reason"]) == ("failed", reason)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_report_that_fails_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        (tmp_path / "run" / "rounds.jsonl").write_text("no JSON\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "prepare", interrupt)
    open_run(plan_of(), tmp_path / "run", Request(tmp_path / "data", None))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan_of(), tmp_path / "run", Request(tmp_path / "data", None), silent())


def test_one_process_per_run_folder(tmp_path: Path) -> None:
    open_run(plan_of(), tmp_path / "run", Request(tmp_path / "data", None))
    with (tmp_path / "run" / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process at work in it"):
            run_experiment(plan_of(), tmp_path / "run", Request(tmp_path / "data", None), silent())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_disk_that_fails_while_preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment, "prepare", full)
    open_run(plan_of(), tmp_path / "run", Request(tmp_path / "data", None))
    with pytest.raises(InputError, match="found No space left on device"):
        run_experiment(plan_of(), tmp_path / "run", Request(tmp_path / "data", None), silent())


def test_a_baseline_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    plan = plan_of(evaluation={"baselines": ["local"]})
    (tmp_path / "run").mkdir()
    archive = nih_archive(patients=12)
    prepared = prepare(plan, tmp_path / "run", archive, None, False, silent())
    folders = write_baselines(prepared, plan)
    (folders[0] / "rows.parquet").write_bytes(b"damaged")
    done: list[str] = []
    failed = train_baselines(plan, folders, done.append)
    assert list(failed) == ["site-1"]
    assert "rows.parquet" in failed["site-1"]
    assert done == ["site-2"]


TRAIN = """
import sys
from pathlib import Path
from common.plan import load_plan
from simulations.experiment.baselines import train_baselines
if __name__ == "__main__":
    train_baselines(load_plan(Path(sys.argv[1])), [Path(sys.argv[2])], print)
"""


def _workers_at(folder: Path) -> list[int]:
    """Processes in whose environment the folder's own variable is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"BASELINE_TEST={folder}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


SOFT = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.usefixtures("hearing")
@pytest.mark.parametrize("number", [*SOFT, signal.SIGKILL])
def test_no_worker_goes_on_when_the_parent_ends(
    tmp_path: Path, nih_archive: ArchiveFactory, number: signal.Signals
) -> None:
    plan = plan_of(evaluation={"baselines": ["local"]}, federation={"rounds": 1000})
    (tmp_path / "run").mkdir()
    prepared = prepare(plan, tmp_path / "run", nih_archive(patients=12), None, False, silent())
    folder = write_baselines(prepared, plan)[0]
    (tmp_path / "plan.yaml").write_text(plan.to_json())
    (tmp_path / "train.py").write_text(TRAIN)
    words = [sys.executable, "train.py", "plan.yaml", str(folder)]
    environment = {**os.environ, "BASELINE_TEST": str(folder), "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "alone.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (folder / "alone.safetensors").exists()
    parent.send_signal(number)
    try:
        assert parent.wait(timeout=20) != 0
    finally:
        parent.kill()
    while (left := _workers_at(folder)) and time.monotonic() < deadline + 15:
        time.sleep(0.1)
    assert not left
