"""A validation score that may leave under privacy: noised, and charged to the ledger."""

import torch

from client.batches import SiteData, group_units, to_model_format, unit_rows
from client.privacy.random import SecureRandom
from client.settings import SiteSettings
from common.losses import unit_losses
from common.model import MultitaskModel
from common.plan import Plan

LARGEST_LOSS = 1.0  # a unit's loss is cut here: one unit more or less moves the sum by no more
UNITS_AT_ONCE = 32


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
    """
    model.eval()
    units = group_units(data, data.rows("val"), settings.policy.unit)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(units), UNITS_AT_ONCE):
        batch = data.batch(*unit_rows(units[start : start + UNITS_AT_ONCE]))
        outputs = model(to_model_format(batch.images), batch.lung_rows)
        losses = unit_losses(outputs, batch, plan.tasks.findings_weight, plan.tasks.lungs_weight)
        finite = torch.nan_to_num(losses.double(), nan=LARGEST_LOSS, posinf=LARGEST_LOSS)
        total += finite.clamp(0.0, LARGEST_LOSS).sum().cpu()
    policy = settings.policy
    noise = SecureRandom(policy.strict_noise).normal((1,), policy.metrics_noise * LARGEST_LOSS)
    nominal = settings.nominal_units or 1
    return {"val_noised_loss": float((total + noise[0]) / nominal)}
