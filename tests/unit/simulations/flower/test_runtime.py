import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.checkpoint import write_json
from common.errors import ConsiliumError, InputError, NotEnoughSitesError
from common.plan import Plan
from common.simulated import SimulationPlan
from simulations.flower import superlink
from simulations.flower.runtime import (
    _follow,
    _Progress,
    _stage,
    check_sites,
    run_simulation,
    share_resources,
)
from simulations.flower.superlink import Resources, SuperLink

CPUS = len(os.sched_getaffinity(0))


def make_plan(**simulation: object) -> Plan:
    return Plan.model_validate({"name": "t", "simulation": simulation})


def test_slots_are_what_the_machine_and_the_sites_allow() -> None:
    assert share_resources(SimulationPlan(cpus_per_site=float(CPUS)), 4).slots == 1
    assert share_resources(SimulationPlan(cpus_per_site=CPUS / 4), 100).slots == 4
    assert share_resources(SimulationPlan(cpus_per_site=CPUS / 100), 3).slots == 3
    assert share_resources(SimulationPlan(cpus_per_site=float(CPUS)), 4).threads == CPUS
    assert share_resources(SimulationPlan(cpus_per_site=0.5), 4).threads == 1


def test_more_cpus_per_site_than_there_are() -> None:
    plan = make_plan(cpus_per_site=CPUS + 1.0)
    with pytest.raises(InputError, match=rf"cpus_per_site'.*at most {CPUS}"):
        share_resources(plan.simulation, 2)


def test_more_gpus_per_site_than_there_are() -> None:
    with pytest.raises(InputError, match=r"gpus_per_site'.*found 64; allowed: at most"):
        share_resources(make_plan(gpus_per_site=64.0).simulation, 2)


def make_sites(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / f"s{number}").mkdir(parents=True)
        (folder / f"s{number}" / "site.yaml").touch()
    return folder


def test_too_few_site_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 2 site folders; allowed: at least 3"):
        check_sites(make_plan(), make_sites(tmp_path, 2), 3)


def test_fewer_sites_than_the_plan_needs(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSitesError, match="the plan needs 2 sites"):
        check_sites(make_plan(), make_sites(tmp_path, 1), 1)


def test_nothing_is_started_for_a_bad_request(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError):
        run_simulation(make_plan(), run, tmp_path, 3, Console(file=io.StringIO()))
    assert not run.exists()


def test_only_new_complete_lines_are_shown(tmp_path: Path) -> None:
    file, text = tmp_path / "progress.log", io.StringIO()
    file.write_text("round 1\n")
    progress = _Progress(file, Console(file=text))
    with file.open("a") as more:
        more.write("round 2 [red]\nround")
    progress.show()
    progress.show()
    assert text.getvalue() == "round 2 [red]\n"


def test_following_ends_when_the_server_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.flower.runtime.POLL_SECONDS", 0.01)
    state = tmp_path / "state.json"
    write_json(state, {"status": "failed"})  # the last word of an earlier attempt
    progress = _Progress(tmp_path / "progress.log", Console(file=io.StringIO()))
    assert progress.status() == ""

    def work() -> None:
        time.sleep(0.1)
        write_json(state, {"status": "running"})
        time.sleep(0.1)
        write_json(state, {"status": "completed"})

    thread = threading.Thread(target=work)
    thread.start()
    _follow(tmp_path, "no-such-mark", progress)
    thread.join()
    assert progress.status() == "completed"


def test_following_gives_up_on_a_server_that_never_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.flower.runtime.POLL_SECONDS", 0.01)
    monkeypatch.setattr("simulations.flower.runtime.START_SECONDS", 0.05)
    started = time.monotonic()
    _follow(tmp_path, "x", _Progress(tmp_path / "p", Console(file=io.StringIO())))
    assert time.monotonic() - started < 5


def test_superlink_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "OSError: port taken"\n')
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "_program", lambda name: str(program))
    log = tmp_path / "flower.log"
    log.write_text("ValueError: of an earlier run\n")
    said = r"did not start; last error: OSError: port taken; see .*flower.log"
    with log.open("ab") as output:
        link = SuperLink(tmp_path, "mark", Resources(1, 0, 0.0, 1), output, tmp_path)
        with pytest.raises(ConsiliumError, match=said), link:
            pass


def test_flower_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "_program", lambda name: str(program))
    monkeypatch.setattr(superlink, "START_SECONDS", 0.2)
    with (tmp_path / "flower.log").open("wb") as output:
        link = SuperLink(tmp_path, "mark", Resources(1, 0, 0.0, 1), output, tmp_path)
        with pytest.raises(ConsiliumError, match="did not accept the app: no answer within 0 s"):
            link.submit(tmp_path, {"plan": "/p"}, 2)
        link.__exit__()


def test_app_that_flower_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "no such" \necho "  key" >&2\nsleep 0.2\n')
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "_program", lambda name: str(program))
    log = tmp_path / "flower.log"
    with log.open("wb") as output:
        link = SuperLink(tmp_path, "mark", Resources(1, 0, 0.0, 1), output, tmp_path)
        with pytest.raises(ConsiliumError, match="did not accept the app: no such key"):
            link.submit(tmp_path, {"plan": "/p"}, 2)
        link.__exit__()
    assert "key" in log.read_text()


def test_importing_the_runtime_loads_neither_flower_nor_ray() -> None:
    code = (
        "import sys, simulations.flower.runtime;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'flwr')))"
    )
    root = Path(superlink.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_app_without_its_project_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no Flower app; allowed: the checkout"):
        _stage(tmp_path, tmp_path)


def test_only_what_flower_ships_is_staged(tmp_path: Path) -> None:
    stage = _stage(Path(superlink.__file__).parents[2], tmp_path)
    names = {path.name for path in stage.iterdir()}
    assert names == {"LICENSE", "client", "common", "pyproject.toml", "server", "simulations"}
    assert not list(stage.rglob("__pycache__"))
