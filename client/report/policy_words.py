"""A site's policy in words: what is in force, and what was changed."""

from collections.abc import Mapping
from typing import Any

from client.policy import Policy
from client.report.words import UNITS
from common.privacy_words import delta_text


def rows(policy: Policy) -> list[tuple[str, str]]:
    """The policy in force, a question and an answer a row."""
    cap = "none set: no private plan may run" if policy.epsilon is None else f"{policy.epsilon:g}"
    joins = {
        "whole-plan": "refused before its first step",
        "until-spent": "accepted; the site stops when the cap is reached",
    }
    scores = {
        "none": "none",
        "coarse": "means to two decimals, only from plans without differential privacy",
        "full": "all, only from plans without differential privacy",
        "noised": f"one loss a round, noised (σ {policy.metrics_noise:g}) and charged",
    }
    refuse = policy.non_private == "refuse"
    slot = "no" if policy.deadline is None else f"yes, {policy.deadline:g} s after a question"
    return [
        ("Lifetime cap on epsilon", cap),
        ("Delta at which it is meant", delta_text(policy.delta)),
        ("Unit that must be protected", UNITS[policy.unit]),
        ("Plans without differential privacy", "refused" if refuse else "allowed"),
        ("Smallest noise multiplier", f"{policy.min_noise_multiplier:g}"),
        ("Largest clipping norm", f"{policy.max_clipping_norm:g}"),
        ("A plan that the budget cannot finish", joins[policy.join]),
        ("Scores that may leave", scores[policy.metrics]),
        (
            "Fewest positives and negatives of a finding that counts in a score",
            str(policy.min_cell),
        ),
        ("Is the spending told to the coordinator", "yes" if policy.disclose_spend else "no"),
        ("Do answers to private plans leave at a fixed time", slot),
        ("Most rounds of a plan", str(policy.max_rounds)),
        ("Most steps in a round, in all rounds", f"{policy.max_steps}, {policy.max_plan_steps}"),
        ("Most passes over the data in a round", f"{policy.max_epochs:g}"),
        ("Most passes to fit heads", str(policy.max_head_epochs)),
        ("Most patients or images in a step", str(policy.max_batch_size)),
        (
            "Most images of a patient, and views of an image, in a step",
            f"{policy.max_images_per_unit}, {policy.max_views}",
        ),
        ("Largest image side, in pixels", str(policy.max_image_size)),
        ("Most channels of the lung decoder", str(policy.max_decoder_width)),
        ("Networks that may be trained", ", ".join(policy.backbones)),
        ("Stricter noise generator", "yes" if policy.strict_noise else "no"),
    ]


def change(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """A change of the policy in one line."""
    if not changed:
        return "first policy recorded"
    return "; ".join(f"{key}: {_plain(old)} → {_plain(new)}" for key, (old, new) in changed.items())


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
