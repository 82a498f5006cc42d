"""The only thing that leaves a site: one update of the shared parameters."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from common.parameters import Flat
from common.sections import Unit

SCHEMA = 1

# What the server takes from a site (common/wire.py reads it with these limits).
Finite = Annotated[float, Field(ge=0.0, lt=1e12)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Spent:
    """What a site tells of its privacy budget: numbers of plans and charges, none of its rows.

    epsilon, delta: spent so far over everything done with the site's patients; epsilon is None
    when it has no bound. cap: the site's lifetime epsilon. noise_multiplier, sampling_rate,
    steps, clipping_norm: of this round. entries, head: length and last hash of its ledger, a
    mirror against a ledger that is set back. simulated: the site only plays a hospital, and its
    ledger protects nobody.
    """

    unit: Unit
    epsilon: Finite | None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    cap: Finite | None
    noise_multiplier: Finite
    sampling_rate: Finite
    steps: Count
    clipping_norm: Finite
    entries: Count
    head: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    simulated: bool = False


@dataclass(frozen=True, eq=False)
class Update:
    """What a site sends back after training one round.

    delta: (T,) float32, trained minus received, of the shared parameters that move.
    weight: the site's share in the average; > 0, its meaning is set by the plan's weighting.
    covers: findings that the site annotates, and "lungs" if it has lung masks.
    metrics: numbers that the site's guard lets out, such as "val_macro_auroc".
    seconds: how long the site trained; 0 in private training, where it would tell of the data.
    spent: what the site discloses of its privacy budget, if anything.
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
    spent: Spent | None = None


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What the server sends to a site for one round.

    base_sha256 names the shared parameters that the federation started from; `base` is that
    vector, (P,) float32, sent only to a site that does not hold it yet. `delta` is
    (T,) float32: of the parameters that move, today's minus the base. Sending a delta is what makes
    16 bits enough: bf16 rounds relative to the change, not to the weight.
    """

    plan_json: str
    round: int
    base_sha256: str
    delta: Flat
    base: Flat | None = None
