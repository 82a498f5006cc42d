"""The plan: what the coordinator asks of the sites, and nothing else.

A plan is one YAML file. It is frozen, refuses unknown keys, and reports all its errors at
once. It travels to the sites as canonical JSON, named by its SHA-256. This module imports
neither torch nor Flower, so that a site can read and judge a plan before loading either.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import PlanError, Problem
from common.findings import FINDINGS

Backbone = Literal["tiny", "resnet18", "resnet50", "densenet121"]
StrategyName = Literal[
    "fedavg", "fedprox", "fedadam", "fedyogi", "fedavgm", "fedmedian", "fedtrimmedavg", "krum"
]
Scheme = Literal["iid", "case-mix", "dirichlet", "hospitals"]
CaseMix = Literal["outpatient", "ward", "icu", "paediatric", "rural"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of the plan: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelPlan(Section):
    """The network and its input size."""

    backbone: Backbone = "resnet18"
    image_size: int = Field(128, ge=32, le=1024, multiple_of=32, description="pixels per side")
    pretrained: str = Field("none", description="none, imagenet, or a local weight file")
    decoder_width: int = Field(32, ge=8, le=256, description="channels of the finest lung stage")


class TasksPlan(Section):
    """What the network learns, and how much each task's loss weighs."""

    findings: bool = True
    lungs: bool = True
    findings_weight: float = Field(1.0, gt=0.0)
    lungs_weight: float = Field(1.0, gt=0.0)

    @model_validator(mode="after")
    def _one_task(self) -> "TasksPlan":
        if not (self.findings or self.lungs):
            raise ValueError("at least one of findings and lungs must be true")
        return self


class AugmentPlan(Section):
    """Geometric and intensity ranges. A flip is off by default: it destroys laterality."""

    rotate_degrees: float = Field(10.0, ge=0.0, le=45.0)
    translate: float = Field(0.06, ge=0.0, le=0.5, description="share of the image side")
    scale: float = Field(0.12, ge=0.0, le=0.5, description="zoom in [1 - scale, 1 + scale]")
    brightness: float = Field(0.1, ge=0.0, le=1.0)
    contrast: float = Field(0.2, ge=0.0, lt=1.0)
    gamma: float = Field(0.2, ge=0.0, lt=1.0, description="exponent in [1 - g, 1 + g]")
    noise: float = Field(0.02, ge=0.0, le=0.5, description="standard deviation, image in [0, 1]")
    flip: bool = False


class TrainingPlan(Section):
    """How a site trains in one round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0.0, le=10.0)
    head_learning_rate: float | None = Field(
        None, gt=0.0, le=10.0, description="of the heads; null: as the encoder"
    )
    schedule: Literal["constant", "cosine"] = Field("cosine", description="over all rounds")
    warmup_rounds: float = Field(1.0, ge=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    batch_size: int = Field(16, ge=1)
    local_epochs: float | None = Field(None, gt=0.0, description="passes over the data a round")
    local_steps: int | None = Field(None, ge=1, description="optimizer steps a round")
    unit: Literal["image", "patient"] = Field("image", description="what one loss term counts")
    head_epochs: int = Field(
        0, ge=0, description="passes that fit the findings head to the last shared encoder"
    )
    max_gradient_norm: float | None = Field(
        1.0, gt=0.0, description="clip the batch gradient to this L2 norm; null: do not clip"
    )
    augment: AugmentPlan = AugmentPlan()
    compile: bool = False

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "TrainingPlan":
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        return self


class StrategyPlan(Section):
    """Which Flower strategy aggregates. A value of null leaves the strategy's own default."""

    name: StrategyName = "fedavg"
    proximal_mu: float = Field(0.0, ge=0.0, description="fedprox: weight of the proximal term")
    server_learning_rate: float | None = Field(None, gt=0.0, description="fedadam/yogi/avgm")
    server_momentum: float | None = Field(None, ge=0.0, lt=1.0, description="fedavgm")
    trim: float = Field(0.2, ge=0.0, lt=0.5, description="fedtrimmedavg: share cut at each end")
    malicious_sites: int = Field(0, ge=0, description="krum: how many sites may be malicious")

    @model_validator(mode="after")
    def _mu_belongs_to_fedprox(self) -> "StrategyPlan":
        if (self.name == "fedprox") != (self.proximal_mu > 0):
            raise ValueError("proximal_mu > 0 goes with fedprox, and only with it")
        return self


class FederationPlan(Section):
    """Rounds, aggregation and transport."""

    rounds: int = Field(10, ge=1, le=10_000)
    min_sites: int = Field(2, ge=1, description="fewer good updates than this fail the round")
    round_timeout: float = Field(3600.0, gt=0.0, description="seconds")
    strategy: StrategyPlan = StrategyPlan()
    weighting: Literal["labelled", "size", "equal"] = "labelled"
    wire: Literal["bf16", "fp32"] = Field("bf16", description="format of deltas in transit")
    max_update_norm: float | None = Field(
        None, gt=0.0, description="firewall: largest L2 norm; null: 10 x the round's median"
    )


