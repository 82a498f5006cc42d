"""`consilium-sim run` and `partition` ask the same beforehand, and say the same of the data."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml
from typer.testing import CliRunner, Result

from common.checkpoint import read_json
from common.errors import ConsiliumError
from simulations import cli
from tests.conftest import ArchiveFactory

SIMULATION = {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}}
PLAN: dict[str, Any] = {
    "name": "small",
    "seed": 2,
    "model": {"backbone": "tiny", "image_size": 32, "decoder_width": 8},
    "training": {"local_steps": 2, "batch_size": 4, "max_gradient_norm": None},
    "federation": {"rounds": 1, "min_sites": 2, "round_timeout": 120, "weighting": "equal"},
    "evaluation": {"bootstrap": 0, "baselines": []},
    "simulation": SIMULATION,
}
PRIVACY = {"mode": "dp-sgd", "unit": "patient", "epsilon": 8.0, "images_per_unit": 1}


def called(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def refusal(result: Result) -> tuple[int, str]:
    """Exit code and message of one of our own errors; anything else is a fault of the test."""
    assert isinstance(result.exception, ConsiliumError), result.output
    return result.exception.exit_code, str(result.exception)


@pytest.fixture
def place(tmp_path: Path, nih_archive: ArchiveFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an archive of 12 patients in `archive` and a plan."""
    nih_archive(patients=12)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    write_plan(tmp_path)
    return tmp_path


def write_plan(folder: Path, **more: Any) -> None:
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN | more))


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


HOSPITALS = {"simulation": {"sites": 2, "partition": {"scheme": "hospitals"}}}
DATA = ("--data", "archive")


@pytest.mark.parametrize(
    ("plan", "words", "code", "message"),
    [
        ({"seed": "two"}, DATA, 2, "key 'seed'"),
        ({}, (*DATA, "--sites", "0"), 2, "simulation.sites"),
        ({}, (*DATA, "--sites", "9"), 2, "found 9; allowed: at most 8, the patients to deal"),
        ({}, (*DATA, "--sites", "1"), 4, "the plan needs 2 sites"),
        (HOSPITALS, DATA, 2, "hospitals, without a list of them"),
        ({}, ("--data", "typo"), 2, "typo"),
        ({}, (*DATA, "--masks", "typo"), 2, "typo: found no such folder"),
        ({}, ("--masks", "typo"), 2, "--masks: found typo"),
        ({}, (*DATA, "--pretrained", "gone.safetensors"), 2, "model.pretrained: found a file that"),
        ({}, (*DATA, "--pretrained", "imagenet"), 2, "allowed: none, or a local file, for tiny"),
        ({}, (*DATA, "--out", "file"), 2, "file: found a file; allowed: a new or empty folder"),
        ({}, (*DATA, "--out", "file/run"), 2, "found Not a directory"),
        ({}, (*DATA, "--out", "archive/run"), 2, "a folder in that of --data"),
        ({}, (*DATA, "--out", "new/" + "x" * 256), 2, "File name too long"),
        ({"tasks": {"findings": False}}, DATA, 2, "2 of 2 hospitals with nothing to train on"),
        ({"privacy": PRIVACY | {"epsilon": 1e-9}}, DATA, 2, "key 'privacy.epsilon'"),
        (
            {"privacy": PRIVACY, "simulation": SIMULATION | {"lifetime_epsilon": [1.0, 1.0]}},
            DATA,
            3,
            "simulation.lifetime_epsilon pays for 0 of 1 rounds",
        ),
        ({"simulation": SIMULATION | {"cpus_per_site": 1e4}}, DATA, 2, "cpus_per_site"),
    ],
)  # fmt: skip
def test_both_refuse_the_same_and_leave_nothing(
    place: Path, plan: dict[str, Any], words: tuple[str, ...], code: int, message: str
) -> None:
    write_plan(place, **plan)
    before = tree(place)
    shown = refusal(called("partition", "plan.yaml", *words))
    assert shown[0] == code
    assert message in shown[1]
    assert refusal(called("run", "plan.yaml", *words)) == shown
    if "--out" not in words:
        assert refusal(called("run", "plan.yaml", *words, "--out", "a/b/run")) == shown
    assert tree(place) == before


@pytest.mark.parametrize("command", ["run", "partition"])
def test_both_need_a_plan(place: Path, command: str) -> None:
    assert refusal(called(command))[1].startswith("command line: PLAN: found nothing")


