"""What a study may be asked, and what is said about what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import PlanError
from simulations.study.ablation.spec import ROWS, as_json, load_spec, row_plan, spec_from_json
from tests.unit.simulations.study.study_world import study_plan, study_spec


def write(folder: Path, **more: Any) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump({"plan": study_plan()} | more))
    return file


def test_a_plan_lies_beside_the_spec_or_in_it(tmp_path: Path) -> None:
    inline = load_spec(write(tmp_path))
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "best.yaml").write_text(yaml.safe_dump(study_plan()))
    beside = load_spec(write(tmp_path, plan="plans/best.yaml"))
    assert beside == inline
    assert spec_from_json(json.dumps(as_json(inline)), "kept") == inline
    assert inline.rows == tuple(ROWS)


def test_a_weight_file_is_found_beside_the_spec(tmp_path: Path) -> None:
    model = study_plan()["model"] | {"pretrained": "weights.safetensors"}
    spec = load_spec(write(tmp_path, plan=study_plan(model=model)))
    assert spec.plan.model.pretrained == str(tmp_path / "weights.safetensors")


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    domain = {"name": "x", "train": {"vieuw": "PA"}, "test": {}}
    file = write(tmp_path, rows=["bridge", "magic"], mask=[3], domains=[domain])
    with pytest.raises(PlanError) as caught:
        load_spec(file)
    text = str(caught.value)
    assert "'rows.1'" in text
    assert "key 'mask': found an unknown key; allowed: one of name, plan, rows" in text
    assert "key 'domains.0.train.vieuw': found an unknown key; allowed: one of view, site" in text
    assert "key 'domains.0.test'" in text


@pytest.mark.parametrize(
    ("more", "plan", "message"),
    [
        ({}, {"training": {"local_epochs": 1.0}}, "training.local_steps"),
        ({}, {"semi_supervision": {"mode": "off"}}, "semi_supervision"),
        ({"seeds": [1, 1]}, {}, "seeds that are all different"),
        ({"seeds": [-1]}, {}, "seeds of at least 0"),
        ({"masks": [0]}, {}, "budgets of at least 1"),
        ({"findings": []}, {}, "at least 1 item"),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, more: dict[str, Any], plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        load_spec(write(tmp_path, plan=study_plan(**plan), **more))


def test_a_spec_or_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match=r"other\.yaml.*No such file"):
        load_spec(write(tmp_path, plan="other.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(PlanError, match="found a list; allowed: a mapping of study keys"):
        load_spec(tmp_path / "list.yaml")


def test_a_row_is_the_plan_less_what_it_does_without() -> None:
    plan = study_spec().plan
    for name, row in ROWS.items():
        own = row_plan(plan, name, 7)
        assert (own.tasks.findings, own.tasks.lungs) == (row.findings, row.lungs)
        assert (own.semi_supervision.mode != "off") == row.unlabelled
        assert (own.model.bridge != "off") == row.bridge
        assert own.seed == 7
        assert own.training == plan.training
    without = plan.model_copy(update={"model": plan.model.model_copy(update={"bridge": "off"})})
    assert row_plan(without, "bridge", 7).model.bridge == "decoder-input"
    best = row_plan(plan, "bridge", plan.seed)
    assert best.semi_supervision == plan.semi_supervision
