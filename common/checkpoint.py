"""Files that are either the old version or the new one, never half of each.

Tensors are stored as safetensors (no pickle: a file from outside cannot run code), the rest
as JSON. Every write goes to a temporary file in the same folder, is synced, then renamed.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import InputError, Problem


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, synced to disk. Raises InputError if it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        # 0o666 less the umask, as any program's file: a report must be readable by others.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            Problem(str(path), "", reason, "a writable file", "Free space or change the folder.")
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN is refused: undefined is null."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(_unreadable(path, error, "JSON")) from None


def read_object(path: Path, /, **kinds: Any) -> dict[str, Any]:
    """Read a JSON object, in which each key of `kinds` is there with a value of that type.

    Raises InputError when the file is missing, no JSON object, or misses such a value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(_damaged(path, "", f"a {type(value).__name__}", "a JSON object"))
    for key, kind in kinds.items():
        at = f"key {key!r}"
        if key not in value:
            raise InputError(_damaged(path, at, "nothing", "a value"))
        if not isinstance(value[key], kind):
            found = json.dumps(value[key])[:80]
            allowed = getattr(kind, "__name__", str(kind))
            raise InputError(_damaged(path, at, found, f"a value of type {allowed}"))
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line.

    Raises InputError when it is missing, or for the first line that is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(_unreadable(path, error, "JSON lines")) from None
    values = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            found = " ".join(str(error).split())
            raise InputError(_damaged(path, f"line {number}", found, "a JSON object")) from None
        if not isinstance(value, dict):
            found = f"a {type(value).__name__}"
            raise InputError(_damaged(path, f"line {number}", found, "a JSON object"))
        values.append(value)
    return values


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays of any shape and dtype as one safetensors file, atomically."""
    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file. Raises InputError when it is missing or damaged."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(_unreadable(path, error, "safetensors")) from None


def array_sha256(array: npt.NDArray[Any]) -> str:
    """Hex SHA-256 over the little-endian bytes of an array of any shape."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def _damaged(path: Path, at: str, found: str, allowed: str) -> Problem:
    return Problem(str(path), at, found, allowed, "Restore the file, or delete it and start anew.")


def _unreadable(path: Path, error: Exception, kind: str) -> Problem:
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return Problem(
        str(path), "", reason or type(error).__name__, f"a {kind} file", "Restore or delete it."
    )
