"""Every command that a document names is tried: a small one of its kind, as a user types it.

The words are those of the document. What stands for the reader's own files (SAMPLE, RUN, NAME) is
put in their place, and plans and studies are small copies under the same names. A command that
needs a GPU or the full release says so where it stands.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.ledger import Ledger
from common.checkpoint import read_json
from simulations.flower.processes import MARK, stop_marked
from simulations.phantom import make_phantom
from tests import programs
from tests.documents import PLANS, ROOT, STUDIES, Command, commands

pytestmark = pytest.mark.timeout(600)  # real runs, and the machine may be busy
PLAN = "simulations/plans/phantom-private.yaml"
# What stands in the documents for files of the reader's own.
SAMPLES = ("SAMPLE", "NIH_SAMPLE", "nih_sample", "archive", "small")
MASKS = ("MASKS", "LUNG_MASKS", "lung_masks")

# How a command is tried; the first line that fits it counts.
GPU, BY_OTHERS, MAKE, HERE, LONG = "gpu", "by others", "make", "here", "long"
WAYS = (
    (r"consilium-sim run simulations/plans/(nih|multimix)\.yaml .*", GPU),
    (r"python -m simulations\.bench\.gpu .*", GPU),
    (r"consilium-sim bench .*", BY_OTHERS),
    (r"python -m tests\.e2e\.test_unlabelled_sites DIR( 1\.0)?", BY_OTHERS),
    (r"make .*", MAKE),
    (rf"consilium-sim run {PLAN} --out RUN", HERE),
    (r"consilium-sim (partition|privacy-plan|phantom|audit|report) .*", HERE),
    (r"consilium-(site|server) .*", HERE),
    (r"consilium-sim (run|ablate|tasks) .*", LONG),
    (r"flwr run \. --stream.*", LONG),
)
OTHERS = {
    "consilium-sim bench": "tests/unit/simulations/bench/test_bench.py",
    "python -m tests.e2e.test_unlabelled_sites": "tests/e2e/test_unlabelled_sites.py",
}


def way(command: Command) -> str | None:
    return next((how for pattern, how in WAYS if re.fullmatch(pattern, command.text)), None)


def once(*ways: str) -> list[Any]:
    """The commands that are tried in these ways, each once, however often it is written."""
    found = {command.text: command for command in commands() if way(command) in ways}
    return [pytest.param(command, id=text) for text, command in found.items()]


def test_every_command_is_tried_in_some_way() -> None:
    assert [c.where + ": " + c.text for c in commands() if way(c) is None] == []
    for pattern, _ in WAYS:
        used = any(re.fullmatch(pattern, command.text) for command in commands())
        assert used, f"no document has a command such as {pattern}"


def test_what_needs_a_gpu_says_so() -> None:
    for command in commands():
        if way(command) == GPU:
            assert "GPU" in command.beside, f"{command.where}: {command.text}"
    for start, test in OTHERS.items():
        assert (ROOT / test).is_file(), f"{start} is to be tried by {test}"


@pytest.mark.parametrize("command", once(MAKE))
def test_make_has_the_target(command: Command) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.installed", *command.words[1:]],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def small_plan(value: dict[str, Any]) -> dict[str, Any]:
    """The plan with the least that it can be done with."""
    training = {key: v for key, v in value["training"].items() if key != "local_epochs"}
    training |= {"local_steps": 1, "batch_size": 4}
    if training.get("lungs_batch_size") is not None:
        training["lungs_batch_size"] = 2
    simulation = value.get("simulation", {})
    more: dict[str, Any] = {
        "model": value.get("model", {}) | {"backbone": "tiny", "image_size": 32},
        "training": training,
        "federation": value.get("federation", {}) | {"rounds": 1, "round_timeout": 120},
        "evaluation": {"bootstrap": 10, "baselines": []},
        "simulation": simulation | {"phantom_images": 160, "mask_test": 4},
    }
    if "semi_supervision" in value:
        more["semi_supervision"] = value["semi_supervision"] | {"batch_size": 2}
    return value | more


def small_study(value: dict[str, Any]) -> dict[str, Any]:
    plan = value["plan"]
    return value | {
        "plan": plan if isinstance(plan, str) else small_plan(plan),
        "rows": value["rows"][-2:],
        "findings": [20 if isinstance(number, int) else number for number in value["findings"]],
        "masks": [4],
        "seeds": [1],
        "domains": [],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documents' commands are typed: small plans, an archive, masks."""
    folder = tmp_path_factory.mktemp("documents")
    for files, smaller in ((PLANS, small_plan), (STUDIES, small_study)):
        for file in files:
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(yaml.safe_dump(smaller(yaml.safe_load(file.read_text()))))
    make_phantom(folder / "SAMPLE", images=160, size=32, hospitals=4, seed=1)
    other = make_phantom(folder / "other", images=24, size=32, hospitals=1, seed=2)
    for part in ("images", "masks"):
        (folder / "MASKS" / part).mkdir(parents=True)
    for mask in sorted((other / "masks").iterdir()):
        [image] = other.glob(f"images*/**/{mask.name}")
        shutil.copy(mask, folder / "MASKS" / "masks" / f"m{mask.name}")
        shutil.copy(image, folder / "MASKS" / "images" / f"m{mask.name}")
    shutil.copy(folder / PLAN, folder / "PLAN.yaml")
    return folder


