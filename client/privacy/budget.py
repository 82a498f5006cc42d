"""What a private plan costs a site: public numbers only, worked out before anything is touched."""

import math
from dataclasses import dataclass

from client.policy import check_steps
from client.privacy.accounting import Charge, solve_noise
from client.settings import SiteSettings
from common.errors import RefusedError
from common.plan import Plan
from common.sections import Unit


@dataclass(frozen=True)
class Asked:
    """What the plan asks of one site.

    sampling_rate: probability of a unit in a step. noise_multiplier: standard deviation of the
    noise over the clipping norm.
    """

    unit: Unit
    noise_multiplier: float
    sampling_rate: float
    steps_per_round: int
    rounds: int
    clipping_norm: float

    def charge(self, rounds: int = 1) -> Charge:
        """What `rounds` rounds are charged with."""
        steps = self.steps_per_round * rounds
        return Charge(self.noise_multiplier, self.sampling_rate, steps)


def declared_units(settings: SiteSettings, plan: Plan) -> int:
    """About how many units the site trains on, as it says in `site.yaml`: a public word.

    Raises RefusedError (no-nominal-units) when it has not said so.
    """
    if settings.nominal_units is None:
        unit = plan.privacy.unit
        raise RefusedError(
            f"site.yaml of {settings.name}: nominal_units is missing; the plan needs it in the "
            f"place of a count. Set it to about how many {unit}s the site trains on.",
            "no-nominal-units",
        )
    return settings.nominal_units


def scores_until(plan: Plan, rounds: int) -> int:
    """Noised scores in the first so many rounds; the finish, after the last, has its own."""
    return rounds // plan.evaluation.every + (rounds == plan.federation.rounds)


def asked(plan: Plan, settings: SiteSettings) -> Asked:
    """What a private plan asks of this site, from the plan and the site's public words alone.

    With `privacy.epsilon` the noise is solved once for the whole plan, at the plan's delta.
    Raises RefusedError when the site has not said how many units it has (no-nominal-units) or
    its policy allows fewer steps (ceiling), and InputError when no noise reaches the epsilon.
    """
    privacy, training = plan.privacy, plan.training
    # A step draws batch_size units on average; each with the same probability.
    rate = min(1.0, training.batch_size / declared_units(settings, plan))
    steps = training.local_steps
    if steps is None:
        assert training.local_epochs is not None  # the plan's validator: one of the two is given
        steps = max(1, math.ceil(training.local_epochs / rate - 1e-9))
    rounds = plan.federation.rounds
    check_steps(settings.policy, steps, rounds)  # first: solving the noise takes time, too
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None  # the plan's validator: one of the two is given
        noise = solve_noise(privacy.epsilon, privacy.delta, rate, steps * rounds)
    return Asked(privacy.unit, noise, rate, steps, rounds, privacy.clipping_norm)
