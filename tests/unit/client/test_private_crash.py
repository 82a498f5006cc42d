"""Kill -9 anywhere in a private round never lowers the recorded spend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from client.site import Site
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import private_plan, private_site, start
from tests.unit.client.sites import small_cache

ROOT = Path(__file__).resolve().parents[3]


def kill_at_lines(archive: Path, folder: Path, step: int) -> list[dict]:
    """Kill a site at every `step`-th line of its second round; what was found after each."""
    cache = small_cache(archive, folder / "cache")
    plan = private_plan(training={"local_steps": 1}, evaluation={"every": 3})
    # Simulated: its copies would otherwise be other ledgers on the same patients.
    site = Site.open(private_site(folder / "sites" / "ward", cache, simulated=True))
    site.train(plan, 1, start(plan))
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    command = [sys.executable, "-m", "tests.unit.client.crash_round", str(site.folder.path)]
    command += [str(folder / "plan.yaml"), str(folder / "out"), str(step)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    deaths: list[dict] = json.loads(done.stdout)
    return deaths


def check(deaths: list[dict]) -> None:
    # A line may not come up again: which patients are drawn is different each time.
    missed = [death["line"] for death in deaths if not death["killed"]]
    assert len(missed) < 0.1 * len(deaths), missed
    for death in deaths:
        assert death["after"] >= death["before"], death
        charged = death["kinds"].count("reserve")
        # Once the first step has begun, and before anything is sent, the charge is there.
        if death["stepped"] or "sent" in death["kinds"]:
            assert charged == 2, death
            assert death["after"] > death["before"], death
        if death.get("again") is not None:
            assert death["again"] >= death["after"], death
    stages = {(death["stepped"], death["kinds"].count("reserve")) for death in deaths}
    assert {(False, 1), (True, 2)} <= stages  # it died before the charge, and after


def test_a_death_at_some_lines_of_a_round(nih_archive: ArchiveFactory, tmp_path: Path) -> None:
    deaths = kill_at_lines(nih_archive(patients=6, images=1), tmp_path, 37)
    assert len(deaths) > 6
    check(deaths)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_death_at_every_line_of_a_round(nih_archive: ArchiveFactory, tmp_path: Path) -> None:
    deaths = kill_at_lines(nih_archive(patients=6, images=1), tmp_path, 1)
    assert len(deaths) > 250
    check(deaths)
