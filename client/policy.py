"""What a hospital allows, whatever a plan asks: its budget, its floors, and what may leave.

The policy is part of `site.yaml`; the coordinator cannot change it. A site without a policy has
the strictest one: no plan may run until the hospital has set a cap.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import RefusedError
from common.model_plan import BACKBONES, Backbone
from common.plan import Plan
from common.sections import Unit


class Policy(BaseModel):
    """The key `policy` of `site.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    non_private: Literal["refuse", "allow"] = Field(
        "refuse", description="may a plan without differential privacy run at all"
    )
    unit: Unit = "patient"
    epsilon: float | None = Field(
        None, gt=0.0, le=1e6, description="lifetime cap; null: no private plan may run"
    )
    delta: float = Field(1e-5, ge=1e-15, lt=0.1, description="at which the cap is meant")
    min_noise_multiplier: float = Field(0.5, ge=0.0, le=1e4)
    max_clipping_norm: float = Field(10.0, ge=1e-6, le=1e4)
    join: Literal["whole-plan", "until-spent"] = Field(
        "whole-plan", description="refuse a plan that the budget can't finish, or stop when spent"
    )
    metrics: Literal["none", "coarse", "full", "noised"] = Field(
        "none",
        description="scores that may leave; coarse: macro to 2 decimals; coarse and full only "
        "from plans without privacy; noised: from every plan, and charged",
    )
    metrics_noise: float = Field(
        10.0, ge=1e-3, le=1e4, description="noise multiplier of a noised score; each is charged"
    )
    min_cell: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="a finding with fewer positives or negatives counts in no score",
    )
    disclose_spend: bool = Field(True, description="tell the coordinator the budget's state")
    deadline: float | None = Field(
        None,
        gt=0.0,
        le=604_800.0,
        description="seconds after a private question at which its answer leaves, whatever it is; "
        "must be set once epsilon is",
    )
    promise_days: float = Field(
        90.0,
        gt=0.0,
        le=36_500.0,
        description="for so long after its last charge, a plan that was admitted as a whole keeps "
        "what it has not used; other plans can't have it",
    )
    max_rounds: int = Field(1000, ge=1, le=10_000, description="of a plan")
    max_steps: int = Field(10_000, ge=1, le=100_000, description="optimizer steps in a round")
    max_plan_steps: int = Field(100_000, ge=1, le=1_000_000_000, description="in all rounds")
    max_epochs: float = Field(20.0, gt=0.0, le=1000.0, description="passes over the data a round")
    max_head_epochs: int = Field(100, ge=0, le=1000)
    max_batch_size: int = Field(16_384, ge=1, le=131_072, description="units in a step")
    max_images_per_unit: int = Field(16, ge=1, le=1000, description="of one patient in one step")
    max_views: int = Field(8, ge=1, le=64, description="augmentations of an image in one step")
    max_image_size: int = Field(512, ge=32, le=1024, description="pixels per side")
    max_decoder_width: int = Field(128, ge=8, le=256, description="channels")
    backbones: tuple[Backbone, ...] = Field(
        BACKBONES, min_length=1, max_length=100, description="networks that may be trained"
    )
    strict_noise: bool = Field(False, description="each draw is the sum of four, halved")


def check_round(plan: Plan, round_number: int) -> None:
    """Raise RefusedError (no-such-round) for a round that the plan does not have."""
    rounds = plan.federation.rounds
    if not 1 <= round_number <= rounds:
        raise RefusedError(
            f"round {round_number} was asked for; the plan {plan.name} has rounds 1 to {rounds}. "
            "Ask the coordinator for a new plan.",
            "no-such-round",
        )


def check_plan(policy: Policy, plan: Plan) -> None:
    """Raise RefusedError when the policy forbids the plan, whatever the budget.

    Codes: ceiling, non-private, unit, delta, no-budget, clip-ceiling. The noise is judged by
    `check_noise`, once it is known.
    """
    privacy = plan.privacy
    _check_ceilings(policy, plan)
    if privacy.mode == "off":
        if policy.non_private == "refuse":
            raise _refused(
                "non-private", "privacy.mode", "off", "dp-sgd only", "policy.non_private"
            )
        return
    if privacy.unit != policy.unit:
        raise _refused("unit", "privacy.unit", privacy.unit, policy.unit, "policy.unit")
    if privacy.delta > policy.delta:
        allowed = f"at most {policy.delta:g}"
        raise _refused("delta", "privacy.delta", f"{privacy.delta:g}", allowed, "policy.delta")
    if policy.epsilon is None:
        asks = "a private plan"
        raise _refused(
            "no-budget", "privacy.mode", asks, "none before a cap is set", "policy.epsilon"
        )
    if privacy.clipping_norm > policy.max_clipping_norm:
        allowed = f"at most {policy.max_clipping_norm:g}"
        found = f"{privacy.clipping_norm:g}"
        key = "policy.max_clipping_norm"
        raise _refused("clip-ceiling", "privacy.clipping_norm", found, allowed, key)


def check_steps(policy: Policy, steps_per_round: int, rounds: int) -> None:
    """Raise RefusedError (ceiling) for more steps than the policy allows, a round or in all."""
    for key, found, setting, allowed in (
        ("the steps of a round", steps_per_round, "max_steps", policy.max_steps),
        (
            "the steps of all rounds",
            steps_per_round * rounds,
            "max_plan_steps",
            policy.max_plan_steps,
        ),
    ):
        if found > allowed:
            raise _refused("ceiling", key, f"{found}", f"at most {allowed}", f"policy.{setting}")


def _check_ceilings(policy: Policy, plan: Plan) -> None:
    """Raise RefusedError (ceiling) for a plan that asks for too much memory or time."""
    for key, found, setting in _sizes(plan):
        allowed = getattr(policy, setting)
        if found > allowed:
            words = f"at most {allowed:g}"
            raise _refused("ceiling", key, f"{found:g}", words, f"policy.{setting}")
    if plan.model.backbone not in policy.backbones:
        words = "one of " + ", ".join(policy.backbones)
        asks = plan.model.backbone
        raise _refused("ceiling", "model.backbone", asks, words, "policy.backbones")
    if plan.training.local_steps is not None:
        check_steps(policy, plan.training.local_steps, plan.federation.rounds)


def _sizes(plan: Plan) -> Iterator[tuple[str, float, str]]:
    """What costs memory or time: the plan's key, its value, and the policy's key for it."""
    training, semi = plan.training, plan.semi_supervision
    yield "federation.rounds", plan.federation.rounds, "max_rounds"
    if training.local_epochs is not None:
        yield "training.local_epochs", training.local_epochs, "max_epochs"
    yield "training.head_epochs", training.head_epochs, "max_head_epochs"
    yield "training.batch_size", training.batch_size, "max_batch_size"
    yield "training.lungs_batch_size", training.lungs_batch_size or 0, "max_batch_size"
    if semi.mode != "off":
        yield "semi_supervision.batch_size", semi.batch_size, "max_batch_size"
    yield "privacy.images_per_unit", plan.privacy.images_per_unit, "max_images_per_unit"
    yield "privacy.views", plan.privacy.views, "max_views"
    yield "model.image_size", plan.model.image_size, "max_image_size"
    yield "model.decoder_width", plan.model.decoder_width, "max_decoder_width"


def check_delta(policy: Policy, plan: Plan, units: int) -> None:
    """Raise RefusedError (delta) when a delta is not below 1 / number of units, as declared.

    With delta = 1 / n the guarantee is kept by publishing one of n units whole. Dwork and Roth,
    "The algorithmic foundations of differential privacy", 2014, section 2.3.
    """
    allowed = f"less than 1 / nominal_units = {1 / units:.3g}"
    if policy.delta * units >= 1.0:
        raise RefusedError(
            f"site.yaml: policy.delta: found {policy.delta:g}; allowed: {allowed}. "
            "Let the privacy officer set a smaller one.",
            "delta",
        )
    if plan.privacy.delta * units >= 1.0:
        raise _refused(
            "delta", "privacy.delta", f"{plan.privacy.delta:g}", allowed, "nominal_units"
        )


def check_noise(policy: Policy, noise_multiplier: float) -> None:
    """Raise RefusedError (noise-floor) for less noise than the policy's floor."""
    if noise_multiplier < policy.min_noise_multiplier:
        found, allowed = f"{noise_multiplier:g}", f"at least {policy.min_noise_multiplier:g}"
        key = "policy.min_noise_multiplier"
        raise _refused("noise-floor", "the noise multiplier", found, allowed, key)


def permitted(policy: Policy, plan: Plan, metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a round's un-noised metrics that may leave the site, as they may leave it.

    None of a private plan. coarse: validation scores rounded to 2 decimals.
    """
    if plan.privacy.mode != "off" or policy.metrics in ("none", "noised"):
        return {}
    if policy.metrics == "full":
        return dict(metrics)
    return {name: round(value, 2) for name, value in metrics.items() if name.startswith("val_")}


def _refused(code: str, key: str, found: str, allowed: str, setting: str) -> RefusedError:
    return RefusedError(
        f"plan: {key}: found {found}; this site allows {allowed} ({setting} in site.yaml). "
        "Change the plan, or let the hospital's privacy officer change the policy.",
        code,
    )
