"""How a run ended, in the words of the process that ended it."""

import re
from pathlib import Path

from common.checkpoint import read_object
from common.errors import ConsiliumError
from server.run_folder import STATE

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a traceback, or a line of a log that says of itself that it is an error.
_EXCEPTION = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception|Killed|Exit)\b(?:: .*)?)$")
_LOGGED = re.compile(r"^(?:ERROR|CRITICAL|FATAL)\b\W*(.+)$")


class RunFailedError(ConsiliumError):
    """A run that ended badly, with the server's own reason and exit code."""

    code = "run-failed"

    def __init__(self, reason: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(reason)


def status(run: Path) -> str:
    """What state.json in a run folder says: running, failed or completed. Raises InputError."""
    return str(read_object(run / STATE, status=str)["status"])


def judge(ended: str, run: Path, told: Path, printed: str, log: Path) -> None:
    """Raise RunFailedError unless the server itself has said that the run is completed.

    ended: the status that it wrote to the run folder in this attempt, "" for none. told: the file
    in which it says why it failed, which need not lie on the run folder's disk. printed: what the
    processes have printed in this attempt; log: where a person finds that.
    """
    if ended == "completed":
        return
    if told.exists() or ended == "failed":
        state = read_object(told if told.exists() else run / STATE, reason=str, exit_code=int)
        raise RunFailedError(state["reason"], state["exit_code"])
    what = "the server process died; resume the run" if ended else "the server did not come up"
    error = last_error(printed)
    # A process that is killed from outside, by the kernel for its memory, says nothing.
    cause = f"its last error: {error}" if error else "it left no error (out of memory?)"
    raise RunFailedError(f"{what}; {cause}; details: {log}", 1)


def tail(log: Path, start: int) -> str:
    """What a log says from its byte `start` on."""
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def last_error(text: str) -> str:
    """The last exception in what processes have printed, or their last line marked as an error.

    "" when there is neither. An exception is what explains the errors that are logged after it.
    """
    lines = [_COLOURS.sub("", line).strip() for line in text.splitlines()]
    for pattern in (_EXCEPTION, _LOGGED):
        for line in reversed(lines):
            found = pattern.search(line)
            if found:
                return found[1][:500]
    return ""
