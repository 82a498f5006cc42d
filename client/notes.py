"""The site's own notes, such as reports/site.log with the text of errors, which never leaves."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

# Whoever may ask anything, any number of times, must not fill the hospital's disk with it.
MOST_BYTES = 10_000_000  # of a file of notes, and of the one before it
MOST_TEXT = 20_000  # characters of one note


def append(file: Path, text: str) -> None:
    """Append lines to a file of notes. A full one becomes FILE.1, in the place of the one before.

    Raises OSError when it cannot be written.
    """
    file.parent.mkdir(exist_ok=True)
    if file.exists() and file.stat().st_size > MOST_BYTES:
        file.replace(file.with_name(file.name + ".1"))
    with file.open("a", encoding="utf-8", errors="backslashreplace") as notes:
        notes.write(text + "\n")


def log(reports: Path, text: str) -> None:
    """Append to the site's log. A log that can't be written must not silence the answer."""
    at = datetime.now().isoformat(sep=" ", timespec="milliseconds")
    with suppress(OSError):
        append(reports / "site.log", f"{at} {text[:MOST_TEXT]}")


@contextmanager
def failing_quietly(reports: Path, what: str) -> Iterator[None]:
    """Whatever fails in the block goes to the site's log, and nowhere else."""
    try:
        yield
    except Exception:
        log(reports, f"{what}: not done\n{traceback.format_exc()}")
