"""What may leave a site: an update in the plan's layout, and named numbers. Nothing else.

The server's firewall checks again, but a site does not rely on that: what has left is gone.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from client.settings import SiteSettings
from common.errors import RefusedError
from common.findings import FINDINGS, LUNGS
from common.parameters import Layout
from common.plan import Plan
from common.update import Spent, Update
from common.wire import METRIC_NAME, NOISED


def check_leaving(
    update: Update, plan: Plan, number: int, settings: SiteSettings, layout: Layout
) -> None:
    """Raise RefusedError unless the update holds exactly what the plan asks of this site
    in round `number`.

    update.delta must be (P,) float32, finite, of the plan's layout; weight finite and > 0.
    """
    if type(update) is not Update:
        raise RefusedError(f"a {type(update).__name__} may not leave the site")
    names = {field.name for field in dataclasses.fields(Update)}
    extra = set(vars(update)) - names
    if extra:
        raise RefusedError(f"field {min(extra)!r} may not leave the site")
    if (update.plan_sha256, update.round, update.site) != (plan.sha256, number, settings.name):
        raise RefusedError("the update belongs to another plan, round or site")
    if update.layout_sha256 != layout.sha256 or update.delta.shape != (layout.moving,):
        raise RefusedError("the update has another layout than the plan's model")
    if update.delta.dtype != np.float32 or not np.isfinite(update.delta).all():
        raise RefusedError("the update is not finite float32")
    if not (math.isfinite(update.weight) and update.weight > 0):
        raise RefusedError(f"weight {update.weight} is not a positive number")
    if not math.isfinite(update.seconds):
        raise RefusedError("the training time is not a number")
    if any(name not in FINDINGS and name != LUNGS for name in update.covers):
        raise RefusedError("the update covers something that is no finding")
    if not (update.spent is None or type(update.spent) is Spent):
        raise RefusedError("what is told of the budget is not what may be told")
    if plan.privacy.mode != "off":
        _check_private(update, settings)
    check_metrics(update.metrics, plan)


def _check_private(update: Update, settings: SiteSettings) -> None:
    """What is allowed from plans without privacy, and would tell of the data under one."""
    if update.seconds != 0.0:
        raise RefusedError("how long private training took may not leave the site")
    if update.weight not in (1.0, settings.nominal_units):
        raise RefusedError("a weight that the site has not declared may not leave it")
    if update.covers != settings.declares:
        raise RefusedError("what the site's rows are annotated for may not leave it")


def check_metrics(metrics: Mapping[str, float], plan: Plan) -> None:
    """Raise RefusedError unless every metric has an allowed name and is a finite float.

    Of a private plan only noised ones may leave.
    """
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(name):
            raise RefusedError(f"metric {name!r} may not leave the site")
        if plan.privacy.mode != "off" and not name.startswith(NOISED):
            raise RefusedError(f"metric {name} of a private plan is not noised")
        if not isinstance(value, float) or not math.isfinite(value):
            raise RefusedError(f"metric {name} is {value!r}, not a finite number")
