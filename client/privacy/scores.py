"""A validation score that may leave under privacy: noised, and charged to the ledger."""

import math

import numpy as np
import torch

from client.data.batches import Rows, SiteData, group_units
from client.privacy.material import Material, Weights, losses, parts
from client.privacy.precision import full_precision
from client.privacy.random import SecureRandom
from client.settings import SiteSettings
from common.model import MultitaskModel
from common.plan import Plan

LARGEST_LOSS = 1.0  # a unit's loss is cut here: one unit more or less moves the sum by no more
FINENESS = 1000  # the released number has steps of at most its noise divided by this


@torch.no_grad()
def noised_loss(
    model: MultitaskModel, data: SiteData, plan: Plan, settings: SiteSettings
) -> dict[str, float]:
    """The mean loss of the validation units as `val_noised_loss`, by the Gaussian mechanism.

    Sum over units of min(loss, 1), plus normal noise of standard deviation
    `policy.metrics_noise`, divided by the public nominal number of units. Dwork and Roth, "The
    algorithmic foundations of differential privacy", 2014, appendix A. The site's nominal
    training units stand for the validation ones too, so this is a score to follow over the
    rounds, not a mean loss in its own units. The model is left in evaluation mode.

    Each unit is computed alone, in float32; a loss that is not finite counts as 1. What leaves is
    rounded to a power of ten that is a thousandth of its noise or less: the last bits of a float
    could tell of the sum what the noise should hide (Mironov, "On significance of the least
    significant bits for differential privacy", CCS 2012).
    """
    model.eval()
    weights = Weights(plan.tasks.findings_weight, plan.tasks.lungs_weight)
    total = torch.zeros((), dtype=torch.float64)
    with full_precision():
        for rows in group_units(data, data.rows("val"), settings.policy.unit):
            total += _unit_loss(model, data, rows, weights, settings.physical_batch)
    policy = settings.policy
    width = policy.metrics_noise * LARGEST_LOSS
    noise = SecureRandom(policy.strict_noise).normal((1,), width)
    nominal = settings.nominal_units or 1
    return {"val_noised_loss": coarse(float((total + noise[0]) / nominal), width / nominal)}


def coarse(value: float, deviation: float) -> float:
    """A number rounded to a power of ten, at most a thousandth of the deviation (> 0) of its noise.

    Processing of what is noised already: it costs no privacy.
    """
    return round(value, -math.floor(math.log10(deviation / FINENESS)))


def _unit_loss(
    model: MultitaskModel, data: SiteData, rows: Rows, weights: Weights, most: int
) -> float:
    """One unit's loss, cut to 0 to 1."""
    material = Material(data.batch(rows, np.zeros_like(rows)))
    loss = sum(float(losses(model, *part)) for part in parts(material, weights, most))
    return min(max(loss, 0.0), LARGEST_LOSS) if math.isfinite(loss) else LARGEST_LOSS
