"""What a simulated hospital says in its `site.yaml`: its policy, and its public words.

A deployed hospital writes this itself, and strictly. A simulated one allows what the plan asks,
so that the plan can be studied; its ledger is real, and protects nobody.
"""

from typing import Any

from common.plan import Plan

# What a site folder without privacy needs: baselines, studies, benchmarks.
OPEN: dict[str, Any] = {
    "simulated": True,
    "policy": {"non_private": "allow", "metrics": "full", "min_cell": 1},
}
UNBOUND = 1e6  # the lifetime epsilon of a hospital to which the plan gives no cap


def simulated_settings(plan: Plan, number: int, training_units: int, masks: int) -> dict[str, Any]:
    """The settings of hospital `number` (from 0) beyond its name and data.

    training_units: patients, or images, as the plan's unit says; masks: training images with a
    lung mask. Both become public words, as a hospital would give them: a count rounded to two
    digits, and yes or no.
    """
    caps = plan.simulation.lifetime_epsilon
    privacy = plan.privacy
    return {
        "simulated": True,
        "nominal_units": rounded(training_units),
        "outlines_lungs": masks > 0,
        "policy": OPEN["policy"]
        | {
            "unit": privacy.unit,
            "epsilon": UNBOUND if caps is None else caps[number],
            "delta": privacy.delta,
            "join": "until-spent",
            "min_noise_multiplier": 0.0,
            "max_clipping_norm": 1e4,
        },
    }


def rounded(count: int) -> int:
    """A count to two significant digits, at least 1."""
    if count < 1:
        return 1
    digits = len(str(count))
    return int(round(count, 2 - digits))
