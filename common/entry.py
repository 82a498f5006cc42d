"""How our programs start and end: one message and one exit code for whatever happens.

Exit codes: 0 done, 1 the work failed, 2 bad input or usage, 3 refused, 4 not enough sites;
128 and the number for a signal (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 141 a closed pipe).
Only light modules are imported here, so that Ctrl-C is answered from the first moment, while
torch and the rest are still being loaded.
"""

import errno
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from common.errors import ConsiliumError, Problem, escaped

if TYPE_CHECKING:
    import typer

TRACEBACK = "CONSILIUM_TRACEBACK"  # set to 1, every error shows where it was raised
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE
_STEPS = {
    errno.EACCES: "Give this user access to it, or choose another.",
    errno.EPERM: "Give this user access to it, or choose another.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.ENOSPC: "Free space, or choose another folder.",
    errno.EDQUOT: "Free space, or choose another folder.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}


def exit_on_error(name: str, load: Callable[[], "typer.Typer"]) -> NoReturn:
    """Run a command line and leave the process with its exit code; no traceback is ever shown.

    name: the program's, for its usage. load: imports the command line and returns it.
    """
    _prepare_streams()
    if os.environ.pop("PYTHONWARNINGS", None):  # "error", say, would end us by others' warnings
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python itself does
    code = _flushed(_outcome(name, load))
    if threading.current_thread() is threading.main_thread():
        # What follows is the interpreter's own end: Ctrl-C may no longer raise in it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


class OutputError(ConsiliumError):
    """Standard output or error cannot be written. exit_code: 141 when its reader went away."""

    code = "output"

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror}")
        self.exit_code = BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1


class _Stream(io.TextIOWrapper):
    """A standard stream whose errors can be told from those of files."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


def _prepare_streams() -> None:
    """Print whatever cannot be encoded as escapes; a closed stream swallows what it is given."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Also takes the free file number, which the next file would get otherwise.
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if type(old) is io.TextIOWrapper:  # not what a test or notebook has put there
            encoding, by_line, at_once = old.encoding, old.line_buffering, old.write_through
            safe = _Stream(old.detach(), encoding, "backslashreplace", None, by_line, at_once)
            setattr(sys, name, safe)


def _outcome(name: str, load: Callable[[], "typer.Typer"]) -> int:
    """Load and run the command line; say what ended it and return the exit code."""
    try:
        with terminable():
            with _left_at_once():
                app = load()
            return _invoke(name, app)
    except SystemExit as end:
        return _ended(end)
    except BaseException as error:
        if os.environ.get(TRACEBACK) == "1":
            _say("".join(traceback.format_exception(error)).rstrip())
        return _explained(error)


def _invoke(name: str, app: "typer.Typer") -> int:
    """Run one command, as typer's own `main` would, but let its errors through to us."""
    import click
    from typer.main import get_command

    try:
        with get_command(app).make_context(name, sys.argv[1:]) as context:
            context.command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        _say("aborted")
        return 1
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        _say(text.getvalue().strip())
        return error.exit_code
    return 0


def _ended(end: SystemExit) -> int:
    """The code of a SystemExit; that of a signal is said."""
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if code in (128 + signal.SIGTERM, 128 + signal.SIGHUP):
        _say(f"stopped by {signal.Signals(code - 128).name}")
    return code


def _explained(error: BaseException) -> int:
    """Say what an error means for who reads it, and return the exit code."""
    if isinstance(error, ConsiliumError):
        if error.exit_code != BROKEN_PIPE:  # who closes a pipe early has seen enough
            _say(f"error: {error}")
        return error.exit_code
    # An import that Ctrl-C cuts short may end in an error of the library's own.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _say("error: out of memory. Use smaller batches or images, or close other programs.")
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        return _system_said(error)
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        _say(f"error: {_not_text(error)}")
        return 2
    _say(f"error: {_fault(error)}")
    return 1


def _system_said(error: OSError) -> int:
    """Explain what the system would not do."""
    reason = error.strerror or type(error).__name__
    step = _STEPS.get(error.errno or 0, "Check that it is there and can be used.")
    if error.filename is None:
        _say(f"error: {reason}. {step}")
        return 1
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(os.fsdecode(n) if isinstance(n, str | bytes) else str(n) for n in names)
    _say(f"error: {Problem(where, '', reason, 'a file or folder that can be used', step)}")
    return 2


def _not_text(error: UnicodeEncodeError | UnicodeDecodeError) -> Problem:
    """The name or text that could not be encoded or decoded, as far as it fits on a line."""
    found = error.object[max(0, error.start - 60) : error.end + 60]
    text = found.decode(errors="surrogateescape") if isinstance(found, bytes) else found
    step = "Rename the file or folder, or save the text as UTF-8."
    return Problem("input", "", escaped(text), "names and text in UTF-8", step)


def _fault(error: BaseException) -> str:
    """An error that nobody foresaw: its type, and the file that says where it happened."""
    what = traceback.format_exception_only(error)[-1].strip()
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="consilium-fault-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.writelines(traceback.format_exception(error))
        details = f"{file.name} says where it happened (it may name files of yours)"
    except OSError:
        details = f"{TRACEBACK}=1 shows where it happened"
    return (
        f"{what}\nThis is a fault of the program, not of your input. {details}: please report it."
    )


def _say(text: str) -> None:
    """Print to stderr what any terminal takes; it may be full or gone."""
    with suppress(OutputError, OSError, ValueError):
        sys.stderr.write(escaped(text, keep="\n") + "\n" if text else "")
        sys.stderr.flush()


def _flushed(code: int) -> int:
    """The exit code, once all output is written, or that of the error when it cannot be."""
    error = _flush(sys.stdout)
    if error is not None:
        code = code or _explained(error)
    _flush(sys.stderr)
    return code


def _flush(stream: TextIO) -> OutputError | None:
    """Write what is in a stream's buffer, or drop it: the interpreter would fail on it again."""
    try:
        stream.flush()
    except OutputError as error:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
        return error
    return None


def _leave(number: int, frame: FrameType | None) -> None:
    """End through all `finally` blocks; a second signal must not end those."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that what was begun is ended properly.

    SystemExit's code is 128 and the signal's number. Under `nohup` SIGHUP stays ignored. In
    another thread than the main one, and within another `terminable`, nothing changes.
    """
    if _no_signals_here() or signal.getsignal(signal.SIGTERM) is _leave:
        yield
        return
    with _answered_by(_leave, (signal.SIGTERM, signal.SIGHUP)):
        yield


@contextmanager
def _left_at_once() -> Iterator[None]:
    """While modules are loaded there is nothing to end: a signal ends the process on the spot."""

    def quit_now(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        _say("interrupted" if number == signal.SIGINT else f"stopped by {name}")
        os._exit(128 + number)

    if _no_signals_here():
        yield
        return
    with _answered_by(quit_now, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        yield


def _no_signals_here() -> bool:
    return threading.current_thread() is not threading.main_thread()


@contextmanager
def _answered_by(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[signal.Signals, ...]
) -> Iterator[None]:
    """Handle signals, except those that whoever started us wants ignored."""
    before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old or signal.SIG_DFL)
