"""Our programs as a user types them, in this process: what they print, and their exit code.

A process of its own takes seconds to load torch; tests of what only a process has (signals, a
full disk, its environment) start one nevertheless.
"""

import importlib
import io
import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

MODULES = {"consilium-sim": "simulations", "consilium-site": "client", "consilium-server": "server"}


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


def typed(*words: object, cwd: Path | None = None) -> Ended:
    """Run the program that the first word names, from its entry to its exit code."""
    line = [str(word) for word in words]
    main = importlib.import_module(f"{MODULES[line[0]]}.__main__").main
    out, err, code = io.BytesIO(), io.BytesIO(), 0
    interrupt = signal.getsignal(signal.SIGINT)  # a program that ends gives it up
    with (
        redirect_stdout(io.TextIOWrapper(out, encoding="utf-8", write_through=True)),
        redirect_stderr(io.TextIOWrapper(err, encoding="utf-8", write_through=True)),
        chdir(cwd or "."),
        mock.patch.object(sys, "argv", line),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGINT, interrupt)
        # Here and not below: the program's own streams close what they write to.
        return Ended(code, out.getvalue().decode(), err.getvalue().decode())
