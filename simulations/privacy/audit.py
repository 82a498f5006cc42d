"""One-run audit of the private step with canaries: does it leak more than is accounted?

The canaries are made so that they leak as much as the step lets them: each is a unit whose whole
gradient lies along one coordinate of its own and is far longer than the clipping norm. They go
through what a site's training uses: its engine with clipping, its losses, its Poisson sampling,
its noise, its division. Who sees all noisy gradients then guesses which canaries took part
(simulations/privacy/bound.py).

It is a dry run: no patient's data, and nothing is charged to any ledger. A lower bound below
the accounted epsilon proves nothing good; one above it proves a fault.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.data.batches import Rows
from client.privacy.accounting import Charge, accountant, epsilon
from client.privacy.choose import open_engine
from client.privacy.material import Material, Weights, apart
from client.privacy.random import SecureRandom
from client.privacy.sampling import poisson
from client.privacy.step import PrivateStep
from client.settings import EngineName
from common.encoder import Encoder, Pixels
from common.errors import InputError, Problem
from common.findings import FINDINGS
from common.losses import Batch
from common.model import MultitaskModel
from common.model_plan import ModelPlan
from simulations.privacy.bound import lower_bound

CPU = torch.device("cpu")
CONFIDENCE = 0.95
LOUDNESS = 60.0  # a canary's gradient / clipping norm, before clipping
PORTION = 128  # canaries in memory at a time
MOST_CANARIES, MOST_STEPS = 20_000, 10_000


@dataclass(frozen=True)
class Audit:
    """What is audited; the defaults take a few seconds.

    canaries: m. noise_multiplier, sampling_rate, steps, delta, clipping_norm: of the step.
    engine: as `engine` in site.yaml.
    """

    canaries: int = 1000
    noise_multiplier: float = 8.0
    sampling_rate: float = 0.5
    steps: int = 20
    delta: float = 1e-5
    clipping_norm: float = 1.0
    engine: EngineName = "auto"

    def checked(self) -> "Audit":
        """Itself. Raises InputError with everything that is out of range."""
        limits = (
            ("--canaries", self.canaries, 10, MOST_CANARIES),
            ("--noise", self.noise_multiplier, 1e-6, 1e4),
            ("--sampling-rate", self.sampling_rate, 1e-6, 1.0),
            ("--steps", self.steps, 1, MOST_STEPS),
            ("--delta", self.delta, 1e-300, 0.1),
            ("--clip", self.clipping_norm, 1e-6, 1e4),
        )
        problems = [
            Problem("audit", option, f"{value:g}", f"{low:g} to {high:g}", "Change it.")
            for option, value, low, high in limits
            if not low <= value <= high
        ]
        if problems:
            raise InputError(problems)
        return self


class _Mirror(Encoder):
    """Passes an image of m pixels on as m channels: a canary's pixel is a weight's own input."""

    def __init__(self, pixels: int) -> None:
        super().__init__((pixels,), "none", Pixels())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 1, 1, m) to one feature map (B, m, 1, 1)."""
        return [images.reshape(len(images), -1, 1, 1)]


def audit_model(canaries: int) -> MultitaskModel:
    """The product's model and findings head over `_Mirror`: canary j owns input j of a finding."""
    model = MultitaskModel(_Mirror(canaries), True, False, ModelPlan())
    assert model.findings is not None
    torch.nn.init.zeros_(model.findings.linear.weight)
    return model


def canary_portions(audit: Audit, taken: Rows) -> Iterator[Material]:
    """The canaries `taken`, (U,) int64, as annotated units.

    One pixel is lit, one finding is annotated, and it is present. At the head's initial bias the
    gradient is then at least about `LOUDNESS` clipping norms, and as many times longer along
    that pixel's weight than along the bias.
    """
    for start in range(0, len(taken), PORTION):
        lit = torch.from_numpy(taken[start : start + PORTION])
        units = len(lit)
        images = torch.zeros(units, 1, 1, audit.canaries)
        images[torch.arange(units), 0, 0, lit] = LOUDNESS * max(1.0, audit.clipping_norm)
        targets, known = (torch.zeros(units, len(FINDINGS)) for _ in range(2))
        targets[:, 0] = known[:, 0] = 1
        nothing = torch.zeros(0, dtype=torch.int64)
        masks = torch.zeros(0, 1, 1, audit.canaries)
        unit = torch.arange(units)
        batch = Batch(images, targets, known.bool(), nothing, masks, unit, units)
        yield from apart(Material(batch))


def released(audit: Audit, included: npt.NDArray[np.bool_]) -> tuple[Tensor, str]:
    """All noisy gradients of a run with the canaries `included` (m,), added up.

    Returns what the run shows of each canary, (m,) float64: along its own coordinate, and
    higher when it took part; and the engine's name. The weights stay as they are, so that a
    canary is as loud in the last step as in the first.
    """
    model, random = audit_model(audit.canaries), SecureRandom()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine = open_engine(audit.engine, model, CPU, PORTION)
    batch = max(1, round(audit.sampling_rate * audit.canaries))
    step = PrivateStep(engine, trained, random, audit.clipping_norm, audit.noise_multiplier, batch)
    weights = Weights(findings=1.0, lungs=0.0)
    inside = np.flatnonzero(included)
    assert model.findings is not None
    weight, total = model.findings.linear.weight, torch.zeros(audit.canaries, dtype=torch.float64)
    try:
        for _ in range(audit.steps):
            drawn = inside[poisson(len(inside), audit.sampling_rate, random)]
            step.step(canary_portions(audit, drawn), weights)
            assert weight.grad is not None
            total -= weight.grad[0].double()  # the loss falls along a canary that takes part
    finally:
        engine.close()
    return total, engine.name


def run_audit(audit: Audit) -> dict[str, Any]:
    """Audit once. Returns a dict that is ready for audit.json; it is random, like the noise.

    epsilon_lower: at `confidence`; accounted: what the ledger would have charged. holds: whether
    the bound stays below it. Raises InputError for settings out of range.
    """
    audit.checked()
    started = time.monotonic()
    included = SecureRandom().uniform(audit.canaries).numpy() < 0.5
    scores, engine = released(audit, included)
    bound = lower_bound(scores.numpy(), included, audit.delta, CONFIDENCE)
    charge = Charge(audit.noise_multiplier, audit.sampling_rate, audit.steps)
    accounted = epsilon([charge], audit.delta)
    return {
        "epsilon_lower": bound.epsilon,
        "confidence": CONFIDENCE,
        "accounted": accounted,
        "holds": bound.epsilon <= accounted,
        "canaries": audit.canaries,
        "guesses": bound.guesses,
        "correct": bound.correct,
        "delta": audit.delta,
        "noise_multiplier": audit.noise_multiplier,
        "sampling_rate": audit.sampling_rate,
        "steps": audit.steps,
        "clipping_norm": audit.clipping_norm,
        "engine": engine,
        "accountant": accountant(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }
