"""What the processes of a run find around them: an environment and a short folder of our making.

Nothing that the user's shell holds for other programs may reach Flower and Ray: a proxy would be
asked for a server on this machine, RAY_ADDRESS names another cluster. And the sockets of Ray lie
so deep that the user's own folder for temporary files is often too long for them.
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, Problem
from common.home import ENDING
from simulations.flower.processes import MARK

# What is passed on: who and where the user is, and what decides how torch computes.
_PASSED = {
    *("HOME", "USER", "LOGNAME", "PATH", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "HIP_VISIBLE_DEVICES"),
    *("PYTHONHOME", "PYTHONHASHSEED", "PYTHONNOUSERSITE"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
}
_PASSED_BEGINNINGS = (
    *("LC_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_"),
    *("OMP_", "MKL_", "KMP_", "OPENBLAS_", "CONSILIUM_"),
)
PREFIX, ENDING_FILE = "cs-", "ending.json"
NEEDED_BYTES = 100e6  # the app, logs, and messages on their way
# As long as the longest that Ray makes: date, time, microseconds and process in the session.
_SOCKET = "ray/session_2026-11-25_12-48-02_123456_4194304/sockets/plasma_store.1"


def child_environment(home: Path, mark: str, threads: int) -> dict[str, str]:
    """All environment variables of the processes of a run.

    home: their folder for state, sockets and temporary files; mark: by which they are found
    again; threads: how many each may use.
    """
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_BEGINNINGS)
    }
    if not passed.get("HOME") or not Path(passed["HOME"]).is_dir():
        passed["HOME"] = str(home)
    modules = [str(Path(part).absolute()) for part in _split(os.environ.get("PYTHONPATH"))]
    path = [str(Path(sys.executable).parent), *_split(passed.get("PATH", os.defpath))]
    return passed | {
        MARK: mark,
        "PATH": os.pathsep.join(path),  # Flower starts its helpers by name
        "PYTHONPATH": os.pathsep.join(modules),
        "PYTHONUTF8": "1",
        "TMPDIR": str(home),
        ENDING: str(home / ENDING_FILE),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which also binds Ray to loopback
        "RAY_TMPDIR": str(home),
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, deterministic PyTorch refuses CUDA
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def _split(value: str | None) -> list[str]:
    return [part for part in (value or "").split(os.pathsep) if part]


def check_surroundings() -> None:
    """Raise InputError when no folder on this machine can hold the sockets of a run."""
    with short_folder():
        pass


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder of ours (mode 0700) whose name is short enough for Ray's sockets.

    In the folder that TMPDIR names if it is short, or the first that can be used of those that
    every Linux has. It is removed at the end. Raises InputError when none can be used.
    """
    home = _first_usable()
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _places() -> list[str]:
    """Folders for temporary files, the user's own first."""
    places = [os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", f"/run/user/{os.getuid()}"]
    return list(dict.fromkeys(place.rstrip("/") for place in [*places, "/dev/shm"] if place))


def _first_usable() -> Path:
    reasons = []
    for place in _places():
        try:
            return _try(place)
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
    allowed = "one folder with a short name (24 letters), 100 MB free, and leave to make sockets"
    step = "Set TMPDIR to such a folder."
    raise InputError(Problem("temporary files", "", "; ".join(reasons), allowed, step))


def _try(place: str) -> Path:
    """A new folder in `place` in which a socket can be made. Raises OSError."""
    if not (place.startswith("/") and place.isascii() and place.isprintable() and " " not in place):
        raise OSError("a name with spaces or letters that Ray may not take")
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    try:
        if shutil.disk_usage(home).free < NEEDED_BYTES:
            raise OSError("less than 100 MB free")
        # Made and not measured: so a file system that has no sockets is found out, too.
        file = home / _SOCKET
        file.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(file))
        shutil.rmtree(home / "ray")
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return home
