"""What the page says about the numbers, worst cases included."""

from pathlib import Path
from typing import Any

import pytest

from common.findings import FINDINGS
from simulations.study.tasks.cost import FINDINGS_ONLY, LUNGS_ONLY, MULTITASK, SINGLE
from simulations.study.tasks.report import render_tasks, write_tasks
from simulations.study.tasks.words import (
    accuracy_sentence,
    batch_name,
    cost_sentences,
    leading,
    limits,
    lungs_sentence,
    part,
)

Json = dict[str, Any]
UNDEFINED: Json = {"value": None, "low": None, "high": None, "positives": 0}


def interval(value: float, low: float | None, high: float | None, positives: int = 12) -> Json:
    return {"value": value, "low": low, "high": high, "positives": positives}


def line(change: Json = UNDEFINED, over: tuple[str, ...] = FINDINGS) -> Json:
    score = interval(0.7, 0.6, 0.8) if change is not UNDEFINED else UNDEFINED
    names = (MULTITASK, FINDINGS_ONLY, SINGLE)
    differences = {"multitask_vs_single": change, "multitask_vs_findings": change}
    return {"over": list(over), **dict.fromkeys(names, score), **differences}


def ratio(key: str, over: str, value: float, goal: float | None = None) -> Json:
    met = None if goal is None else value <= goal
    facts = {"low": value * 0.9, "high": value * 1.1} if "seconds" in key else {}
    limits = {"low": value, "high": value} | facts
    return {"key": key, "over": over, "value": value, "goal": goal, "met": met, **limits}


def cost() -> Json:
    one = {"networks": 1, "parameters": 300_000, "megabytes": 1.2, "flops": 55_000_000}
    kind = one | {"seconds": {"1": 0.004, "32": 0.002}}
    kinds = dict.fromkeys((MULTITASK, FINDINGS_ONLY, LUNGS_ONLY), kind)
    kinds[SINGLE] = kind | {"networks": 14}
    keys = ("size", "parameters", "flops", "seconds at batch 1", "seconds at batch 32")
    ratios = [ratio(key, FINDINGS_ONLY, 1.2) for key in keys]
    values = (0.08, 0.08, 0.09, 0.11, 0.15)
    goals = (0.1, None, None, 0.125, 0.125)
    for key, value, goal in zip(keys, values, goals, strict=True):
        ratios.append(ratio(key, SINGLE, value, goal))
    return {"kinds": kinds, "ratios": ratios, "device": "cpu", "threads": 1, "repeats": 5}


def result(change: Json | None = None) -> Json:
    change = interval(-0.012, -0.030, 0.006) if change is None else change
    step = {"labels": 8.0, "masks": 4.0}
    dice = {name: interval(0.9, 0.8, 0.95) for name in (MULTITASK, LUNGS_ONLY)}
    return {
        "name": "study",
        "plan": {"model": {"backbone": "tiny", "image_size": 64}, "evaluation": {"bootstrap": 9}},
        "plan_sha256": "0" * 64,
        "data": {
            "name": "archive",
            "synthetic": False,
            "train_images": 1000,
            "train_labelled": 900,
            "train_masks": 50,
            "train_positives": dict.fromkeys(FINDINGS, 3),
            "test_images": 200,
            "test_patients": 150,
            "lungs_test_images": 40,
        },
        "training": {
            "steps": 1200,
            "seed": 1,
            "per_step": dict.fromkeys((MULTITASK, FINDINGS_ONLY, LUNGS_ONLY), step),
        },
        "accuracy": {
            "findings": {finding: line(change) for finding in FINDINGS},
            "macro": line(change),
            "macro_defined": line(change),
        },
        "lungs": dice | {"multitask_vs_lungs": interval(0.0, -0.01, 0.01)},
        "cost": cost(),
        "cell_seconds": {MULTITASK: 61.0, f"{SINGLE}-Mass": 30.0, f"{SINGLE}-Edema": 40.0},
        "failed": {},
        "machine": {"cpu": "a processor", "cores": 2},
    }


