"""Stop every process of a simulated run, even those that Ray and Flower have let go of.

All of them inherit one environment variable, so they are found in /proc however they were
started. Run as a program, this file is the reaper: it waits until its standard input closes,
which the kernel does when the process that holds the other end ends (Ctrl-C and kill -9
included), then stops whatever carries the mark and removes their folder. Standard library only:
it starts in 20 ms.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

MARK = "CONSILIUM_RUN"
GRACE = 3.0  # seconds between asking and killing


def marked(mark: str, variable: str = MARK) -> dict[int, str]:
    """Processes (id: command line) that carry the mark, and all their descendants.

    Descendants count as well, since Ray's workers overwrite the memory that /proc shows as
    their environment when they set their title.
    """
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if status[0] == "Z":
                continue
            parents[int(entry.name)] = int(status[1])
            if f"{variable}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = ""
        except (OSError, IndexError):  # gone meanwhile, or another user's
            continue
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found.update(dict.fromkeys(children, ""))
        grown = bool(children)
    found.pop(os.getpid(), None)
    return {pid: _command(pid) for pid in found}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def stop_marked(mark: str) -> None:
    """SIGTERM to all marked processes, SIGKILL to those that stay, until none is left."""
    deadline = time.monotonic() + GRACE
    doomed = set(_signal(marked(mark), signal.SIGTERM))
    while time.monotonic() < deadline and (alive := {p for p in doomed if _alive(p)}):
        # A dying parent's children lose the trail that leads to them: keep all ever seen.
        doomed = alive | set(marked(mark))
        time.sleep(0.1)
    looks = 2  # that find nothing: a child forked while its parent is killed is missed by one
    while looks > 0:
        doomed = {p for p in doomed if _alive(p)} | set(marked(mark))
        _signal(dict.fromkeys(doomed, ""), signal.SIGKILL)
        looks = 2 if doomed else looks - 1
        time.sleep(0.1)


def _signal(processes: Mapping[int, str], number: int) -> list[int]:
    reached = []
    for pid in processes:
        try:
            os.kill(pid, number)
            reached.append(pid)
        except ProcessLookupError:
            continue
    return reached


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


class Reaper:
    """A context in which marked processes may run; none is left when it ends, however it ends.

    folder: theirs, which goes with them.
    """

    def __init__(self, mark: str, folder: Path | None = None) -> None:
        self._arguments = [mark] if folder is None else [mark, str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Reaper":
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach it
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


if __name__ == "__main__":
    sys.stdin.read()
    stop_marked(sys.argv[1])
    for left in sys.argv[2:]:
        shutil.rmtree(left, ignore_errors=True)
