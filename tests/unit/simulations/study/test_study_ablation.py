"""A whole ablation, small enough for a test: from the command to the page."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from common.checkpoint import read_json
from common.errors import InputError, PlanError
from simulations.cli import app
from simulations.study.ablation.report import render_ablation
from tests.conftest import ArchiveFactory
from tests.unit.simulations.study.study_world import study_plan

SPEC: dict[str, Any] = {
    "rows": ["segmenter", "classifier", "multitask", "multitask+unlabelled"],
    "findings": [8],
    "masks": [2, 4],
    "seeds": [1, 2],
    "min_positives": 2,
}


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["ablate", *map(str, words)], catch_exceptions=True)


@pytest.fixture
def archive(nih_archive: ArchiveFactory) -> Path:
    return nih_archive(patients=24, masks=True)


def write_spec(folder: Path, **more: Any) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump({"plan": study_plan()} | SPEC | more))
    return file


class Outside(HTMLParser):
    """What a page loads from elsewhere, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        links = [v or "" for k, v in attributes if k in ("src", "href")]
        self.found += [link for link in links if not link.startswith("data:")]
        self.found += [tag] if tag in ("script", "link", "iframe") else []


@pytest.mark.slow
def test_from_the_command_to_the_page_and_on(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "out"
    masks = archive / "masks"
    done = invoke(write_spec(tmp_path), "--data", archive, "--masks", masks, "--out", out)
    assert done.exit_code == 0, done.output
    assert "[14/14]" in done.output
    result = read_json(out / "ablation.json")
    assert (result["status"], result["failed"], result["steps"]) == ("completed", {}, 1)
    assert len(result["cell_seconds"]) == 2 * (2 + 1 + 2 + 2)
    rows = {(line["row"], line["masks"], line["view"]) for line in result["results"]}
    assert rows == {
        (row, budget, view)
        for row, budgets in (
            ("segmenter", (2, 4)),
            ("classifier", (None,)),
            ("multitask", (2, 4)),
            ("multitask+unlabelled", (2, 4)),
        )
        for budget in budgets
        for view in ("in-domain", "other equipment")
    }
    for line in result["results"]:
        assert (line["dice"] is None) == (line["row"] == "classifier")
        assert (line["auroc"] is None) == (line["row"] == "segmenter")
    asked = {(c["question"], c["row"], c["against"], c["measure"]) for c in result["comparisons"]}
    assert asked == {
        ("unlabelled", "multitask+unlabelled", "multitask", "auroc"),
        ("unlabelled", "multitask+unlabelled", "multitask", "dice"),
        ("multitask", "multitask", "classifier", "auroc"),
        ("multitask", "multitask", "segmenter", "dice"),
    }
    page = (out / "ablation.html").read_text()
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert "Do images that nobody has annotated help?" in page
    again = invoke("--resume", out, "--json")
    assert again.exit_code == 0, again.output
    second = json.loads(again.stdout)
    assert second["results"] == result["results"]
    assert second["comparisons"] == result["comparisons"]


@pytest.mark.slow
def test_more_seeds_and_arrangements_in_the_same_folder(tmp_path: Path, archive: Path) -> None:
    words = ("--data", archive, "--masks", archive / "masks", "--out", tmp_path / "out")
    small = {"rows": ["multitask"], "masks": [4], "seeds": [1], "equipment": False}
    first = invoke(write_spec(tmp_path, **small), *words)
    assert first.exit_code == 0, first.output
    domain = {"name": "<PA> to AP", "train": {"view": "PA"}, "test": {"view": "AP"}}
    more = {"arrangements": ["pooled", "local", "federation"], "domains": [domain]}
    second = invoke(write_spec(tmp_path, **small, **more), *words)
    assert second.exit_code == 0, second.output
    assert "1 of 5 cells are done already" in second.output
    result = read_json(tmp_path / "out" / "ablation.json")
    questions = {(c["question"], c["against_arrangement"]) for c in result["comparisons"]}
    assert questions == {("federation", "local"), ("price", "pooled")}
    views = {(line["domain"], line["view"]) for line in result["results"]}
    assert views == {
        (None, "in-domain"),
        ("<PA> to AP", "in-domain"),
        ("<PA> to AP", "cross-domain"),
    }
    page = (tmp_path / "out" / "ablation.html").read_text()
    assert "&lt;PA&gt; to AP" in page
    assert "<PA>" not in page


@pytest.mark.slow
def test_a_failed_cell_is_named_and_the_rest_is_compared(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "out"
    words = ("--data", archive, "--masks", archive / "masks", "--out", out)
    small = {"rows": ["classifier", "multitask"], "masks": [4], "seeds": [1], "equipment": False}
    cell = "multitask.f8.m4.s1.pooled"
    first = invoke(write_spec(tmp_path, **small | {"rows": ["classifier"]}), *words)
    assert first.exit_code == 0, first.output
    (out / "cells" / cell).write_text("in the way")
    second = invoke(write_spec(tmp_path, **small), *words)
    assert second.exit_code == 1
    result = read_json(out / "ablation.json")
    assert result["status"] == "incomplete"
    assert list(result["failed"]) == [cell]
    assert "Not a directory" in result["failed"][cell]
    assert [line["row"] for line in result["results"]] == ["classifier"]
    assert cell in (out / "ablation.html").read_text()
    (out / "cells" / cell).unlink()
    assert invoke("--resume", out).exit_code == 0


def test_bad_words_on_the_command_line(tmp_path: Path, archive: Path) -> None:
    assert isinstance(invoke().exception, InputError)
    assert "a spec file" in str(invoke().exception)
    assert isinstance(invoke(tmp_path / "none.yaml").exception, PlanError)
    extra = invoke("--resume", tmp_path, "--data", archive)
    assert "--data too" in str(extra.exception)
    assert "no ablate study" in str(invoke("--resume", tmp_path).exception)
    spec = write_spec(tmp_path, masks=[999])
    many = invoke(spec, "--data", archive, "--masks", archive / "masks", "--out", tmp_path / "many")
    assert "found 999 training images" in str(many.exception)


def test_a_page_without_anything_to_compare() -> None:
    result = {
        "spec": {
            "name": "<b>", "plan": study_plan() | {"evaluation": {"bootstrap": 5}},
            "seeds": [1], "min_positives": 3, "equipment": False, "domains": [],
        },
        "plan_sha256": "0" * 64, "failed": {"cell": "<i>reason"}, "steps": 4, "results": [],
        "comparisons": [], "cell_seconds": {}, "machine": {"cpu": "<u>"},
        "data": {
            "name": "<s>", "synthetic": True, "hospitals": ["<h>"], "training_images": 1,
            "training_patients": 1, "labelled": 0, "outlined": 0, "tests": {},
        },
    }  # fmt: skip
    page = render_ablation(result)
    assert "Nothing could be compared" in page
    assert "Synthetic images" in page
    for tag in ("<b>", "<i>", "<u>", "<s>", "<h>"):
        assert tag not in page
