"""The folder of a run: what may be one, what is left of one that is refused, what it remembers."""

from pathlib import Path

import pytest

from common.checkpoint import read_json, write_json
from common.errors import InputError
from simulations.experiment import folder
from simulations.experiment.folder import (
    PLAN_FILE,
    REQUEST_FILE,
    Request,
    check_folder,
    discard_empty_run,
    make_folder,
    open_run,
    resume_run,
)
from tests.unit.client.sites import small_plan

NOTHING = Request(None, None)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "found a file; allowed: a new or empty folder"),
        ("full", "found a folder with files in it; allowed: a new or empty folder"),
        ("file/run", "found Not a directory"),
        ("new/" + "x" * 256, "found File name too long"),
        ("new/" + "/".join(["y" * 200] * 20), "found File name too long"),
        ("loop/run", "allowed: a folder that can be written"),
        ("new/\udce9", "found bytes that are no text"),
        ("two\nlines", r"two\\nlines: found a line break; allowed: a name on one line"),
    ],
)
def test_what_can_be_no_run_folder_leaves_nothing(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = tree(tmp_path)
    for attempt in (check_folder, lambda run, asked: open_run(small_plan(), run, asked)):
        with pytest.raises(InputError, match=message):
            attempt(tmp_path / out, NOTHING)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", ["data", "masks"])
def test_a_run_does_not_lie_in_what_it_reads(tmp_path: Path, option: str) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "read")
    request = Request(**({"data": None, "masks": None} | {option: tmp_path / "read"}))
    for inside in ("read", "read/run", "link/deep/run", "other/../read/run"):
        with pytest.raises(InputError, match=f"a folder in that of --{option}"):
            check_folder(tmp_path / inside, request)
    check_folder(tmp_path / "reader", request)
    assert tree(tmp_path) == ["link", "read"]


def test_a_folder_and_its_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    run = tmp_path / "a" / "b" / "run"
    check_folder(run, NOTHING)
    assert tree(tmp_path) == []
    made = open_run(small_plan(), run, NOTHING)
    assert [path.name for path in made] == ["a", "b", "run"]
    assert (run / PLAN_FILE).is_file()
    discard_empty_run(run, made)
    assert tree(tmp_path) == []
    # Somebody else's empty folder stays, and so does one that another run uses by now.
    run.mkdir(parents=True)
    discard_empty_run(run, open_run(small_plan(), run, NOTHING))
    assert tree(tmp_path) == ["a", "a/b", "a/b/run"]
    made = open_run(small_plan(), tmp_path / "a" / "c" / "one", NOTHING)
    other = open_run(small_plan(), tmp_path / "a" / "c" / "two", NOTHING)
    discard_empty_run(tmp_path / "a" / "c" / "one", made)
    assert [path.name for path in (tmp_path / "a" / "c").iterdir()] == ["two"]
    discard_empty_run(tmp_path / "a" / "c" / "two", other)


@pytest.mark.parametrize("part", ["archive", "cache", "sites"])
def test_what_was_worked_for_is_not_thrown_away(tmp_path: Path, part: str) -> None:
    made = open_run(small_plan(), tmp_path / "run", NOTHING)
    (tmp_path / "run" / part).mkdir()
    discard_empty_run(tmp_path / "run", made)
    assert tree(tmp_path / "run") == sorted([part, PLAN_FILE, REQUEST_FILE])


def test_a_request_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise InputError([])

    monkeypatch.setattr(folder, "write_json", full)
    with pytest.raises(InputError):
        open_run(small_plan(), tmp_path / "a" / "run", NOTHING)
    assert tree(tmp_path) == []


def test_a_parent_that_another_run_makes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "there" and exists(path))
    (tmp_path / "there").mkdir()
    assert [path.name for path in make_folder(tmp_path / "there" / "run")] == ["run"]


def test_a_run_remembers_what_it_was_asked(tmp_path: Path) -> None:
    request = Request(tmp_path / "data", tmp_path / "masks", True)
    open_run(small_plan(), tmp_path / "run", request)
    assert resume_run(tmp_path / "run") == (small_plan(), request)
    with pytest.raises(InputError, match="found no run"):
        resume_run(tmp_path)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("", "allowed: a JSON file"),
        ('{"data": ', "allowed: a JSON file"),
        ("[]", "allowed: what the run was asked"),
        ('{"masks": null}', r"key 'data': found .*; allowed: what the run was asked"),
        ('{"data": 3, "masks": null}', "key 'data'"),
        ('{"data": null, "masks": null, "skip_bad": "maybe"}', "key 'skip_bad'"),
    ],
)
def test_a_damaged_request_is_said(tmp_path: Path, damaged: str, message: str) -> None:
    open_run(small_plan(), tmp_path / "run", NOTHING)
    (tmp_path / "run" / REQUEST_FILE).write_text(damaged)
    with pytest.raises(InputError, match=message) as caught:
        resume_run(tmp_path / "run")
    assert REQUEST_FILE in str(caught.value)


def test_a_lost_request_is_said(tmp_path: Path) -> None:
    open_run(small_plan(), tmp_path / "run", NOTHING)
    assert read_json(tmp_path / "run" / REQUEST_FILE)["skip_bad"] is False
    (tmp_path / "run" / REQUEST_FILE).unlink()
    with pytest.raises(InputError, match=REQUEST_FILE):
        resume_run(tmp_path / "run")
    write_json(tmp_path / "run" / REQUEST_FILE, {"data": None, "masks": None})
    assert resume_run(tmp_path / "run")[1] == NOTHING
