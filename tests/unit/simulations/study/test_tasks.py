"""One network against many: the same images and steps, and differences that are paired."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from client.data.batches import SiteData, select
from client.data.cache import open_cache
from common.checkpoint import read_json
from common.errors import DataError, InputError, PlanError
from common.findings import FINDINGS
from common.plan import Plan
from simulations.cli import app
from simulations.study.cells import SiteRows
from simulations.study.statistics import Truth
from simulations.study.tasks.cost import FINDINGS_ONLY, LUNGS_ONLY, MULTITASK, SINGLE
from simulations.study.tasks.run import CPU, accuracy, check_plan, lungs_accuracy, task_cells
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import SIZE, small_cache, small_plan

TINY = {
    "name": "tasks",
    "seed": 1,
    "model": {"backbone": "tiny", "image_size": SIZE, "decoder_width": 8},
    "training": {"local_steps": 2, "batch_size": 4},
    "federation": {"rounds": 1},
    "evaluation": {"bootstrap": 20},
    "simulation": {"sites": 2, "phantom_images": 60, "partition": {"scheme": "iid"}},
}


class World:
    """A small cache of which all images train."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.cache = small_cache(archive, folder)
        index = self.cache.index
        rows = index[["image", "labelled"]].assign(split="train", masked=True)
        self.rows = rows.assign(**dict.fromkeys(FINDINGS, True))

    def data(self, rows: pd.DataFrame) -> SiteData:
        return select(open_cache(self.cache.folder), rows, FINDINGS, CPU, "test")


@pytest.fixture
def world(tmp_path: Path, nih_archive: ArchiveFactory) -> World:
    return World(nih_archive(masks=True), tmp_path / "cache")


def command(*words: object) -> Result:
    return CliRunner().invoke(app, ["tasks", *map(str, words)])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that the command itself has made, on a phantom."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "plan.yaml").write_text(yaml.safe_dump(TINY))
    ended = command(folder / "plan.yaml", "--out", folder / "study", "--workers", 2)
    assert ended.exit_code == 0, ended.output
    assert "mean AUROC" in ended.output
    return folder


def test_a_plan_without_both_tasks_is_refused() -> None:
    for task in ("findings", "lungs"):
        with pytest.raises(PlanError, match=f"tasks.{task}.*found false"):
            check_plan(small_plan(tasks={task: False}))
    check_plan(small_plan())


def test_all_networks_get_the_same_images_seed_and_steps(world: World) -> None:
    sites = {"pooled": SiteRows(world.rows)}
    plan = small_plan(training={"local_epochs": 2.0, "batch_size": 5})
    cells = task_cells(plan, sites, world.data(world.rows))
    singles = [f"{SINGLE}-{finding}" for finding in FINDINGS]
    assert [cell.name for cell in cells] == [MULTITASK, FINDINGS_ONLY, LUNGS_ONLY, *singles]
    for cell in cells:
        # 12 images, all with a mask: three steps of five in a pass, and two passes.
        assert cell.plan.training.local_steps == 6
        assert (cell.plan.seed, cell.plan.model) == (plan.seed, plan.model)
        [(name, site)] = cell.sites.items()
        assert name == "pooled"
        assert site.rows is world.rows
    tasks = {cell.name: (cell.plan.tasks.findings, cell.plan.tasks.lungs) for cell in cells}
    assert tasks[MULTITASK] == (True, True)
    assert tasks[LUNGS_ONLY] == (False, True)
    assert {tasks[name] for name in (FINDINGS_ONLY, *singles)} == {(True, False)}
    assert [cell.sites["pooled"].annotates for cell in cells[3:]] == [(f,) for f in FINDINGS]


def test_a_finding_that_nobody_annotates_gets_no_network(world: World) -> None:
    rows = world.rows.assign(Hernia=False)
    cells = task_cells(small_plan(), {"pooled": SiteRows(rows)}, world.data(rows))
    assert f"{SINGLE}-Hernia" not in [cell.name for cell in cells]
    assert len(cells) == 3 + len(FINDINGS) - 1


@pytest.mark.parametrize(
    ("column", "message"), [("masked", "a lung mask"), ("labelled", "an annotated finding")]
)
def test_nothing_to_learn_from_is_said_before_training(
    world: World, column: str, message: str
) -> None:
    rows = world.rows.assign(**{column: False})
    with pytest.raises(DataError, match=f"no training image with {message}.*--masks"):
        task_cells(small_plan(), {"pooled": SiteRows(rows)}, world.data(rows))


def answers(seed: int, truth: np.ndarray, skill: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=truth.shape)
    return (noise + skill * truth).astype(np.float32)


