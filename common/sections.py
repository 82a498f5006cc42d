"""The sections of a plan, with what each key means and may be.

`common.plan` puts them together. To add a key: add it here, with its range and, where the name
does not say it all, a description. Imports neither torch nor Flower.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.section import Section

StrategyName = Literal[
    "fedavg", "fedprox", "fedadam", "fedyogi", "fedavgm", "fedmedian", "fedtrimmedavg", "krum"
]
Unit = Literal["patient", "image"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e4)]
SomeWeight = Annotated[float, Field(gt=0.0, le=1e4)]

MOST_ROUNDS, MOST_STEPS = 10_000, 100_000  # of a plan, and of one round
MOST_BATCH = 131_072  # units in a step: more than all images of the largest public archives


class TasksPlan(Section):
    """What the network learns, and how much each task's loss weighs."""

    findings: bool = True
    lungs: bool = True
    findings_weight: SomeWeight = 1.0
    lungs_weight: SomeWeight = 1.0

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


class WeakView(AugmentPlan):
    """What the teacher sees: nearly the image itself, so that its answer is at its best."""

    rotate_degrees: float = Field(0.0, ge=0.0, le=45.0)
    translate: float = Field(0.0, ge=0.0, le=0.5)
    scale: float = Field(0.0, ge=0.0, le=0.5)
    brightness: float = Field(0.05, ge=0.0, le=1.0)
    contrast: float = Field(0.1, ge=0.0, lt=1.0)
    gamma: float = Field(0.1, ge=0.0, lt=1.0)
    noise: float = Field(0.0, ge=0.0, le=0.5)


class StrongView(AugmentPlan):
    """What the student sees, placed as the weak view is: harder, and still a radiograph."""

    rotate_degrees: float = Field(15.0, ge=0.0, le=45.0)
    translate: float = Field(0.08, ge=0.0, le=0.5)
    scale: float = Field(0.15, ge=0.0, le=0.5)
    brightness: float = Field(0.1, ge=0.0, le=1.0)
    contrast: float = Field(0.25, ge=0.0, lt=1.0)
    gamma: float = Field(0.25, ge=0.0, lt=1.0)
    noise: float = Field(0.03, ge=0.0, le=0.5)
    blur: float = Field(0.004, ge=0.0, le=0.05, description="largest deviation, share of the side")
    cutout: float = Field(0.0, ge=0.0, le=0.5, description="largest square, share of the side")


class SemiSupervisionPlan(Section):
    """How a site learns from images that nobody has labelled or outlined.

    mean-teacher: the student's answer on a strong view follows the answer of an average of its
    own past on a weak view. fixmatch: on findings only where the teacher is sure, and then as a
    hard label; on lungs as mean-teacher.
    """

    mode: Literal["off", "mean-teacher", "fixmatch"] = "off"
    findings_weight: Weight = 0.3
    lungs_weight: Weight = 0.1
    batch_size: int = Field(8, ge=1, le=4096, description="units without annotation in a step")
    teacher_decay: float = Field(
        0.999, ge=0.0, lt=1.0, description="of the average, per step; it starts anew every round"
    )
    start: Fraction = Field(0.3, description="share of all rounds before the term begins")
    ramp: Fraction = Field(0.3, description="share of all rounds until it has its full weight")
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    precision: Fraction = Field(0.6, description="fixmatch: of positives, on labelled validation")
    negative_predictive_value: Fraction = Field(0.995, description="fixmatch: of negatives")
    negative_weight: Weight = Field(0.3, description="fixmatch: of a negative's loss")
    lungs_confidence: float = Field(
        0.9, ge=0.5, lt=1.0, description="pixels where the teacher is less sure are left out"
    )
    vote: Fraction = Field(
        0.1, description="what an image without annotation adds to a site's weight; 1: as a label"
    )

    @model_validator(mode="after")
    def _ends_in_time(self) -> "SemiSupervisionPlan":
        if self.start + self.ramp > 1:
            raise ValueError(
                "start + ramp of at most 1: a site without labels joins when the ramp has ended"
            )
        return self


