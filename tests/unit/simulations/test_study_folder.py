"""A study's folder: what may go on in it, and what may not."""

import fcntl
from pathlib import Path

import pytest

from common.checkpoint import write_json
from common.errors import InputError
from common.plan import Plan
from simulations.experiment import Request
from simulations.prepare import PREPARED
from simulations.study.folder import LOCK, at_work, open_study, reopen_study
from tests.unit.client.sites import small_plan

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


def test_folders_that_are_no_study(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(InputError, match="a folder with other files in it"):
            open_study(taken, "ablate", small_plan(), {}, REQUEST)
    with pytest.raises(InputError, match="no tasks study"):
        reopen_study(tmp_path / "full", "tasks")
    open_study(tmp_path / "s", "ablate", small_plan(), {}, REQUEST)
    with pytest.raises(InputError, match="no tasks study"):
        reopen_study(tmp_path / "s", "tasks")


def test_one_process_per_study(tmp_path: Path) -> None:
    with at_work(tmp_path):
        pass
    with (tmp_path / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(InputError, match="another process at work in it"), at_work(tmp_path):
            pass