class EvaluationPlan(Section):
    """What is measured, and against what."""

    every: int = Field(1, ge=1, description="rounds between validations at the sites")
    bootstrap: int = Field(1000, ge=0, le=100_000, description="patient resamples")
    encoder: Literal["last", "best"] = Field("last", description="which one the report tests")
    baselines: tuple[Literal["local", "pooled"], ...] = ("local", "pooled")


class PartitionPlan(Section):
    """How one archive becomes several hospitals. Patients are dealt out, never rows."""

    scheme: Scheme = "case-mix"
    case_mix: tuple[CaseMix, ...] | None = Field(None, description="null: the first N kinds")
    alpha: float = Field(0.5, gt=0.0, description="dirichlet concentration")
    quantity_ratio: float | None = Field(
        None, ge=1.0, description="log-normal sizes, largest / smallest site"
    )
    findings_per_site: tuple[int, int] | None = Field(
        None, description="partial labels: each site annotates between so many findings"
    )
    label_fraction: tuple[Fraction, ...] | None = Field(
        None, description="share of labelled training patients, one number a site"
    )
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = Field(0.2, description="used only without an official test list")

    @model_validator(mode="after")
    def _fits(self) -> "PartitionPlan":
        low_high = self.findings_per_site
        if low_high and not 1 <= low_high[0] <= low_high[1] <= len(FINDINGS):
            raise ValueError(f"findings_per_site must be [low, high] within 1..{len(FINDINGS)}")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError("val_fraction + test_fraction must leave patients for training")
        return self


class SimulationPlan(Section):
    """Only `consilium-sim` reads this part; a deployed site ignores it."""

    sites: int = Field(4, ge=1, le=1000, description="hospitals cut from the archive")
    phantom_images: int = Field(1000, ge=1, description="archive made when no data is given")
    partition: PartitionPlan = PartitionPlan()
    mask_test: int = Field(40, ge=1, description="mask images held back to test the lungs")
    cpus_per_site: float = Field(1.0, gt=0.0)
    gpus_per_site: float = Field(0.0, ge=0.0)


class Plan(Section):
    """Everything a federation needs to know, and all that a site has to agree to."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    seed: int = Field(0, ge=0, lt=2**63)
    deterministic: bool = False
    model: ModelPlan = ModelPlan()
    tasks: TasksPlan = TasksPlan()
    heads: Literal["local", "shared"] = "local"
    training: TrainingPlan = TrainingPlan(local_epochs=1.0)
    federation: FederationPlan = FederationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    simulation: SimulationPlan = SimulationPlan()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. The same plan is the same string."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Hex digest of the canonical JSON: the plan's name in ledgers and updates."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def plan_from_json(text: str) -> Plan:
    """Read the canonical JSON of a plan, as a site receives it.

    Raises PlanError when it is not a valid plan.
    """
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(_problems(error, "plan")) from None


def load_plan(path: Path) -> Plan:
    """Read a plan from a YAML file. Raises PlanError with every mistake in it."""
    file = str(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PlanError(
            Problem(file, "", reason, "a readable YAML file", "Check the path of the plan.")
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise PlanError(
            Problem(file, "", f"text that is not YAML ({reason})", "a YAML mapping", "Mend it.")
        ) from None
    if not isinstance(raw, dict):
        found = f"a {type(raw).__name__}"
        raise PlanError(
            Problem(file, "", found, "a mapping of plan keys", "Start from simulations/plans.")
        )
    _resolve_weights(raw, path)
    try:
        # Through JSON: YAML lists then become the plan's tuples, in strict mode too.
        return Plan.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise PlanError(_problems(error, file)) from None


def _resolve_weights(raw: dict[str, Any], path: Path) -> None:
    """A weight file is named relative to its plan; Flower runs the server somewhere else."""
    model = raw.get("model")
    source = model.get("pretrained") if isinstance(model, dict) else None
    if isinstance(source, str) and source not in ("none", "imagenet"):
        raw["model"] = {**raw["model"], "pretrained": str((path.parent / source).resolve())}


def _problems(error: ValidationError, file: str) -> list[Problem]:
    """Pydantic's errors in our words: one Problem each."""
    return [_problem(detail, file) for detail in error.errors(include_url=False)]


def _problem(detail: Any, file: str) -> Problem:
    key = ".".join(str(part) for part in detail["loc"]) or "plan"
    if detail["type"] == "extra_forbidden":
        return Problem(
            file,
            f"key {key!r}",
            "an unknown key",
            _known_keys(detail["loc"]),
            "Remove or rename it.",
        )
    if detail["type"] == "missing":
        return Problem(file, f"key {key!r}", "nothing", "a value (it is required)", "Add it.")
    found = json.dumps(detail["input"], default=str)
    found = found if len(found) <= 80 else found[:77] + "..."
    allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return Problem(file, f"key {key!r}", found, allowed, "Change the value.")


def _known_keys(loc: tuple[str | int, ...]) -> str:
    """The keys that the section of an unknown key does have."""
    section: type[BaseModel] = Plan
    for part in loc[:-1]:
        field = section.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type):
            break
        section = field.annotation
    return "one of " + ", ".join(section.model_fields)
