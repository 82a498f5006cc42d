"""The target as a canary: weights that make its gradient long, and along what it then shows."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.batches import group_units
from client.privacy.engines import LoopEngine
from client.privacy.precision import full_precision
from client.privacy.random import SecureRandom
from client.privacy.supply import Supply
from client.privacy.training import weights
from client.site import Site
from common.model import build_model
from common.parameters import ENCODER, Flat, load_flat, shared_layout
from common.plan import Plan
from simulations.privacy.membership.coordinator import honest
from simulations.privacy.membership.world import TARGET


def quiet(plan: Plan) -> Flat:
    """Weights with which the gradient of the encoder is long, and that of the heads short.

    The encoder's convolutions are a tenth of their start. The norms behind them make up for
    that, so the network computes the same, and their gradients are ten times as long. So even
    where heads do not travel, nearly all of the gradient does. (P,) float32.
    """
    flat, layout = honest(plan), shared_layout(build_model(plan), plan.heads)
    start = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        end = start + int(np.prod(shape))
        if name.startswith(ENCODER) and len(shape) == 4:
            flat[start:end] *= np.float32(0.1)
        start = end
    return flat


def aim(plan: Plan, world: Path, shared: Flat) -> tuple[npt.NDArray[np.float64], float]:
    """Along what the target moves the shared parameters, and how far, in clipping norms.

    world: the one with the target. shared: (P,) float32. Returns (P,) float64 of length 1: the
    target's clipped gradient, less what others' gradients could be taken for. All of them are
    differentiated as a site does it.
    """
    site = Site.open(world)
    resident, data = site.prepare(plan), site.data
    load_flat(resident.model, resident.layout, shared)
    model = resident.model.train()
    settings = site.folder.settings
    supply = Supply(model, data, plan, settings, SecureRandom())
    engine, weighed = LoopEngine(model, settings.physical_batch), weights(plan, 0.0)
    with full_precision():
        gradients = [engine.gradients(unit, weighed) for unit in supply.step(1.0)]
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    travels = [names.index(name) for name in resident.layout.names]
    units = group_units(data, data.rows("train"), plan.privacy.unit)
    patients = data.table["patient"].astype(str).to_numpy()
    # Of a target with several images as units, the first stands for it.
    is_target = [patients[rows[0]] == TARGET for rows in units]
    mine = is_target.index(True)
    parameters = [each for each in model.parameters() if each.requires_grad]
    clipped = []
    for gradient in gradients:
        parts = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(gradient, parameters, strict=True)
        ]
        length = float(torch.cat([part.reshape(-1) for part in parts]).double().norm())
        factor = min(1.0, plan.privacy.clipping_norm / max(length, 1e-30))
        shown = torch.cat([parts[place].reshape(-1) for place in travels]).double()
        clipped.append(factor * shown.numpy(force=True))
    others = np.stack(
        [each for each, own in zip(clipped, is_target, strict=True) if not own], axis=1
    )
    explained, *_ = np.linalg.lstsq(others, clipped[mine], rcond=1e-6)
    rest = clipped[mine] - others @ explained
    far = float(np.linalg.norm(rest))
    return rest / max(far, 1e-30), far / plan.privacy.clipping_norm
