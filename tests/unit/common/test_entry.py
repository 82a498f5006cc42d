"""However a program ends: one message, one exit code, no traceback."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common import entry
from common.entry import terminable
from common.errors import ConsiliumError, InputError, Problem, RefusedError

pytestmark = pytest.mark.usefixtures("hearing")
ROOT = Path(__file__).resolve().parents[3]
# A command line like ours, which does what its first argument says.
PROGRAM = """
import os, signal, sys, time
from common.entry import exit_on_error

def load():
    exec(os.environ.get("LOADING", ""))
    global typer
    import typer
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def main(do: str, number: int = 1) -> None:
        exec(do)

    return app

exit_on_error("program", load)
"""
UNPRINTABLE = "caf\udce9\n\x1b[31m\u2028x"


def start(do: str, *words: str, **options: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    environment.pop("PYTHONUNBUFFERED", None)  # what is in a buffer may fail at the very end
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM, do, *words]
    return subprocess.Popen(command, env=environment, text=True, **pipes | options)


def ran(do: str, *words: str, **options: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the program."""
    process = start(do, *words, **options)
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in (errors or "")
    return process.returncode, output or "", errors or ""


def test_done() -> None:
    assert ran("print('ü')") == (0, "ü\n", "")


def test_usage_errors_end_with_2() -> None:
    code, _, errors = ran("pass", "--number", "x\x1b[31m")
    assert code == 2
    assert errors.startswith("Usage: program [OPTIONS] DO")
    assert r"'x\x1b[31m' is not a valid int" in errors


def test_a_command_may_choose_its_code() -> None:
    assert ran("raise typer.Exit(1)") == (1, "", "")


def test_ctrl_c_while_modules_are_loaded() -> None:
    """Even within an import that would swallow the interrupt."""
    loading = (
        "print('loading', flush=True)\ntry:\n    time.sleep(60)\n"
        "except BaseException as e:\n    raise ImportError('broken') from None"
    )
    process = start("pass", env={"LOADING": loading})
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "stopped by SIGTERM\n"),
        (signal.SIGHUP, 129, "stopped by SIGHUP\n"),
    ],
)
def test_signals_end_through_the_finally_blocks(
    number: signal.Signals, code: int, message: str
) -> None:
    do = "try:\n    print('go', flush=True); time.sleep(60)\nfinally:\n    print('tidied')"
    process = start(do)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (code, "tidied\n", message)


def test_an_ignored_hangup_stays_ignored() -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    do = "signal.raise_signal(signal.SIGHUP); print('on')"
    assert ran(do, preexec_fn=nohup) == (0, "on\n", "")


def test_a_second_signal_does_not_end_the_tidying() -> None:
    do = (
        "try:\n    signal.raise_signal(signal.SIGHUP)\nfinally:\n"
        "    signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGHUP)\n"
        "    print('tidied')"
    )
    assert ran(do) == (129, "tidied\n", "stopped by SIGHUP\n")


@pytest.mark.parametrize("do", ["print('x')", "print('x' * 100_000)", "typer.echo('x')"])
def test_output_on_a_full_disk(do: str) -> None:
    with Path("/dev/full").open("w") as full:
        code, _, errors = ran(do, stdout=full)
    assert (code, errors) == (1, "error: the output cannot be written: No space left on device\n")


def test_errors_on_a_full_disk_keep_their_code() -> None:
    with Path("/dev/full").open("w") as full:
        assert ran("open('/no/such')", stderr=full)[0] == 2
        assert ran("open('/no/such')", stdout=full, stderr=full)[0] == 2


@pytest.mark.parametrize("do", ["print('x')", "print('x' * 100_000)", "typer.echo('x')"])
def test_a_reader_that_has_seen_enough(do: str) -> None:
    read, write = os.pipe()
    os.close(read)
    assert ran(do, stdout=write) == (141, "", "")
    os.close(write)


