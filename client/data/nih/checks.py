"""What the checks of an archive gather on their way, and which input they cannot start from."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from client.data.tables.names import first, unsafe
from common.errors import DataError, Problem, escaped

SKIP_BAD = "or leave them out with --skip-bad."
_PACKED = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


@dataclass
class Checks:
    """Problems stop the work, remarks do not; skipped holds pairs of image and reason."""

    skip_bad: bool
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, names: list[str], what: str, problem: Problem) -> None:
        """Names that --skip-bad leaves out and that are a Problem without it."""
        if names and self.skip_bad:
            self.skipped += [(escaped(name), what) for name in names]
        elif names:
            self.problems.append(problem)

    def remark(self, where: str | Path, text: str) -> None:
        """Note what a person should know of a file or folder, on one printable line."""
        self.remarks.append(escaped(f"{where}: {text}"))

    def stop(self) -> None:
        """Raise DataError with the problems so far, if there are any."""
        if self.problems:
            raise DataError(self.problems)


def is_packed(name: str) -> bool:
    """Whether a file's ending is that of a zip, a tar or the like."""
    return name.lower().endswith(_PACKED)


def given_folder(path: Path, allowed: str) -> Path:
    """The absolute path of a folder that the user named.

    Raises DataError when it is not there, may not be entered, is a file, or has a path that no
    table can hold.
    """
    path = Path(path).absolute()
    where = str(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError(Problem(where, "", "no such folder", allowed, "Check the path.")) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(Problem(where, "", reason, allowed, "Check the path.")) from None
    if not stat.S_ISDIR(mode):
        step = "Unpack it, and give the folder." if is_packed(path.name) else ""
        step = step or f"Give the folder that it lies in: {path.parent}"
        raise DataError(Problem(where, "", "a file, not a folder", allowed, step))
    if unsafe(str(path)):
        found = "a path with control characters, or not in UTF-8"
        raise DataError(Problem(where, "", found, "a path in UTF-8", "Rename the folder."))
    return path


def leave_out_unsafe(folder: Path, names: list[str], checks: Checks) -> None:
    """Refuse, or leave out, files that no table can hold, by their names or by their folder's."""
    where = "folder's name holds" if unsafe(str(folder)) else "names hold"
    found = f"{len(names)} files whose {where} control characters or bytes that are not UTF-8: "
    allowed, step = "names in UTF-8 that can be printed", f"Rename them, {SKIP_BAD}"
    problem = Problem(str(folder), "", found + first(names), allowed, step)
    checks.leave_out(names, "a name with control characters, or not in UTF-8", problem)
