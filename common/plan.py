"""The plan: what the coordinator asks of the sites, and nothing else.

A plan is one YAML file. It is frozen, refuses unknown keys, and reports all its errors at
once. It travels to the sites as canonical JSON, named by its SHA-256. This module imports
neither torch nor Flower, so that a site can read and judge a plan before loading either.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from common.errors import PlanError, Problem
from common.model_plan import WEIGHTS_BY_NAME, ModelPlan
from common.section import Section
from common.sections import (
    EvaluationPlan,
    FederationPlan,
    PrivacyPlan,
    SemiSupervisionPlan,
    TasksPlan,
    TrainingPlan,
)
from common.simulated import SimulationPlan
from common.yaml_file import read_mapping

MAX_WIRE_BYTES = 65_536  # of canonical JSON: a plan has 3 KB, with lists for 1,000 sites 50 KB
MOST_PRIVATE_STEPS = 1_000_000  # of a whole plan; the accounting of more is neither fast nor useful
_TOO_MANY_STEPS = (
    "training.local_steps (or local_epochs) x federation.rounds: at most "
    f"{MOST_PRIVATE_STEPS:,} private steps"
)


class Plan(Section):
    """Everything a federation needs to know, and all that a site has to agree to."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    seed: int = Field(0, ge=0, lt=2**63)
    deterministic: bool = False
    model: ModelPlan = ModelPlan()
    tasks: TasksPlan = TasksPlan()
    heads: Literal["local", "shared"] = "local"
    training: TrainingPlan = TrainingPlan(local_epochs=1.0)
    semi_supervision: SemiSupervisionPlan = SemiSupervisionPlan()
    privacy: PrivacyPlan = PrivacyPlan()
    federation: FederationPlan = FederationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    simulation: SimulationPlan = SimulationPlan()

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        tasks, semi = self.tasks, self.semi_supervision
        if self.model.bridge != "off" and not (tasks.findings and tasks.lungs):
            raise ValueError("model.bridge joins both tasks: findings and lungs must be true")
        if semi.mode == "fixmatch" and self.simulation.partition.val_fraction == 0:
            raise ValueError(
                "semi_supervision.mode fixmatch takes its thresholds from labelled validation "
                "images: simulation.partition.val_fraction must be above 0"
            )
        return self

    @model_validator(mode="after")
    def _keeps_its_privacy_promise(self) -> "Plan":
        """Refuse what would void the guarantee, instead of training it wrongly."""
        privacy, training = self.privacy, self.training
        if privacy.mode == "off":
            return self
        broken = [
            (
                (privacy.epsilon is None) == (privacy.noise_multiplier is None),
                "give exactly one of privacy.epsilon and privacy.noise_multiplier",
            ),
            (
                self.federation.weighting not in ("declared", "equal"),
                "federation.weighting: a count of images would leave; use declared or equal",
            ),
            (
                self.semi_supervision.mode == "fixmatch",
                "semi_supervision.mode: fixmatch takes thresholds from labels without noise; "
                "use mean-teacher",
            ),
            (
                self.evaluation.encoder == "best",
                "evaluation.encoder: best is chosen by scores without noise; use last",
            ),
            (self.deterministic, "deterministic: noise that can be repeated protects nobody"),
            (
                training.max_gradient_norm is not None,
                "training.max_gradient_norm: each unit is clipped instead; set this to null",
            ),
            (
                training.lungs_batch_size is not None,
                "training.lungs_batch_size: a unit is drawn once a step; set this to null",
            ),
            (training.compile, "training.compile: gradients per unit need the plain model"),
            (
                training.head_epochs > 0,
                "training.head_epochs: heads without noise are a site's own wish "
                "(serving_head_epochs in its site.yaml); set this to 0",
            ),
        ]
        broken.append((self._least_steps() > MOST_PRIVATE_STEPS, _TOO_MANY_STEPS))
        problems = [words for wrong, words in broken if wrong]
        if problems:
            raise ValueError("under privacy.mode dp-sgd: " + "; ".join(problems))
        return self

    def _least_steps(self) -> float:
        """Steps of the whole plan at a site that draws all its units in every one of them."""
        training = self.training
        each = training.local_epochs if training.local_steps is None else training.local_steps
        assert each is not None  # the section's validator: one of the two is given
        return each * self.federation.rounds

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. The same plan is the same string."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Hex digest of the canonical JSON: the plan's name in ledgers and updates."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def plan_from_json(text: str) -> Plan:
    """Read the canonical JSON of a plan, as a site receives it.

    Raises PlanError for one longer than MAX_WIRE_BYTES, before it is parsed, or not valid.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_WIRE_BYTES:
        found, allowed = f"a plan of {size:,} bytes", f"at most {MAX_WIRE_BYTES:,} bytes"
        raise PlanError(Problem("plan", "", found, allowed, "Ask the coordinator for a plan."))
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(validation_problems(error, "plan", Plan)) from None


def load_plan(path: Path) -> Plan:
    """Read a plan from a YAML file. Raises PlanError with every mistake in it."""
    raw = read_mapping(path, "plan keys")
    resolve_weights(raw, path)
    try:
        # Through JSON: YAML lists then become the plan's tuples, in strict mode too.
        return Plan.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise PlanError(validation_problems(error, str(path), Plan)) from None


def resolve_weights(raw: dict[str, Any], path: Path) -> None:
    """A weight file is named relative to its plan; Flower runs the server somewhere else."""
    model = raw.get("model")
    source = model.get("pretrained") if isinstance(model, dict) else None
    if isinstance(source, str) and source not in WEIGHTS_BY_NAME:
        raw["model"] = {**raw["model"], "pretrained": str((path.parent / source).resolve())}


def validation_problems(error: ValidationError, file: str, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors about `model` in our words: one Problem each."""
    return [_problem(detail, file, model) for detail in error.errors(include_url=False)]


def _problem(detail: Any, file: str, model: type[BaseModel]) -> Problem:
    key = ".".join(str(part) for part in detail["loc"]) or "plan"
    if detail["type"] == "extra_forbidden":
        return Problem(
            file,
            f"key {key!r}",
            "an unknown key",
            _known_keys(detail["loc"], model),
            "Remove or rename it.",
        )
    if detail["type"] == "missing":
        return Problem(file, f"key {key!r}", "nothing", "a value (it is required)", "Add it.")
    found = json.dumps(detail["input"], default=str)
    found = found if len(found) <= 80 else found[:77] + "..."
    allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "bool_type":  # `yes` and `on` are words
        allowed = "true or false"
    return Problem(file, f"key {key!r}", found, allowed, "Change the value.")


def _known_keys(loc: tuple[str | int, ...], section: type[BaseModel]) -> str:
    """The keys that the section of an unknown key does have."""
    for part in loc[:-1]:
        if isinstance(part, int):  # a place in a list of sections
            continue
        field = section.model_fields.get(part)
        inner = None if field is None else _section_in(field.annotation)
        if inner is None:
            break
        section = inner
    return "one of " + ", ".join(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)