def known_truth(positives: int = 20, images: int = 80) -> Truth:
    targets = np.zeros((images, len(FINDINGS)), dtype=np.int8)
    targets[:positives] = 1
    targets[4:, -1] = 0  # the last finding is rare
    targets = np.random.default_rng(0).permuted(targets, axis=0)
    return Truth(targets, np.arange(images) // 2)


def test_differences_are_paired_and_means_are_over_the_same_findings() -> None:
    truth = known_truth()
    good, poor = answers(1, truth.targets, 3.0), answers(2, truth.targets, 0.5)
    poor[:, 0] = np.nan  # a network that failed
    said = {MULTITASK: good, FINDINGS_ONLY: good, SINGLE: poor}
    result = accuracy(truth, said, resamples=50, seed=3)
    for finding in FINDINGS[1:]:
        line = result["findings"][finding]
        gap = line[MULTITASK]["value"] - line[SINGLE]["value"]
        assert line["multitask_vs_single"]["value"] == pytest.approx(gap)
        assert line["multitask_vs_findings"]["value"] == 0.0
        assert line["multitask_vs_findings"]["high"] == 0.0
    failed = result["findings"][FINDINGS[0]]
    assert failed[SINGLE]["value"] is None
    assert failed["multitask_vs_single"]["value"] is None
    assert failed[MULTITASK]["value"] > 0.9
    assert result["macro"]["over"] == list(FINDINGS[1:-1])
    assert result["macro_defined"]["over"] == list(FINDINGS[1:])
    gain = result["macro"]["multitask_vs_single"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    mean = np.mean([result["findings"][f][SINGLE]["value"] for f in FINDINGS[1:-1]])
    assert result["macro"][SINGLE]["value"] == pytest.approx(mean)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_without_positives_everything_is_undefined() -> None:
    truth = Truth(np.zeros((6, len(FINDINGS)), dtype=np.int8), np.arange(6))
    said = dict.fromkeys((MULTITASK, FINDINGS_ONLY, SINGLE), answers(0, truth.targets, 0.0))
    result = accuracy(truth, said, resamples=5, seed=0)
    assert result["macro_defined"]["over"] == []
    assert result["macro"]["multitask_vs_single"]["value"] is None


def test_dice_is_compared_image_by_image() -> None:
    generator, patients = np.random.default_rng(0), np.arange(30) // 2
    hard = generator.uniform(0.3, 0.9, 30)
    result = lungs_accuracy({MULTITASK: hard + 0.01, LUNGS_ONLY: hard}, patients, 100, 0)
    gain = result["multitask_vs_lungs"]
    assert gain["value"] == pytest.approx(0.01)
    assert gain["high"] - gain["low"] < 1e-9  # the images differ, the difference does not
    assert result[LUNGS_ONLY]["high"] - result[LUNGS_ONLY]["low"] > 0.01
    alone = lungs_accuracy({MULTITASK: hard}, patients, 100, 0)
    assert alone[LUNGS_ONLY]["value"] is None
    assert alone["multitask_vs_lungs"]["value"] is None


def test_the_command_trains_compares_and_writes(study: Path) -> None:
    result = read_json(study / "study" / "tasks.json")
    assert (result["status"], result["failed"]) == ("completed", {})
    assert len(result["cell_seconds"]) == 3 + len(FINDINGS)
    assert set(result["accuracy"]["findings"]) == set(FINDINGS)
    assert result["lungs"]["multitask_vs_lungs"]["positives"] > 0
    assert result["training"]["steps"] == 2
    step = result["training"]["per_step"]
    assert step[FINDINGS_ONLY]["masks"] == step[LUNGS_ONLY]["labels"] == 0.0
    assert 0 < step[MULTITASK]["labels"] <= step[FINDINGS_ONLY]["labels"] <= 4.0
    assert step[MULTITASK]["masks"] > 0
    assert result["cost"]["kinds"][SINGLE]["networks"] == len(FINDINGS)
    assert result["command"].startswith("consilium-sim tasks")
    assert "<script" not in (study / "study" / "tasks.html").read_text()


def test_a_second_start_trains_nothing_again(study: Path) -> None:
    done = sorted((study / "study" / "cells").rglob("outcome.json"))
    stamps = [file.stat().st_mtime_ns for file in done]
    ended = command("--resume", study / "study", "--json")
    assert ended.exit_code == 0, ended.output
    before, after = read_json(study / "study" / "tasks.json"), json.loads(ended.stdout)
    assert [file.stat().st_mtime_ns for file in done] == stamps
    assert after["accuracy"] == before["accuracy"]
    assert Plan.model_validate_json(json.dumps(after["plan"])).sha256 == after["plan_sha256"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "found nothing; allowed: a plan file"),
        (("plan.yaml", "--resume", "study"), "PLAN too"),
        (("--resume", "."), "no tasks study"),
        (("lungs.yaml", "--out", "other"), "tasks.findings"),
    ],
)
def test_what_the_command_refuses(
    study: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(study)
    Path("lungs.yaml").write_text(yaml.safe_dump(TINY | {"tasks": {"findings": False}}))
    ended = command(*words)
    assert isinstance(ended.exception, InputError)
    assert message in str(ended.exception)
    assert not Path("other").exists()


@pytest.mark.slow
def test_a_network_that_fails_is_named_and_ends_the_command_with_1(
    study: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(study / "study", tmp_path / "study")
    shutil.rmtree(folder / "cells" / "single-Effusion")
    (folder / "cells" / "single-Effusion").write_text("in the way")
    ended = command("--resume", folder)
    assert ended.exit_code == 1
    result = read_json(folder / "tasks.json")
    assert result["status"] == "incomplete"
    assert list(result["failed"]) == ["single-Effusion"]
    assert result["accuracy"]["findings"]["Effusion"][SINGLE]["value"] is None
    assert result["accuracy"]["findings"]["Effusion"][MULTITASK]["value"] is not None
    assert "single-Effusion failed, and is left out" in ended.output
    page = (folder / "tasks.html").read_text()
    assert "Not all networks could be trained" in page
    assert "<li>single-Effusion: " in page
