"""What may enter: the server trusts no site.

Flower averages a NaN or a broadcastable wrong shape without a word, and accepts a negative
weight. So every update is checked here before any arithmetic sees it, and a refused one is
named: site, reason, number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.errors import UpdateRejectedError
from common.parameters import Flat, Layout
from common.update import SCHEMA, Update

NORM_FACTOR = 10.0  # times the median norm, when the plan sets no limit
NORM_QUORUM = 3  # a median of fewer norms can't tell who is the outlier
START_FACTOR = 3.0  # times the norm of the parameters that the run began with
# Weight x norm, times the median: a tighter one would throw out a university hospital beside
# small clinics.
IMPACT_FACTOR = 10_000.0
NORM_CEILING = 1e6  # longer than any network's parameters
WEIGHT_LIMIT = 1e8  # images in a site: more than any archive has
WEIGHT_CHANGE = 2.0  # a site's data may grow or shrink during a run, but not by more


@dataclass(frozen=True)
class Expected:
    """What an update of this round has to match.

    weighting: the plan's. weights: what each site weighed when it was first accepted.
    max_norm: the largest L2 norm, however few sites there are to compare (`norm_limit`).
    """

    plan_sha256: str
    round: int
    layout: Layout
    weighting: str
    weights: Mapping[str, float] = field(default_factory=dict)
    max_norm: float = NORM_CEILING


def norm_limit(base: Flat, limit: float | None) -> float:
    """The largest L2 norm of an update in a run that begins with `base`, (T,) float32.

    limit: the plan's own, which goes first.
    """
    return START_FACTOR * update_norm(base) if limit is None else limit


def check_update(update: Update, expected: Expected) -> None:
    """Raise UpdateRejectedError for the first thing wrong with one update.

    update.delta: (T,) float32; covers: as `common.wire.unpack_update` lets them in.
    Codes: schema, stale-plan, stale-round, layout, not-finite, weight, norm. The norm is also
    judged later, against others (`screen_norms`).
    """
    site, delta, layout = update.site, update.delta, expected.layout
    if update.schema != SCHEMA:
        raise UpdateRejectedError(site, "schema", f"version {update.schema}, not {SCHEMA}")
    if delta.dtype != np.float32 or delta.ndim != 1:
        raise UpdateRejectedError(site, "schema", f"delta is {delta.ndim}-d {delta.dtype}")
    if update.plan_sha256 != expected.plan_sha256:
        raise UpdateRejectedError(site, "stale-plan", f"plan {update.plan_sha256[:12]}")
    if update.round != expected.round:
        detail = f"round {update.round}, not {expected.round}"
        raise UpdateRejectedError(site, "stale-round", detail)
    if delta.shape != (layout.moving,):
        detail = f"{delta.size} parameters, not {layout.moving}"
        raise UpdateRejectedError(site, "layout", detail)
    if update.layout_sha256 != layout.sha256:
        detail = f"layout {update.layout_sha256[:12]}, not {layout.sha256[:12]}"
        raise UpdateRejectedError(site, "layout", detail)
    _check_numbers(update)
    _check_weight(update, expected)
    norm = update_norm(delta)
    if norm > expected.max_norm:
        detail = f"L2 norm {norm:.4g} above {expected.max_norm:.4g}, the most in this run"
        raise UpdateRejectedError(site, "norm", detail)


def _check_numbers(update: Update) -> None:
    strange = int(update.delta.size - np.count_nonzero(np.isfinite(update.delta)))
    if strange:
        detail = f"{strange} of {update.delta.size} parameters are NaN or infinite"
        raise UpdateRejectedError(update.site, "not-finite", detail)
    for name, value in {**update.metrics, "seconds": update.seconds}.items():
        if not np.isfinite(value):
            raise UpdateRejectedError(update.site, "not-finite", f"metric {name} is {value}")


def _check_weight(update: Update, expected: Expected) -> None:
    """A weight is the site's own word, so it is held to what a count of images can be.

    Under "equal" it is 1. Else it is a whole number up to WEIGHT_LIMIT that stays within
    WEIGHT_CHANGE of the site's first one: a site can't lie low and then take the average over.
    A site that claims most of the images from the start can't be told from a large hospital:
    the plan's max_share holds what it gets (`shares.capped_shares`).
    """
    weight = update.weight
    first = expected.weights.get(update.site, weight)
    detail = ""
    if not (np.isfinite(weight) and weight > 0):
        detail = f"weight {weight}"
    elif expected.weighting == "equal":
        if weight != 1.0:
            detail = f"weight {weight:g}, not 1 as under equal weighting"
    elif weight > WEIGHT_LIMIT or not float(weight).is_integer():
        detail = f"weight {weight:g} is no count of images up to {WEIGHT_LIMIT:g}"
    elif not first / WEIGHT_CHANGE <= weight <= first * WEIGHT_CHANGE:
        detail = f"weight {weight:g}, but {first:g} when it was first accepted"
    if detail:
        raise UpdateRejectedError(update.site, "weight", detail)


def update_norm(delta: Flat) -> float:
    """L2 norm of a (T,) float32 delta, summed in float64 so that a huge one can't overflow."""
    return float(np.sqrt(np.sum(np.square(delta, dtype=np.float64))))


def screen_norms(
    updates: Sequence[Update], limit: float | None, earlier: Sequence[float] = ()
) -> tuple[list[Update], list[UpdateRejectedError]]:
    """Split checked updates into accepted ones and outliers (code "norm").

    limit: the plan's largest L2 norm, always applied. None: 10 x the median norm of the round's
    three or more updates; with fewer, of the norms that were accepted `earlier` in the run, if
    three. Among three or more, weight x norm is held to 10,000 x its median, too.
    """
    norms = [update_norm(update.delta) for update in updates]
    impacts = [update.weight * norm for update, norm in zip(updates, norms, strict=True)]
    if limit is None:
        judges = norms if len(norms) >= NORM_QUORUM else earlier
        limit = min(_outlying(judges, NORM_FACTOR), NORM_CEILING)
    impact_limit = _outlying(impacts, IMPACT_FACTOR)
    accepted, rejected = [], []
    for update, norm, impact in zip(updates, norms, impacts, strict=True):
        detail = ""
        if norm > limit:
            detail = f"L2 norm {norm:.4g} above {limit:.4g}"
        elif impact > impact_limit:
            detail = f"weight x L2 norm {impact:.4g} above {impact_limit:.4g}"
        if detail:
            rejected.append(UpdateRejectedError(update.site, "norm", detail))
        else:
            accepted.append(update)
    return accepted, rejected


def _outlying(values: Sequence[float], factor: float) -> float:
    """From where a value is an outlier: factor x median, or infinity.

    Infinity where there are too few to judge by, or most are 0: then there is no scale.
    """
    median = float(np.median(values)) if len(values) >= NORM_QUORUM else 0.0
    return factor * median if median > 0.0 else float("inf")
