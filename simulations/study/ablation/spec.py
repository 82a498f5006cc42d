"""What `consilium-sim ablate` is asked: one YAML file, checked as a plan is.

The plan in it is the best one; each row switches off what it does without. Everything else
(steps, network, images, tests) is the same for all rows, so a difference has one cause.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from common.errors import PlanError
from common.plan import (
    Plan,
    load_plan,
    plan_from_json,
    resolve_weights,
    validation_problems,
)
from common.section import Section
from common.yaml_file import read_mapping
from simulations.study.material import Budget, Filter

RowName = Literal[
    "segmenter",
    "segmenter+unlabelled",
    "classifier",
    "classifier+unlabelled",
    "multitask",
    "multitask+unlabelled",
    "bridge",
]
Arrangement = Literal["pooled", "local", "federation"]


@dataclass(frozen=True)
class Row:
    """What one row of the table learns, and from what."""

    findings: bool
    lungs: bool
    unlabelled: bool = False
    bridge: bool = False


ROWS: dict[RowName, Row] = {
    "segmenter": Row(findings=False, lungs=True),
    "segmenter+unlabelled": Row(findings=False, lungs=True, unlabelled=True),
    "classifier": Row(findings=True, lungs=False),
    "classifier+unlabelled": Row(findings=True, lungs=False, unlabelled=True),
    "multitask": Row(findings=True, lungs=True),
    "multitask+unlabelled": Row(findings=True, lungs=True, unlabelled=True),
    "bridge": Row(findings=True, lungs=True, unlabelled=True, bridge=True),
}


class Domain(Section):
    """Train on images of one kind only, and test on that kind and on another."""

    name: str = Field(pattern=r"^[^\x00-\x1f]{1,40}$")
    train: Filter
    test: Filter
    findings: tuple[Budget, ...] = ("all",)
    masks: tuple[Budget, ...] = ("all",)


class AblationSpec(Section):
    """Rows, columns and seeds of an ablation."""

    name: str = Field("ablation", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    plan: Plan
    rows: tuple[RowName, ...] = Field(tuple(ROWS), min_length=1)
    findings: tuple[Budget, ...] = Field(("all",), min_length=1)
    masks: tuple[Budget, ...] = Field(("all",), min_length=1)
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    arrangements: tuple[Arrangement, ...] = Field(("pooled",), min_length=1)
    domains: tuple[Domain, ...] = ()
    equipment: bool = True
    min_positives: int = Field(10, ge=1, description="test images, for a finding to count")

    @model_validator(mode="after")
    def _can_be_asked(self) -> "AblationSpec":
        plan, rows = self.plan, [ROWS[name] for name in self.rows]
        if plan.training.local_steps is None:
            raise ValueError(
                "the plan must give training.local_steps: with passes over the data a row with "
                "more images would train longer"
            )
        if any(row.unlabelled for row in rows) and plan.semi_supervision.mode == "off":
            raise ValueError("a row with unlabelled images needs a plan with semi_supervision")
        if any(row.bridge for row in rows) and not (plan.tasks.findings and plan.tasks.lungs):
            raise ValueError("the row bridge needs a plan with both tasks")
        for key in ("rows", "findings", "masks", "seeds", "arrangements"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} that are all different")
        numbers = [*self.findings, *self.masks]
        numbers += [n for domain in self.domains for n in (*domain.findings, *domain.masks)]
        if any(isinstance(number, int) and number < 1 for number in numbers):
            raise ValueError("budgets of at least 1, or all")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds of at least 0")
        return self


def load_spec(path: Path) -> AblationSpec:
    """Read a study's YAML file, and the plan that it names, relative to itself.

    Raises PlanError with every mistake: those of a plan in a file of its own come first.
    """
    raw = read_mapping(path, "study keys")
    plan = raw.get("plan")
    if isinstance(plan, str):
        raw["plan"] = load_plan(path.parent / plan).model_dump(mode="json")
    elif isinstance(plan, dict):
        resolve_weights(plan, path)
    try:
        return AblationSpec.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise PlanError(validation_problems(error, str(path), AblationSpec)) from None


def spec_from_json(text: str, file: str) -> AblationSpec:
    """A spec as a study folder keeps it, the plan within. Raises PlanError."""
    try:
        return AblationSpec.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(validation_problems(error, file, AblationSpec)) from None


def row_plan(plan: Plan, name: RowName, seed: int) -> Plan:
    """The plan of one row: what it does without is off, and the seed is its own.

    A federation goes on with whichever sites can teach: with three masks, two of four cannot.
    Raises PlanError when the plan cannot be cut down so.
    """
    row, value = ROWS[name], plan.model_dump(mode="json")
    value["seed"] = seed
    value["tasks"] |= {"findings": row.findings, "lungs": row.lungs}
    value["federation"]["min_sites"] = 1
    if not row.unlabelled:
        value["semi_supervision"] = {"mode": "off"}
    if not row.bridge:
        value["model"]["bridge"] = "off"
    elif plan.model.bridge == "off":  # the best plan may do without; then where MultiMix had it
        value["model"]["bridge"] = "decoder-input"
    return plan_from_json(json.dumps(value))


def as_json(spec: AblationSpec) -> dict[str, Any]:
    """The spec as plain values, the plan spelled out."""
    return spec.model_dump(mode="json")