@pytest.mark.parametrize(
    ("change", "verdict", "sure"),
    [
        (interval(0.02, 0.01, 0.03), "better than", "excludes zero"),
        (interval(-0.02, -0.03, -0.01), "worse than", "excludes zero"),
        (interval(-0.02, -0.05, 0.01), "not distinguishable from", "includes zero"),
        (interval(0.02, None, None), "ahead of", "stays open"),
        (interval(-0.02, None, None), "behind", "stays open"),
        (interval(0.0, None, None), "level with", "stays open"),
    ],
)
def test_the_difference_is_said_with_its_interval_whatever_it_is(
    change: Json, verdict: str, sure: str
) -> None:
    sentence = accuracy_sentence(line(change), SINGLE)
    assert f"is {verdict} the single-task networks: 0.700 against 0.700" in sentence
    assert sure in sentence
    assert ("another training may differ" in sentence) == (sure == "excludes zero")


def test_what_was_not_measured_is_open() -> None:
    assert "is open" in accuracy_sentence(line(), FINDINGS_ONLY)
    undefined = dict.fromkeys((MULTITASK, LUNGS_ONLY, "multitask_vs_lungs"), UNDEFINED)
    assert lungs_sentence(undefined).startswith("How the multitask network compares with")


def test_goals_are_said_to_be_met_or_missed() -> None:
    size, one, many = cost_sentences(cost())
    assert "1/12.5 of the size of the 14 single-task networks; the goal, at most 1/10" in size
    assert size.endswith("is met.")
    assert "1/9.1 of the time (one image at a time)" in one
    assert one.endswith("at most 1/8, is met.")
    assert "1/6.7 of the time (32 images at a time)" in many
    assert many.endswith("is missed.")
    assert part(0.5) == "1/2.0"
    assert batch_name("seconds at batch 1") == "one image at a time"


def test_the_page_leads_with_frequent_findings_if_there_are_any() -> None:
    both = result()
    both["accuracy"]["macro"]["over"] = ["Mass"]
    assert leading(both)["over"] == ["Mass"]
    both["accuracy"]["macro"] = line(over=())
    assert leading(both)["over"] == list(FINDINGS)
    assert "None of them has 10 positive test" in render_tasks(both)


def test_unequal_training_and_findings_without_positives_are_named() -> None:
    fair = result()
    assert not any("A step taught" in text for text in limits(fair))
    unfair = result()
    unfair["training"]["per_step"] = fair["training"]["per_step"] | {
        FINDINGS_ONLY: {"labels": 16.0, "masks": 0.0}
    }
    unfair["data"]["train_positives"] = dict.fromkeys(FINDINGS, 3) | {"Pleural_Thickening": 0}
    texts = " ".join(limits(unfair))
    assert "8.0 images with labels and the findings-only one 16.0" in texts
    assert "not learnt by anyone: Pleural Thickening." in texts


def test_the_page_holds_every_finding_and_what_it_cost(tmp_path: Path) -> None:
    path = write_tasks(result(), tmp_path)
    page = path.read_text()
    assert (tmp_path / "tasks.json").exists()
    assert "<code>2026-01-31</code>" in render_tasks(result() | {"date": "2026-01-31"})
    for finding in FINDINGS:
        assert f'scope="row">{finding.replace("_", " ")}</th>' in page
    assert "−0.012<br>(−0.030 to +0.006)" in page
    assert "1/8: missed" in page
    assert "1 min 1 s for the multitask network" in page
    assert "1 min 10 s for 2 single-task ones together" in page
    assert "data:image/svg+xml;base64," in page
    assert "<script" not in page
    assert "http" not in page
    assert render_tasks(result()) == page  # the same numbers, the same bytes


def test_names_and_reasons_are_escaped() -> None:
    hostile = result()
    hostile["failed"] = {"single-Mass": "<b>bold</b>"}
    hostile["data"]["name"] = hostile["command"] = "<i>archive</i>"
    page = render_tasks(hostile)
    assert "&lt;b&gt;bold" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_without_any_number_there_is_still_a_page() -> None:
    empty = result(UNDEFINED)
    for key in ("macro", "macro_defined"):
        empty["accuracy"][key] = line(over=())
    empty["data"]["synthetic"] = True
    page = render_tasks(empty)
    assert "<img" not in page
    assert "Synthetic images" in page
