import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from simulations.flower import processes
from simulations.flower.processes import MARK, Reaper, marked, stop_marked

STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


def start(mark: str, command: str) -> subprocess.Popen[bytes]:
    """A shell in a session of its own, out of reach of any process group of ours."""
    environment = {MARK: mark, "PATH": os.environ["PATH"]}
    return subprocess.Popen(["sh", "-c", command], env=environment, start_new_session=True)


def test_children_without_the_mark_are_found_too(mark: str) -> None:
    # `env -i` clears the environment, as Ray's workers do by overwriting it.
    process = start(mark, "env -i /bin/sleep 60 & wait")
    wait_for(lambda: "/bin/sleep 60" in marked(mark).values())
    assert process.pid in marked(mark)
    stop_marked(mark)
    assert process.wait() != 0
    assert not marked(mark)


def test_processes_that_ignore_sigterm_are_killed(
    mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    process = start(mark, STUBBORN)
    wait_for(lambda: len(marked(mark)) >= 2)
    stop_marked(mark)
    assert process.wait() == -signal.SIGKILL
    assert not marked(mark)


def test_the_orphan_of_a_process_that_obeys_is_stopped(mark: str) -> None:
    process = start(mark, "env -i /bin/sleep 60 & exec sleep 60")
    wait_for(lambda: len(marked(mark)) == 2)
    pids = set(marked(mark))
    stop_marked(mark)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids - {process.pid}))


def test_nothing_to_stop(mark: str) -> None:
    stop_marked(mark)


def test_reaper_stops_what_is_left_at_the_end_of_its_block(mark: str) -> None:
    with Reaper(mark):
        process = start(mark, "sleep 60")
        wait_for(lambda: bool(marked(mark)))
    assert process.wait(timeout=5) == -signal.SIGTERM


def test_reaper_outlives_the_process_that_needed_it(mark: str, tmp_path: Path) -> None:
    folder = tmp_path / "cs-folder"
    folder.mkdir()
    (folder / "flower.db").touch()
    (folder / "run").symlink_to(tmp_path)  # a user's folder, which stays
    code = (
        "import os, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from simulations.flower.processes import Reaper\n"
        f"with Reaper({mark!r}, Path({str(folder)!r})):\n"
        f"    subprocess.Popen(['sleep', '60'], env={{'{MARK}': {mark!r}}})\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(processes.__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"started\n"
        assert marked(mark)
        holder.kill()
    wait_for(lambda: not marked(mark) and not folder.exists())
    assert tmp_path.is_dir()
