"""Whole runs in surroundings that are not made for them: real processes, signals, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.checkpoint import read_json
from simulations.flower.processes import marked

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = """
name: small
seed: 2
model: {backbone: tiny, image_size: 32, decoder_width: 8}
training: {local_steps: 2, batch_size: 8, head_epochs: 0}
federation: {rounds: 1, min_sites: 2, round_timeout: 120}
evaluation: {bootstrap: 0, baselines: []}
simulation: {sites: 2, phantom_images: 80, partition: {scheme: iid}}
"""
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("hearing")]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(PLAN)
    return file


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the processes of this test inherit, however they were started."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("CONSILIUM_TEST", value)
    return value


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """The real program in a process of its own, as a shell in a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "simulations", *map(str, words)],
        cwd=REPOSITORY, env=os.environ | environment, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def ran(*words: object, **environment: str) -> tuple[int, str, str]:
    process = start(*words, **environment)
    try:
        output, errors = process.communicate(timeout=500)
    finally:
        process.kill()
    assert "Traceback" not in errors
    return process.returncode, output, errors


def wait_for(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_in_foreign_surroundings(plan: Path, tmp_path: Path, mark: str) -> None:
    """A long TMPDIR, another Ray cluster, proxies that lead nowhere, and a folder of any name."""
    tmpdir = tmp_path / ("t" * (100 - len(str(tmp_path)) - 1) or "t")
    tmpdir.mkdir()
    assert len(str(tmpdir)) >= 60
    run = tmp_path / "a \"ü 𠮷' $HOME\\#=%b"
    code, output, errors = ran(
        *("run", plan, "--out", run, "--json"),
        TMPDIR=str(tmpdir), RAY_ADDRESS="1.2.3.4:6379", RAY_TMPDIR=str(tmpdir),
        ALL_PROXY="socks5://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9", http_proxy="::garbage",
        GRPC_PROXY="http://127.0.0.1:9", FLWR_HOME=str(tmp_path / "flower"), PYTHONSTARTUP="/no",
        PYTHONWARNINGS="error", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert code == 0, errors
    assert json.loads(output)["status"] == "completed"
    assert read_json(run / "state.json")["status"] == "completed"
    assert read_json(run / "summary.json")["rounds"] == 1
    assert not (tmp_path / "flower").exists()
    # Nothing of Ray's or Flower's lies in the user's folder, and nobody is left.
    assert not [path for path in tmpdir.iterdir() if path.name.startswith(("cs-", "ray"))]
    assert marked(mark, "CONSILIUM_TEST") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds the decoded images, but not the model's checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if not mounted or mounted.returncode:
        pytest.skip("only a user who may mount a file system can make a small one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_in_the_servers_own_words(
    plan: Path, small_disk: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    assert ran("phantom", archive, "--images", 40, "--size", 64, "--hospitals", 2)[0] == 0
    code, _, errors = ran("run", plan, "--data", archive, "--out", small_disk / "run")
    assert code == 2
    assert "No space left on device" in errors
    assert str(small_disk / "run") in errors
    assert "server process died" not in errors


@pytest.mark.slow
def test_a_closed_terminal_leaves_a_report_and_nothing_else(
    plan: Path, tmp_path: Path, mark: str
) -> None:
    plan.write_text(PLAN.replace("rounds: 1", "rounds: 500"))
    run, homes = tmp_path / "run", set(Path("/tmp").glob("cs-*"))
    process = start("run", plan, "--out", run, TMPDIR=str(tmp_path))
    wait_for(lambda: "raylet" in " ".join(marked(mark, "CONSILIUM_TEST").values()))
    os.killpg(process.pid, signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (129, "stopped by SIGHUP\n")
    summary = read_json(run / "summary.json")
    assert (summary["status"], summary["reason"]) == ("failed", "interrupted")
    assert (run / "report.html").exists()
    assert set(Path("/tmp").glob("cs-*")) <= homes
    wait_for(lambda: marked(mark, "CONSILIUM_TEST") == {}, 20)
