"""The only thing that leaves a site: one update of the shared parameters."""

from dataclasses import dataclass

from common.parameters import Flat

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Update:
    """What a site sends back after training one round.

    delta: (P,) float32, trained minus received shared parameters.
    weight: the site's share in the average; > 0, its meaning is set by the plan's weighting.
    covers: findings that the site annotates, and "lungs" if it has lung masks.
    metrics: numbers that the site's guard lets out, such as "val_macro_auroc".
    seconds: how long the site trained.
    """

    schema: int
    plan_sha256: str
    round: int
    site: str
    layout_sha256: str
    delta: Flat
    weight: float
    covers: tuple[str, ...]
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What the server sends to a site for one round.

    base_sha256 names the shared parameters that the federation started from; `base` is that
    vector, (P,) float32, sent only to a site that does not hold it yet. `delta` is
    (P,) float32: today's shared parameters minus the base. Sending a delta is what makes
    16 bits enough: bf16 rounds relative to the change, not to the weight.
    """

    plan_json: str
    round: int
    base_sha256: str
    delta: Flat
    base: Flat | None = None
