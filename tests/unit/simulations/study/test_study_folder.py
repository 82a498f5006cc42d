"""A study's folder: what may go on in it, and what may not."""

import fcntl
import os
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from common.checkpoint import write_json
from common.errors import InputError
from common.plan import Plan
from simulations.cli import app
from simulations.experiment.baselines import side_by_side
from simulations.experiment.folder import Request
from simulations.experiment.prepare import PREPARED
from simulations.study.cli import Given, command_line
from simulations.study.folder import (
    LOCK,
    STUDY,
    at_work,
    open_study,
    reopen_study,
)
from tests.unit.client.sites import small_plan
from tests.unit.simulations.study.study_world import study_plan

REQUEST = Request(Path("data"), None)


def test_a_study_is_asked_again_as_it_was_or_more(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "study"
    open_study(folder, "ablate", small_plan(), {"seeds": [1]}, REQUEST)
    asked, request = reopen_study(folder, "ablate")
    assert asked == {"seeds": [1]}
    assert request == Request(Path("data").absolute(), None)
    write_json(folder / PREPARED, {})
    open_study(folder, "ablate", small_plan(), {"seeds": [1, 2]}, Request(Path("data"), None, True))
    asked, request = reopen_study(folder, "ablate")
    assert asked == {"seeds": [1, 2]}
    assert request.skip_bad


@pytest.mark.parametrize(
    ("kind", "plan", "request_", "what"),
    [
        ("tasks", small_plan(), REQUEST, "another kind"),
        ("ablate", small_plan(seed=8), REQUEST, "another seed"),
        ("ablate", small_plan(simulation={"sites": 7}), REQUEST, "another simulation"),
        ("ablate", small_plan(), Request(Path("other"), Path("m")), "another data, masks"),
    ],
)
def test_another_study_does_not_go_on(
    tmp_path: Path, kind: str, plan: Plan, request_: Request, what: str
) -> None:
    open_study(tmp_path / "s", "ablate", small_plan(), {}, REQUEST)
    write_json(tmp_path / "s" / PREPARED, {})
    with pytest.raises(InputError, match=what):
        open_study(tmp_path / "s", kind, plan, {}, request_)


def test_what_was_not_prepared_yet_may_be_asked_otherwise(tmp_path: Path) -> None:
    open_study(tmp_path / "s", "ablate", small_plan(), {}, REQUEST)
    open_study(tmp_path / "s", "ablate", small_plan(seed=8), {}, REQUEST)


def test_another_kind_of_study_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    open_study(tmp_path / "s", "ablate", small_plan(), {}, REQUEST)
    with pytest.raises(InputError, match="another kind, seed"):
        open_study(tmp_path / "s", "tasks", small_plan(seed=8), {}, REQUEST)


def test_folders_that_are_no_study(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(InputError, match="a folder with other files in it"):
            open_study(taken, "ablate", small_plan(), {}, REQUEST)
        with pytest.raises(InputError, match="a folder with other files in it"), at_work(taken):
            pass
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]
    with pytest.raises(InputError, match="a writable folder"), at_work(Path("/dev/null/study")):
        pass
    with pytest.raises(InputError, match="no tasks study"):
        reopen_study(tmp_path / "full", "tasks")
    open_study(tmp_path / "s", "ablate", small_plan(), {}, REQUEST)
    with pytest.raises(InputError, match="no tasks study"):
        reopen_study(tmp_path / "s", "tasks")


def test_one_process_per_study(tmp_path: Path) -> None:
    with at_work(tmp_path / "new"):
        open_study(tmp_path / "new", "ablate", small_plan(), {}, REQUEST)
    with at_work(tmp_path / "new"):
        pass
    with (tmp_path / "new" / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (
            pytest.raises(InputError, match="another process at work in it"),
            at_work(tmp_path / "new"),
        ):
            pass


@pytest.mark.parametrize("command", ["ablate", "tasks"])
def test_a_second_command_leaves_a_study_at_work_as_it_was_asked(
    tmp_path: Path, command: str
) -> None:
    folder, asked = tmp_path / "s", tmp_path / "asked.yaml"
    plan = study_plan()
    asked.write_text(yaml.safe_dump({"plan": plan} if command == "ablate" else plan))
    with at_work(folder):
        open_study(folder, command, small_plan(), {"seeds": [1]}, REQUEST)
        before = (folder / STUDY).read_bytes()
        second = CliRunner().invoke(app, [command, str(asked), "--out", str(folder)])
        assert "another process at work in it" in str(second.exception)
        assert (folder / STUDY).read_bytes() == before


def test_workers_are_as_many_as_the_cores_or_the_share_of_a_gpu_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert side_by_side(small_plan(), 1) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for share, count in ((0.0, 1), (0.25, 4), (0.4, 2), (2.0, 1)):
        assert side_by_side(small_plan(simulation={"gpus_per_site": share}), 1) == count


def given(**options: object) -> Given:
    nothing = dict.fromkeys(("file", "data", "masks", "out", "resume", "workers"))
    return Given(**(nothing | {"skip_bad": False, "as_json": False} | options))


def test_the_command_is_kept_as_it_was_given() -> None:
    new = given(file=Path("a b.yaml"), out=Path("o"), workers=1)
    assert command_line("tasks", new) == "consilium-sim tasks 'a b.yaml' --out o --workers 1"
    resumed = given(resume=Path("o"), skip_bad=True)
    assert command_line("ablate", resumed) == "consilium-sim ablate --resume o --skip-bad"
    assert command_line("ablate", given()) == "consilium-sim ablate"
