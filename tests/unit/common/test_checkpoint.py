"""Atomic files: the old one or the new one, never half."""

import os
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import (
    array_sha256,
    read_arrays,
    read_json,
    write_arrays,
    write_bytes,
    write_json,
)
from common.errors import InputError


def test_round_trips(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([7])}
    write_arrays(tmp_path / "deep" / "x.safetensors", arrays)
    back = read_arrays(tmp_path / "deep" / "x.safetensors")
    assert back.keys() == arrays.keys()
    assert all((back[key] == arrays[key]).all() for key in arrays)
    write_json(tmp_path / "x.json", {"b": None, "a": [1]})
    assert read_json(tmp_path / "x.json") == {"a": [1], "b": None}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "x.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"value": float("nan")})
    assert read_json(file) == {"value": 1}


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.bin"
    write_bytes(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize(("read", "kind"), [(read_json, "JSON"), (read_arrays, "safetensors")])
def test_damaged_and_missing_files_are_named(tmp_path: Path, read: object, kind: str) -> None:
    assert callable(read)
    (tmp_path / "bad").write_bytes(b"\x00\x01")
    with pytest.raises(InputError, match=rf"bad: found .*; allowed: a {kind} file"):
        read(tmp_path / "bad")
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "none")


def test_a_hash_is_over_values_not_memory_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert array_sha256(array) == array_sha256(np.asfortranarray(array))
    assert array_sha256(array) == array_sha256(array.astype(">f4"))
    assert array_sha256(array) != array_sha256(array + 1)


def test_files_obey_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
