"""What a hospital allows, whatever a plan asks: its budget, its floors, and what may leave.

The policy is part of `site.yaml`; the coordinator cannot change it. A site without a policy has
the strictest one: no plan may run until the hospital has set a cap.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import RefusedError
from common.plan import Plan


class Policy(BaseModel):
    """The key `policy` of `site.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    non_private: Literal["refuse", "allow"] = Field(
        "refuse", description="may a plan without differential privacy run at all"
    )
    unit: Literal["patient", "image"] = "patient"
    epsilon: float | None = Field(
        None, gt=0.0, description="lifetime cap; null: no private plan may run"
    )
    delta: float = Field(1e-5, gt=0.0, lt=0.1, description="at which the cap is meant")
    min_noise_multiplier: float = Field(0.3, ge=0.0)
    max_clipping_norm: float = Field(10.0, gt=0.0)
    join: Literal["whole-plan", "until-spent"] = Field(
        "whole-plan", description="refuse a plan that the budget can't finish, or stop when spent"
    )
    metrics: Literal["none", "coarse", "full", "noised"] = Field(
        "none",
        description="scores that may leave; coarse: macro to 2 decimals; coarse and full only "
        "from plans without privacy; noised: from every plan, and charged",
    )
    metrics_noise: float = Field(
        10.0, gt=0.0, description="noise multiplier of a noised score; each is charged"
    )
    min_cell: int = Field(
        10, ge=1, description="a finding with fewer positives or negatives counts in no score"
    )
    disclose_spend: bool = Field(True, description="tell the coordinator the budget's state")
    reply_slot: float | None = Field(
        None, gt=0.0, description="seconds; answers leave at its multiples, so time tells nothing"
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

    Codes: non-private, unit, delta, no-budget, clip-ceiling. The noise is judged by
    `check_noise`, once it is known.
    """
    privacy = plan.privacy
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