def test_labels_that_are_missing_are_refused_by_both_or_said_by_both(place: Path) -> None:
    """Of three hospitals one has no label: it is named. Of two, nothing can be learnt."""
    homes = [f"{number},{'abc'[number % 3]}" for number in range(1, 13)]
    (place / "archive" / "hospitals.csv").write_text("\n".join(["Patient ID,Hospital", *homes]))
    table = place / "archive" / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines()
    for row, line in enumerate(lines[1:], 1):
        image, _, follow_up, patient, *more = line.split(",")
        if int(patient) % 3 == 0:
            lines[row] = ",".join([image, "", follow_up, patient, *more])
    table.write_text("\n".join(lines) + "\n")
    simulation = {"sites": 3, "partition": {"scheme": "hospitals", "val_fraction": 0.2}}
    write_plan(place, simulation=simulation)
    printed = called("partition", "plan.yaml", *DATA).output
    assert "- 1 hospital without a label on any training image: a\n" in printed
    assert "- 1 hospital with nothing to train on, left out of the rounds: a\n" in printed
    write_plan(place, simulation=simulation, federation=PLAN["federation"] | {"min_sites": 3})
    shown = refusal(called("partition", "plan.yaml", *DATA))
    assert "found 1 of 3 hospitals with nothing to train on: a; allowed: at least 3" in shown[1]
    assert refusal(called("run", "plan.yaml", *DATA, "--out", "run")) == shown
    assert not (place / "run").exists()


def test_partition_writes_and_prints_what_it_found(place: Path) -> None:
    words = ("partition", "plan.yaml", *DATA, "--out", "new/parts")
    printed = called(*words).output
    remark = "no training image has a lung mask: nothing teaches the lungs head"
    assert printed.count(remark) == 1
    assert printed.index("global test") < printed.index("written: partition.json and")
    assert remark in printed.split("notes on the data:\n")[1]
    found = read_json(place / "new" / "parts" / "partition.json")
    assert list(found["sites"]) == ["site-1", "site-2"]
    assert remark in found["remarks"]
    assert matplotlib.image.imread(place / "new" / "parts" / "partition.png").shape[1] > 1000
    assert "a folder with files in it" in refusal(called(*words))[1]
    assert json.loads(called("partition", "plan.yaml", *DATA, "--json").stdout) == found


def test_partition_of_a_phantom_draws_nothing(place: Path) -> None:
    before = tree(place)
    done = called("partition", "plan.yaml", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sum(line["images"] for line in found["sites"].values()) + found["test"]["images"] == 1000
    assert tree(place) == before


def test_what_a_private_plan_comes_to_is_said(place: Path) -> None:
    write_plan(place, privacy=PRIVACY, training=PLAN["training"] | {"batch_size": 500})
    printed = called("partition", "plan.yaml", *DATA).output
    assert "training.batch_size 500 is no less than the patients of 2 hospitals" in printed
    open_plan = called("partition", "plan.yaml", *DATA, "--without-privacy").output
    assert "batch_size" not in open_plan


@pytest.mark.slow
def test_a_run_says_them_once_at_its_end_and_again_when_resumed(place: Path) -> None:
    """A file name that markup, emoji codes or a terminal would act on is printed as it is."""
    picture = next((place / "archive").rglob("00000001_000.png"))
    shutil.copy(picture, picture.with_name("[bold]a:skull:\x1b[31m.png"))
    next((place / "archive").rglob("00000002_001.png")).write_bytes(b"\x89PNG, cut short")
    words = ("run", "plan.yaml", *DATA, "--skip-bad", "--out", "run[x]")
    done = called(*words)
    assert done.exit_code == 0, done.output
    summary = read_json(place / "run[x]" / "summary.json")
    told = done.output.split("notes on the data:\n")
    assert len(told) == 2
    assert told[1].splitlines() == [f"  - {remark}" for remark in summary["remarks"]]
    assert told[0].rstrip().endswith("report: run[x]/report.html")
    assert any(r"[bold]a:skull:\x1b[31m.png" in each for each in summary["remarks"])
    assert any("00000002_001.png" in each for each in summary["remarks"])
    assert "Notes on the data" in (place / "run[x]" / "report.html").read_text()
    again = called("run", "--resume", "run[x]")
    assert again.output.split("notes on the data:\n")[1] == told[1]
    value = json.loads(called("run", "--resume", "run[x]", "--json").stdout)
    assert value["remarks"] == summary["remarks"]
    planned = called("partition", "plan.yaml", *DATA, "--skip-bad").output
    unlabelled = next(each for each in summary["remarks"] if "skull" in each)
    assert f"  - {unlabelled}\n" in planned


@pytest.mark.slow
def test_a_study_says_them_too(place: Path, nih_archive: ArchiveFactory) -> None:
    archive = nih_archive("masked", patients=12, masks=True)
    picture = next(archive.rglob("00000001_000.png"))
    shutil.copy(picture, picture.with_name("extra.png"))
    plan = {key: value for key, value in PLAN.items() if key != "evaluation"}
    plan |= {"evaluation": {"bootstrap": 0}, "training": {"local_steps": 1, "batch_size": 4}}
    spec = {"name": "s", "plan": plan, "rows": ["segmenter"], "masks": [2], "seeds": [1]}
    (place / "spec.yaml").write_text(yaml.safe_dump(spec | {"equipment": False}))
    done = called("ablate", "spec.yaml", "--data", archive, "--out", "study", "--workers", 1)
    assert done.exit_code == 0, done.output
    told = done.output.split("notes on the data:\n")
    assert len(told) == 2
    assert "extra.png" in told[1]
    again = json.loads(called("ablate", "--resume", "study", "--json").stdout)
    assert told[1].splitlines() == [f"  - {remark}" for remark in again["remarks"]]
