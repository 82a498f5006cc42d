"""Atomic files: the old one or the new one, never half."""

import os
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import (
    array_sha256,
    read_arrays,
    read_json,
    read_json_lines,
    read_object,
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x: found Expecting value: line 1 column 1 (char 0); allowed: a JSON file"),
        ('{"status": "run', "x: found Unterminated string"),
        ("[" * 100_000, "x: found maximum recursion depth exceeded"),
        ("[]", "x: found a list; allowed: a JSON object"),
        ("null", "x: found a NoneType; allowed: a JSON object"),
        ("{}", "x: key 'status': found nothing; allowed: a value"),
        ('{"status": ["a"], "round": 1}', "x: key 'status': found [\"a\"]; allowed: a value of"),
        ('{"status": "a", "round": "1"}', "x: key 'round': found \"1\"; allowed: a value of"),
    ],
)  # fmt: skip
def test_an_object_of_our_own_that_was_damaged(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError) as caught:
        read_object(tmp_path / "x", status=str, round=int)
    assert f"{tmp_path}/{expected}" in str(caught.value)


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"status": "done", "more": null}')
    value = read_object(tmp_path / "x", status=str, more=str | None)
    assert value == {"status": "done", "more": None}


def test_lines_are_read_and_the_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    assert read_json_lines(file) == [{"a": 1}, {"a": 2}]
    for damage in ('{"a": 3', "[3]", "\x00"):
        file.write_text('{"a": 1}\n' + damage + "\n")
        with pytest.raises(InputError, match=r"x: line 2: found .*; allowed: a JSON object"):
            read_json_lines(file)
    file.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"x: found .*; allowed: a JSON lines file"):
        read_json_lines(file)


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
