"""The ledger under fire: two processes at once, kill -9 anywhere, a full disk."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from client.ledger import Cap, Ledger, LedgerError, verify
from client.privacy.accounting import Charge, epsilon, most_steps
from common.errors import RefusedError
from tests.unit.client.ledger.ledgers import CAP, DELTA, STEP, reservation, started

OURS = str(Path("client") / "ledger")  # the folder whose lines are killed at
FORK = multiprocessing.get_context("fork")


def compete(ledger: Ledger, cap: Cap, start: Barrier, results: "Queue[str]") -> None:
    start.wait()
    try:
        ledger.reserve(reservation(number=os.getpid()), cap)
        results.put("won")
    except RefusedError as error:
        results.put(error.code)


def test_only_one_of_two_processes_gets_the_last_steps(tmp_path: Path) -> None:
    ledger = started(tmp_path, rounds=1)
    cap = Cap(ledger.project(STEP, DELTA), DELTA)
    # What the losers work out, too, is known before the fork: the race is for the file.
    epsilon([STEP] * 3, DELTA)
    most_steps([STEP] * 2, STEP, DELTA, cap.epsilon or 0.0)
    for trial in range(4):
        folder = tmp_path / str(trial)
        folder.mkdir()
        ledger = started(folder, rounds=1)
        start, results = FORK.Barrier(3), FORK.Queue()
        racers = [FORK.Process(target=compete, args=(ledger, cap, start, results)) for _ in "abc"]
        for racer in racers:
            racer.start()
        outcome = sorted(results.get(timeout=60) for _ in racers)
        for racer in racers:
            racer.join()
        assert outcome == ["budget-spent", "budget-spent", "won"]
        assert ledger.charges() == [STEP, STEP]
        assert verify(ledger.path).entries == 3


def exit_codes(work: Callable[[Path, Barrier], None], path: Path, count: int) -> list[int | None]:
    """Of so many processes that do the work on one ledger, all from the same moment on."""
    start = FORK.Barrier(count)
    workers = [FORK.Process(target=work, args=(path, start)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return [worker.exitcode for worker in workers]


def write_many(path: Path, start: Barrier) -> None:
    start.wait()
    ledger = Ledger(path)
    for number in range(15):
        ledger.open("patient")
        ledger.record("sent", {"process": os.getpid(), "round": number})
        ledger.head()


def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert exit_codes(write_many, path, 3) == [0, 0, 0]
    assert verify(path).entries == 1 + 3 * 15
    assert [e.kind for e in Ledger(path).entries()] == ["open"] + ["sent"] * 45


def begin(path: Path, start: Barrier) -> None:
    start.wait()
    Ledger(path).open("patient")


def test_processes_that_begin_a_ledger_at_once_all_have_it(tmp_path: Path) -> None:
    for trial in range(20):
        path = tmp_path / str(trial) / "ledger.sqlite"
        path.parent.mkdir()
        assert exit_codes(begin, path, 4) == [0, 0, 0, 0]
        assert [e.kind for e in Ledger(path).entries()] == ["open"]


def test_a_killed_process_leaves_its_charge(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    code = """
import os, signal, sys
from pathlib import Path
from client.ledger import Ledger
from tests.unit.client.ledger.ledgers import CAP, reservation
Ledger(Path(sys.argv[1])).reserve(reservation(), CAP)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(ledger.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ledger.charges() == [STEP]
    assert ledger.reserve(reservation(number=2), CAP).epsilon_before == epsilon([STEP], DELTA)


def killed_at(line: int, work: Callable[[], object]) -> bool:
    """Run `work` in a forked process that is killed before the given line, counted from 1, that
    it runs in the ledger's modules or in the writing of the anchor. True if it came so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            file = frame.f_code.co_filename
            if OURS not in file and not file.endswith("checkpoint.py"):
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


# Every line is in the slow half.
STEPS = [pytest.param(1, marks=pytest.mark.slow), 5]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_line_of_reserve_never_forgets(tmp_path: Path, step: int) -> None:
    """Afterwards the charge is there or not; what was there before is; and work can go on."""
    receipt, template = tmp_path / "receipt", tmp_path / "template"
    template.mkdir()
    before = started(template, rounds=1).entries()
    epsilon([STEP] * 2, DELTA)  # known before the fork

    def work() -> None:
        ledger.reserve(reservation(number=2), CAP)
        receipt.touch()

    line, alive = 1 - step, True
    charged: list[bool] = []
    while alive:
        line += step
        ledger = Ledger(shutil.copytree(template, tmp_path / str(line)) / "ledger.sqlite")
        alive = killed_at(line, work)
        after = ledger.entries()
        assert after[:2] == before
        assert verify(ledger.path, ledger.head()).entries == len(after)
        assert len(after) in (2, 3)
        assert len(after) == 3 or not receipt.exists()
        charged.append(len(after) == 3)
        ledger.open("patient")
        assert ledger.record("sent", {}).number == len(after) + 1
        assert ledger.charges() == [STEP] * (len(after) - 1)
    assert receipt.exists()
    assert line > 60
    # Once the charge is on the disk, no later kill takes it away.
    assert charged == sorted(charged)
    assert charged.count(True) * step > 10
    assert charged.count(False) * step > 10


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_line_of_open_leaves_nothing_or_a_ledger(tmp_path: Path, step: int) -> None:
    line, alive = 1 - step, True
    while alive:
        line += step
        folder = tmp_path / str(line)
        folder.mkdir()
        ledger = Ledger(folder / "ledger.sqlite")
        alive = killed_at(line, lambda ledger=ledger: ledger.open("patient"))
        ledger.open("patient")
        assert verify(ledger.path).entries == 1
    assert line > 40


def test_a_full_disk_charges_nothing_or_keeps_the_charge(tmp_path: Path) -> None:
    """Small limits of file size stand for the disk; the error is the ledger's own."""
    outcomes = []
    for blocks in (0, 4, 8, 16, 64):
        folder = tmp_path / str(blocks)
        folder.mkdir()
        ledger = started(folder, rounds=1)
        ledger.head()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (blocks * 1024, blocks * 1024))
            try:
                ledger.reserve(reservation(number=2), CAP)
                os._exit(0)
            except LedgerError as error:
                os._exit(3 if "free space" in str(error).lower() else 4)
            finally:
                os._exit(5)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 3)
        assert ledger.head().entries == 3 or status == 3
        assert ledger.charges()[:1] == [STEP]
        outcomes.append(status)
    assert outcomes[0] == 3
    assert outcomes[-1] == 0


@pytest.mark.parametrize("steps", [1, 4])
def test_a_ledger_whose_log_is_lost_is_found(tmp_path: Path, steps: int) -> None:
    """After a kill the last commits lie in SQLite's log only. Without it they are cut off."""
    ledger = started(tmp_path)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with ledger._store._connection("rw") as open_until_killed:
            open_until_killed.execute("SELECT * FROM entries").fetchall()
            ledger.reserve(reservation(Charge(2.0, 0.1, steps)), CAP)
            work()
    os.waitpid(child, 0)
    log = tmp_path / "ledger.sqlite-wal"
    assert log.stat().st_size > 0
    kept = log.read_bytes()
    log.unlink()
    with pytest.raises(LedgerError, match="1 entries where its anchor remembers 2"):
        ledger.entries()
    log.write_bytes(kept)
    assert len(kept) > 0