def typed(place: Path, *words: str) -> str:
    """Run one of our programs to its good end; return what it printed."""
    ended = programs.typed(*words, cwd=place)
    assert ended.code == 0, f"{' '.join(words)}\n{ended.out}\n{ended.err}"
    return ended.out


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """The run that the README's commands about privacy go on with."""
    typed(place, "consilium-sim", "run", PLAN, "--out", "RUN")
    return place / "RUN"


def own(command: Command, run: Path) -> list[str]:
    """The words of a command with the reader's own files in their places."""
    site = min(path.parent for path in run.glob("sites/*/ledger.sqlite"))
    words = []
    for number, word in enumerate(command.words):
        before = command.words[number - 1] if number else ""
        if word in SAMPLES and before == "--data":
            word = "SAMPLE"
        elif word in MASKS:
            word = "MASKS"
        elif before == "--plays":
            word = "20"
        elif word == "N:HASH":
            head = Ledger(site / "ledger.sqlite").head()
            word = f"{head.entries}:{head.sha256}"
        words.append(str(site) if word == "SITE" else word.replace("NAME", site.name))
    return words + (["--images", "20", "--size", "32"] if words[1] == "phantom" else [])


@pytest.mark.slow
@pytest.mark.parametrize("command", once(HERE))
def test_a_command_of_the_documents(command: Command, place: Path, run: Path) -> None:
    words = own(command, run)
    made = {"phantom": words[2], "export": words[-1]}.get(words[1 if "sim" in words[0] else 2])
    if command.words[1] == "run":
        assert (run / "report.html").is_file()  # the fixture has typed it
        return
    assert typed(place, *words).strip()
    if made is not None:
        assert (place / made).exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.documents
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", once(LONG))
def test_a_command_that_takes_long(
    command: Command, place: Path, run: Path, tmp_path: Path
) -> None:
    if command.words[0] != "flwr":
        words = [*own(command, run), "--out", str(tmp_path / "out")]
        typed(place, *words)
        assert list((tmp_path / "out").glob("*.html"))
        return
    words = [
        word.replace("/abs/RUN", str(run)).replace("/abs/NEW", str(tmp_path / "NEW"))
        for word in command.words
    ]
    mark = uuid.uuid4().hex
    environment = os.environ | {
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(tmp_path / "flwr"),
        # Not the ports of a SuperLink that somebody has left running on this machine.
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "CONSILIUM_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        MARK: mark,
    }
    if "--run-config" in words:  # over sites that are there already
        environment["CONSILIUM_SITES"] = str(run / "sites")
    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
            timeout=850,
        )  # fmt: skip
    finally:
        stop_marked(mark)  # the SuperLink stays after the run
    # Flower's own exit code is 0 however a run ends.
    ends = [read_json(file)["status"] for file in tmp_path.rglob("state.json")]
    assert ends == ["completed"], done.stdout + done.stderr
