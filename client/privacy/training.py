"""One round of differentially private training at a site.

Joint DP-SGD: one clip over a unit's gradient for the encoder and every head that is trained. A
head that learnt without noise would carry what it knows of a patient into the encoder's
gradient, and void its epsilon. Labels, masks, unannotated images and the bridge are all in the
one loss of a unit. Nothing that this module decides depends on the data: how many steps, what
is trained and what is divided by are public words of the plan and of `site.yaml`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.augment import augment
from client.batches import Rows, SiteData, group_units, unit_rows
from client.optimizer import add_proximal_gradient, learning_rate, set_learning_rate
from client.privacy.budget import Asked
from client.privacy.choose import open_engine
from client.privacy.material import Material, Weights
from client.privacy.random import SecureRandom
from client.privacy.sampling import capped, poisson, portions
from client.privacy.step import PrivateStep
from client.settings import SiteSettings
from client.train import DivergedError, NothingToLearnError, at_rest
from client.unlabelled import Follower, lacks, may_follow, strength
from common.findings import FINDINGS
from common.losses import Targets
from common.model import MultitaskModel
from common.plan import Plan


def declared_findings(settings: SiteSettings) -> npt.NDArray[np.bool_]:
    """Which findings the site says that it annotates, (14,) bool: its word, not its data."""
    return np.array([finding in settings.annotates for finding in FINDINGS])


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
        engine = open_engine(settings.engine, model, data.images.device)
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

    Raises NothingToLearnError when the site declares nothing of the plan's tasks, and InputError
    when its engine is wrong for the network.
    """
    heads = [head for head in (model.findings, model.lungs) if head is not None]
    if len(undeclared_heads(model, settings)) == len(heads):
        raise NothingToLearnError(f"site {settings.name} declares nothing that the plan teaches")
    open_engine(settings.engine, model, device).close()


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions on a GPU in float32 proper, not in TF32, whose mantissa has 10 bits.

    How a convolution is computed may depend on how many images there are. With so few bits one
    unit more in a step could then change the gradients of others by more than rounding.
    """
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def _steps(
    model: MultitaskModel,
    optimizer: torch.optim.Optimizer,
    step: PrivateStep,
    supply: "Supply",
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


class Supply:
    """Draws the units of each step and makes them ready, portion by portion."""

    def __init__(
        self,
        model: MultitaskModel,
        data: SiteData,
        plan: Plan,
        settings: SiteSettings,
        random: SecureRandom,
    ) -> None:
        self._model, self._data, self._plan, self._random = model, data, plan, random
        self._portion = max(1, settings.physical_batch // plan.privacy.views)
        self._units = group_units(data, data.rows("train"), plan.privacy.unit)
        self._generator = torch.Generator()
        self._what = may_follow(plan, declared_findings(settings), settings.outlines_lungs)
        self._follower: Follower | None = None
        if plan.semi_supervision.mode != "off":
            self._follower = Follower(model, data, plan, self._what, None, random.seed())

    def step(self, rate: float) -> Iterator[Material]:
        """The materials of one step; none at all when no unit was drawn."""
        chosen = poisson(len(self._units), rate, self._random)
        most = self._plan.privacy.images_per_unit
        units = [capped(self._units[number], most, self._random) for number in chosen.tolist()]
        for portion in portions(units, self._portion):
            yield self._material(portion)

    def follow(self) -> None:
        """Let the teacher follow the student, after a step. Both are noised: it costs nothing."""
        if self._follower is not None:
            self._follower.teacher.follow(self._model)

    def _material(self, units: list[Rows]) -> Material:
        rows, unit = unit_rows(units)
        views = self._plan.privacy.views
        # Seeded by the kernel, never by the plan: with a seed that others know, one unit more
        # in a step would change in a known way what is drawn for the units after it.
        self._generator.manual_seed(self._random.seed())
        batch = self._data.batch(np.repeat(rows, views), np.repeat(unit, views))
        batch.images, batch.masks = augment(
            batch.images, batch.masks, batch.lung_rows, self._plan.training.augment, self._generator
        )
        planes = self._model.planes(batch.images[batch.lung_rows])
        strong, targets, strong_planes = self._lesson(rows, unit, len(units))
        return Material(batch, planes, strong, targets, strong_planes)

    def _lesson(
        self, rows: Rows, unit: Rows, units: int
    ) -> tuple[Tensor | None, Targets | None, Tensor | None]:
        lacking = lacks(self._data, rows, self._what)
        if self._follower is None or not lacking.any():
            return None, None, None
        lesson = self._follower.lesson(rows[lacking], unit[lacking], units)
        # Plain NCHW, whatever the device likes: see client/resident.py.
        strong = lesson.strong.clone(memory_format=torch.contiguous_format)
        return strong, lesson.targets, lesson.planes


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