def test_closed_streams() -> None:
    def close() -> None:
        for number in (0, 1, 2):
            os.close(number)

    check = "f = open('/dev/null'); print('x'); sys.exit(f.fileno() < 3)"
    assert ran(check, preexec_fn=close)[0] == 0


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_any_name_can_be_printed_in_any_encoding(environment: dict[str, str]) -> None:
    do = (
        "print(os.fsdecode(b'caf\\xe9 \\xf0\\xa0\\xae\\xb7'));"
        "open(os.fsdecode(b'/no/\\xe9\\n\\x1b'))"
    )
    code, output, errors = ran(do, env=environment)
    assert code == 2
    assert output.startswith("caf\\udce9 ")
    assert errors.count("\n") == 1
    assert errors.startswith(r"error: /no/\xe9\n\x1b: found No such file or directory; allowed:")


def test_others_warnings_are_no_errors_of_ours() -> None:
    do = "import warnings; warnings.warn('old', DeprecationWarning); print('done')"
    assert ran(do, env={"PYTHONWARNINGS": "error"}) == (0, "done\n", "")


def test_a_fault_of_the_program(tmp_path: Path) -> None:
    code, _, errors = ran("{}['pixel\\x1b']", env={"TMPDIR": str(tmp_path)})
    assert code == 1
    assert r"error: KeyError: 'pixel\x1b'" in errors
    assert "This is a fault of the program, not of your input" in errors
    [file] = tmp_path.glob("consilium-fault-*.txt")
    assert str(file) in errors
    assert "Traceback (most recent call last)" in file.read_text()
    assert file.stat().st_mode & 0o77 == 0


def test_the_traceback_is_shown_to_who_asks() -> None:
    process = start("open('/no/such')", env={"CONSILIUM_TRACEBACK": "1"})
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "Traceback (most recent call last)" in errors
    assert errors.splitlines()[-1].startswith("error: /no/such: found No such file")


def raised(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = entry._explained(error)
    said = capsys.readouterr().err
    assert said.endswith("\n")
    return code, said.removesuffix("\n")


def test_what_each_error_becomes(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("a\nb.csv", "row 3", UNPRINTABLE, "text", "Mend it.")
    escaped = r"caf\xe9\n\x1b[31m\u2028x"
    said = rf"error: a\nb.csv: row 3: found {escaped}; allowed: text. Mend it."
    assert raised(InputError(problem), capsys) == (2, said)
    assert raised(RefusedError("no"), capsys) == (3, "error: no")
    assert raised(ConsiliumError("a\n\x07b"), capsys) == (1, "error: a\n\\x07b")
    assert raised(KeyboardInterrupt(), capsys) == (130, "interrupted")
    assert raised(MemoryError(), capsys)[0] == 1
    denied = PermissionError(errno.EACCES, "Permission denied", "images_001")
    code, said = raised(denied, capsys)
    assert (code, said.split(";")[0]) == (2, "error: images_001: found Permission denied")
    assert "Give this user access" in said
    two = OSError(errno.EXDEV, "Invalid cross-device link", b"a", None, b"b")
    assert raised(two, capsys)[1].startswith("error: a and b: found Invalid cross-device link")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert raised(full, capsys)[0] == 1
    code, said = raised(UnicodeEncodeError("utf-8", "/x/caf\udce9.png", 6, 7, "no"), capsys)
    assert code == 2
    assert r"found /x/caf\xe9.png; allowed: names and text in UTF-8" in said
    code, said = raised(UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "no"), capsys)
    assert (code, r"found caf\xe9;" in said) == (2, True)


def test_an_import_cut_short_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    assert raised(error, capsys) == (130, "interrupted")


def test_a_fault_without_a_place_for_its_details(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    code, said = raised(RecursionError("too deep"), capsys)
    assert code == 1
    assert said.startswith("error: RecursionError: too deep\n")
    assert "CONSILIUM_TRACEBACK=1 shows where it happened" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminable_leaves_through_the_finally_blocks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, terminable(), terminable():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) == before


def test_another_thread_cannot_take_signals() -> None:
    done = []

    def work() -> None:
        with terminable():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("package", ["client", "server", "simulations"])
def test_our_programs_load_nothing_heavy_before_they_answer(package: str) -> None:
    code = (
        f"import sys, {package}.__main__ as m; assert callable(m.main);"
        "sys.exit(any(n in sys.modules for n in ('torch', 'pandas', 'numpy', 'typer', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_in_the_first_moments_of_the_real_program() -> None:
    """While it loads pandas, torch and the rest, which takes seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations", "--help"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "numpy" in maps.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
