"""A run that ended badly is explained in the words of the process that ended it."""

from pathlib import Path

import pytest

from common.checkpoint import write_json
from common.errors import InputError
from simulations.flower.ending import RunFailedError, judge, last_error, status, tail

CRASHED = """\x1b[92mINFO\x1b[0m :      round 1
\x1b[91mERROR\x1b[0m :     ServerApp raised an exception: No space left on device
Traceback (most recent call last):
  File "/x/server/app.py", line 3, in main
    raise error
OSError: [Errno 28] No space left on device

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/x/server/rounds.py", line 4, in run
common.errors.InputError: /run/x: found No space left on device; allowed: a writable file.
\x1b[91mERROR\x1b[0m :     An exception was raised: exiting
WARNING :  Task 1 (failed)
"""


def judged(folder: Path, ended: str, printed: str = "") -> RunFailedError:
    with pytest.raises(RunFailedError) as caught:
        judge(ended, folder, folder / "told.json", printed, folder / "flower.log")
    return caught.value


def test_a_completed_run_is_no_error(tmp_path: Path) -> None:
    judge("completed", tmp_path, tmp_path / "told.json", "OSError: x", tmp_path / "flower.log")


def test_the_servers_own_reason_and_code(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"status": "failed", "exit_code": 4, "reason": "too few"})
    error = judged(tmp_path, "failed", CRASHED)
    assert (str(error), error.exit_code) == ("too few", 4)


def test_what_it_could_not_write_to_its_run_folder(tmp_path: Path) -> None:
    """The disk of the run folder is full: state.json still says that the run goes on."""
    write_json(tmp_path / "state.json", {"status": "running"})
    write_json(tmp_path / "told.json", {"exit_code": 2, "reason": "no space"})
    error = judged(tmp_path, "running", CRASHED)
    assert (str(error), error.exit_code) == ("no space", 2)


@pytest.mark.parametrize(
    ("ended", "what"),
    [("", "the server did not come up"), ("running", "the server process died; resume the run")],
)
def test_a_server_that_said_nothing(tmp_path: Path, ended: str, what: str) -> None:
    # The reason of an earlier attempt, in the same folder, is not this one's.
    write_json(tmp_path / "state.json", {"status": "failed", "exit_code": 4, "reason": "earlier"})
    error = judged(tmp_path, ended, CRASHED)
    assert error.exit_code == 1
    expected = "common.errors.InputError: /run/x: found No space left on device"
    assert str(error).startswith(f"{what}; its last error: {expected}")
    assert str(error).endswith(f"; details: {tmp_path / 'flower.log'}")
    assert "it left no error (out of memory?)" in str(judged(tmp_path, ended, "INFO: fine\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("INFO: all is well\nno Error here, is there\n", ""),
        (CRASHED, "common.errors.InputError: /run/x: found No space left on device; allowed: a "
         "writable file."),
        ("ERROR :   ActorPool is empty\nINFO : x\n", "ActorPool is empty"),
        ("x\nRuntimeError\n", "RuntimeError"),
        ("(pid=7) ray.exceptions.OutOfMemoryError: Task was killed\n",
         "ray.exceptions.OutOfMemoryError: Task was killed"),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 488),
    ],
)  # fmt: skip
def test_the_last_error_in_a_log(text: str, expected: str) -> None:
    assert last_error(text) == expected


def test_only_this_attempt_is_read(tmp_path: Path) -> None:
    log, earlier = tmp_path / "flower.log", "OSError: früher\n".encode()
    log.write_bytes(earlier + b"\xffValueError: now\n")
    assert tail(log, len(earlier)) == "\ufffdValueError: now\n"


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(InputError, match=r"state\.json: found a list; allowed: a JSON object"):
        status(tmp_path)