class TrainingPlan(Section):
    """How a site trains in one round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, ge=1e-12, le=10.0)
    head_learning_rate: float | None = Field(
        None, ge=1e-12, le=10.0, description="of the heads; null: as the encoder"
    )
    schedule: Literal["constant", "cosine"] = Field("cosine", description="over all rounds")
    warmup_rounds: float = Field(1.0, ge=0.0, le=MOST_ROUNDS)
    weight_decay: float = Field(0.01, ge=0.0, le=10.0)
    batch_size: int = Field(16, ge=1, le=MOST_BATCH)
    lungs_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="masks added to every step; null: as they come in the batch",
    )
    local_epochs: float | None = Field(
        None, ge=1e-6, le=1000.0, description="passes over the data a round"
    )
    local_steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="optimizer steps a round"
    )
    trains: Literal["all", "norms", "heads"] = Field(
        "all",
        description="beyond frozen_stages: everything, the encoder's norms and the heads, "
        "or the heads alone",
    )
    unit: Unit = Field("image", description="what one loss term counts")
    head_epochs: int = Field(
        0, ge=0, le=1000, description="passes that fit the findings head to the last shared encoder"
    )
    max_gradient_norm: float | None = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="clip the batch gradient to this L2 norm; null: do not clip",
    )
    augment: AugmentPlan = AugmentPlan()
    compile: bool = False

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "TrainingPlan":
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        return self


class PrivacyPlan(Section):
    """Differential privacy of every site's training (DP-SGD: Abadi et al., CCS 2016, section 3).

    off: nothing is clipped and nothing is noised. How many units a site declares, and so its
    sampling rate batch_size / units, is the site's own public word (its site.yaml).
    """

    mode: Literal["off", "dp-sgd"] = "off"
    unit: Unit = Field(
        "patient", description="whose presence is hidden; read instead of training.unit"
    )
    epsilon: float | None = Field(
        None, gt=0.0, le=1e6, description="of the plan's training at every site; the noise follows"
    )
    noise_multiplier: float | None = Field(
        None, ge=1e-3, le=1e4, description="standard deviation of the noise / clipping norm"
    )
    delta: float = Field(1e-5, ge=1e-15, lt=0.1)
    clipping_norm: float = Field(1.0, ge=1e-6, le=1e4, description="L2 norm of a unit's gradient")
    images_per_unit: int = Field(
        4, ge=1, le=1000, description="of one patient in one step, drawn at random"
    )
    views: int = Field(1, ge=1, le=64, description="augmentations of an image in one step")
    average: float = Field(
        0.0, ge=0.0, lt=1.0, description="decay of the average of the weights; 0: the last ones"
    )


class StrategyPlan(Section):
    """Which Flower strategy aggregates. A value of null leaves the strategy's own default."""

    name: StrategyName = "fedavg"
    proximal_mu: Weight = Field(0.0, description="fedprox: weight of the proximal term")
    server_learning_rate: float | None = Field(
        None, ge=1e-12, le=100.0, description="fedadam/yogi/avgm"
    )
    server_momentum: float | None = Field(None, ge=0.0, lt=1.0, description="fedavgm")
    trim: float = Field(0.2, ge=0.0, lt=0.5, description="fedtrimmedavg: share cut at each end")
    malicious_sites: int = Field(
        0, ge=0, le=1000, description="krum: how many sites may be malicious"
    )

    @model_validator(mode="after")
    def _mu_belongs_to_fedprox(self) -> "StrategyPlan":
        if (self.name == "fedprox") != (self.proximal_mu > 0):
            raise ValueError("proximal_mu > 0 goes with fedprox, and only with it")
        return self


class FederationPlan(Section):
    """Rounds, aggregation and transport."""

    rounds: int = Field(10, ge=1, le=MOST_ROUNDS)
    min_sites: int = Field(
        2, ge=1, le=1000, description="fewer good updates than this fail the round"
    )
    round_timeout: float = Field(3600.0, ge=1e-3, le=2_592_000.0, description="seconds")
    strategy: StrategyPlan = StrategyPlan()
    weighting: Literal["labelled", "size", "declared", "equal"] = Field(
        "labelled", description="images with labels, all images, declared units, or one vote each"
    )
    wire: Literal["bf16", "fp32"] = Field("bf16", description="format of deltas in transit")
    max_share: float = Field(
        0.5, gt=0.0, le=1.0, description="of the average that one site may have; too few: equal"
    )
    max_update_norm: float | None = Field(
        None,
        ge=1e-6,
        le=1e6,
        description="firewall: largest L2 norm; null: 3 x the start's, and 10 x the round's median",
    )


class EvaluationPlan(Section):
    """What is measured, and against what."""

    every: int = Field(
        1, ge=1, le=MOST_ROUNDS, description="rounds between validations at the sites"
    )
    bootstrap: int = Field(1000, ge=0, le=100_000, description="patient resamples")
    encoder: Literal["last", "best"] = Field(
        "last", description="which one the report tests; best: by the median of 3 or more sites"
    )
    baselines: tuple[Literal["local", "pooled"], ...] = Field(("local", "pooled"), max_length=2)
