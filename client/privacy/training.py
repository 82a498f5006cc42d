"""One round of differentially private training at a site.

Joint DP-SGD: one clip over a unit's gradient for the encoder and every head that is trained. A
head that learnt without noise would carry what it knows of a patient into the encoder's
gradient, and void its epsilon. Labels, masks, unannotated images and the bridge are all in the
one loss of a unit. Nothing that this module decides depends on the data: how many steps, what
is trained and what is divided by are public words of the plan and of `site.yaml`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from client.data.batches import SiteData
from client.learning.optimizer import add_proximal_gradient, learning_rate, set_learning_rate
from client.learning.train import DivergedError, NothingToLearnError, at_rest
from client.learning.unlabelled import strength
from client.privacy.budget import Asked
from client.privacy.choose import open_engine
from client.privacy.material import Weights
from client.privacy.precision import full_precision
from client.privacy.random import SecureRandom
from client.privacy.step import PrivateStep
from client.privacy.supply import Supply
from client.privacy.trial import public_units
from client.settings import SiteSettings
from common.model import MultitaskModel
from common.plan import Plan

# Of the images on which an engine is tried: the smallest that every backbone takes.
TRIAL_SIZE = 64
TRIAL_IMAGES = 6  # two units of three, side by side


def train_private_round(
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    data: SiteData,
    plan: Plan,
    settings: SiteSettings,
    asked: Asked,
    round_number: int,
) -> None:
    """Train `model` in place for one round. The ledger must have been charged before.

    Raises DivergedError when the noisy weights are not finite any more.
    """
    resting = undeclared_heads(model, settings)
    random = SecureRandom(settings.policy.strict_noise)
    model.train()
    with at_rest(resting), full_precision():
        trained = [p for p in model.parameters() if p.requires_grad]
        engine = open_engine(settings.engine, model, data.images.device, settings.physical_batch)
        step = PrivateStep(
            engine,
            trained,
            random,
            asked.clipping_norm,
            asked.noise_multiplier,
            plan.training.batch_size,
        )
        try:
            _steps(
                model,
                optimizer,
                step,
                Supply(model, data, plan, settings, random),
                asked,
                plan,
                round_number,
            )
        finally:
            engine.close()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise DivergedError(f"the weights of round {round_number} are not finite")


def check_trainable(model: MultitaskModel, settings: SiteSettings, device: torch.device) -> None:
    """What would stop a private round at once, asked before anything is charged.

    Leaves the model in training mode, in which the round uses the engine: Opacus' hooks see
    nothing in evaluation mode, in which the scores of the round before left it.
    Raises NothingToLearnError when the site declares nothing of the plan's tasks, and InputError
    when its engine is wrong for the network.
    """
    model.train()
    heads = [head for head in (model.findings, model.lungs) if head is not None]
    if len(undeclared_heads(model, settings)) == len(heads):
        raise NothingToLearnError(f"site {settings.name} declares nothing that the plan teaches")
    # Tried on public noise, so that what an engine cannot do shows here, and never later, when
    # it would tell who was drawn.
    with at_rest(undeclared_heads(model, settings)), full_precision():
        engine = open_engine(settings.engine, model, device, TRIAL_IMAGES)
        total = [
            torch.zeros_like(p, dtype=torch.float64) for p in model.parameters() if p.requires_grad
        ]
        units = public_units(model, (1, TRIAL_SIZE, TRIAL_SIZE))
        engine.add_clipped(units, Weights(1.0, 1.0, 1.0, 1.0, 1.0), 1.0, total)
        engine.close()


def _steps(
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    step: PrivateStep,
    supply: Supply,
    asked: Asked,
    plan: Plan,
    round_number: int,
) -> None:
    mu, decay = plan.federation.strategy.proximal_mu, plan.privacy.average
    received = [p.detach().clone() for p in model.encoder.parameters()] if mu > 0 else []
    average = Average(model, decay) if decay > 0 else None
    for number in range(asked.steps_per_round):
        done = round_number - 1 + number / asked.steps_per_round  # rounds
        set_learning_rate(optimizer, learning_rate(plan, done))
        step.step(supply.step(asked.sampling_rate), weights(plan, done))
        # After the noise: it depends on weights only, so it costs no privacy.
        add_proximal_gradient(model.encoder, received, mu)
        optimizer.step()
        supply.follow()
        if average is not None:
            average.add(number)
    if average is not None:
        average.put_back()


def undeclared_heads(model: MultitaskModel, settings: SiteSettings) -> list[nn.Module]:
    """Heads for which the site declares no label or mask: they stay as they are."""
    heads: list[nn.Module] = []
    if model.findings is not None and not settings.annotates:
        heads.append(model.findings)
    if model.lungs is not None and not settings.outlines_lungs:
        heads.append(model.lungs)
    return heads


def weights(plan: Plan, rounds_done: float) -> Weights:
    """How much each term of a unit's loss counts after so many rounds."""
    semi, tasks = plan.semi_supervision, plan.tasks
    on = semi.mode != "off"
    return Weights(
        tasks.findings_weight,
        tasks.lungs_weight,
        strength(plan, rounds_done) if on else 0.0,
        semi.findings_weight,
        semi.lungs_weight,
    )


@dataclass
class Average:
    """The exponential average of a model's weights over the steps of a round.

    De et al., "Unlocking high-accuracy differentially private image classification through
    scale", 2022, section 3.4, with its warm-up of the decay. Of noised weights: it costs nothing.
    """

    model: nn.Module
    decay: float

    def __post_init__(self) -> None:
        self._values = [p.detach().clone() for p in self.model.parameters()]

    @torch.no_grad()
    def add(self, steps: int) -> None:
        """Take in the weights after step number `steps`, counted from 0."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for value, parameter in zip(self._values, self.model.parameters(), strict=True):
            value.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the average the model's weights."""
        for value, parameter in zip(self._values, self.model.parameters(), strict=True):
            parameter.copy_(value)
