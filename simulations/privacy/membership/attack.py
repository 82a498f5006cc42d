"""The strongest known attack on a mechanism, as a plan and weights that a site may be sent.

Every play asks for rounds with the mechanism's noise, sampling rate, steps and clipping norm, and
sends weights and a plan of the attacker's choice: the gradient of the target is many clipping
norms long, and so is clipped to exactly one, in a direction that the attacker works out, as it
knows everybody but whether the target is there. The answer's projection on that direction is what
it looks at: Nasr et al., "Adversary instantiation", IEEE S&P 2021, section 4, and "Tight auditing
of differentially private machine learning", USENIX Security 2023, section 4 (white-box canary
gradient). Who the others are is the attacker's choice, too: they teach along other directions.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from client.policy import Policy
from client.settings import SITE_FILE, EngineName
from common.errors import ConsiliumError
from common.plan import Plan, plan_from_json
from common.wire import Parcel
from simulations.privacy.membership.canary import aim, quiet
from simulations.privacy.membership.coordinator import Question
from simulations.privacy.membership.mechanism import Mechanism
from simulations.privacy.membership.world import SIZE, Target, make_world

LOUD, QUIET = 1e4, 1e-4  # weights of the losses: of the target's labels, of the others' masks
LARGEST_UNITS = 100_000  # of a declared number of units: any true sampling rate fits
# How far noise moves a weight in a step. Little: the gradients stay what they were in the first.
MOVE = 1e-6
OTHERS, SIDE_BY_SIDE = 2, 6  # who train beside the target; images in memory at once: few are fast
MOMENTUM = 0.9  # of the product's SGD, which adds up the steps of a round
STILL: dict[str, float] = dict.fromkeys(
    ("rotate_degrees", "translate", "scale", "brightness", "contrast", "gamma", "noise"), 0.0
)
# What the played site allows, whatever the audited one does: each question is to be answered.
OPEN: dict[str, Any] = {
    "epsilon": 1e6,
    "join": "until-spent",
    "min_noise_multiplier": 0.0,
    "max_clipping_norm": 1e4,
    "max_rounds": 10_000,
    "max_steps": 100_000,
    "max_plan_steps": 1_000_000_000,
    "max_batch_size": 131_072,
    "max_images_per_unit": 1000,
    "max_views": 64,
    "max_image_size": 1024,
    "max_decoder_width": 256,
    "backbones": ["tiny"],
}


class BlindError(ConsiliumError):
    """An attack that could see nothing, whatever leaks: it proves nothing either."""

    code = "audit-blind"


@dataclass(frozen=True)
class Opening:
    """What is attacked beside the mechanism: the site's policy, and how it works.

    rounds: of a play. like: a plan whose features (heads, bridge, teacher, views) are used; None:
    shared heads and nothing else.
    """

    policy: Policy
    engine: EngineName = "auto"
    device: str = "cpu"
    physical_batch: int = 32
    rounds: int = 1
    like: Plan | None = None


@dataclass(frozen=True)
class Attack:
    """What a play asks, and how its answers are read.

    direction: (P,) float64 of length 1, None for a noised score. scale: from a projection to
    clipping norms (from a score to units). length: of the target's part in the sum along the
    direction, in clipping norms: at most 1. expected: by how much the target moves the score;
    noise: the standard deviation that the noise gives it.
    """

    plan: Plan
    questions: list[Question]
    worlds: dict[bool, Path]
    direction: npt.NDArray[np.float64] | None
    scale: float
    length: float
    expected: float
    noise: float

    @property
    def lines(self) -> dict[str, float]:
        """Scores above which the target is guessed to be there, by name.

        In the middle between both worlds, where most guesses are right; and so far out that noise
        alone comes there once in 740 plays, which tells most of a target that moves too much.
        """
        what = "the noised score" if self.direction is None else "the projection"
        return {
            f"{what}, above half of what one patient moves": self.expected / 2,
            f"{what}, above 3 deviations of the noise": 3 * self.noise,
        }

    def score(self, answers: Sequence[Parcel]) -> float:
        """What the answers show of the target, higher with it; what failed shows 0."""
        total = 0.0
        for answer in answers:
            if self.direction is None:
                total += self.scale * answer.metrics.get("val_noised_loss", 0.0)
            elif "delta" in answer.arrays:
                total += self.scale * float(
                    np.nan_to_num(answer.arrays["delta"].astype(np.float64)) @ self.direction
                )
        return total


def prepare(
    folder: Path, mechanism: Mechanism, opening: Opening, images: int | None = None
) -> Attack:
    """Make the two worlds in an empty folder, and aim at the target.

    images: of the target; by default 1 where images are the unit, else 2. The sites answer as
    soon as they can; `answer_after` gives them a deadline. Raises BlindError when the target
    teaches too little to be seen.
    """
    if images is None:
        images = 1 if mechanism.unit == "image" else 2
    scores = mechanism.purpose == "metrics"
    plan = attack_plan(mechanism, opening, images)
    split = "val" if scores else "train"
    target = Target(split, images, masks=False, alone=True, others=OTHERS)
    folder.mkdir(parents=True)
    worlds = make_world(folder, target, site_settings(mechanism, opening))
    shared = quiet(plan)
    if scores:
        questions = [("finish", opening.rounds, shared)] * opening.rounds
        units = float(nominal(mechanism.sampling_rate)[1])
        noise = mechanism.noise_multiplier * math.sqrt(opening.rounds)
        return Attack(plan, questions, worlds, None, units, 1.0, float(opening.rounds), noise)
    direction, length = aim(plan, worlds[True], shared)
    if length < 0.1:
        raise BlindError(
            f"audit: the made-up patient moves the update by {length:.2g} clipping norms at most; "
            "such an attack sees nothing. Leave --plan out, or report it."
        )
    asked: list[Question] = [("train", n, shared) for n in range(1, opening.rounds + 1)]
    training = plan.training
    scale = -training.batch_size / (training.learning_rate * mechanism.clipping_norm)
    pushes = pushed(mechanism.steps * opening.rounds)
    expected = length * mechanism.sampling_rate * sum(pushes)
    noise = mechanism.noise_multiplier * math.hypot(*pushes)
    end: Question = ("finish", opening.rounds, shared)
    return Attack(plan, [*asked, end], worlds, direction, scale, length, expected, noise)


def answer_after(attack: Attack, seconds: float) -> None:
    """Give both worlds a deadline, in their site.yaml."""
    for world in attack.worlds.values():
        file = world / SITE_FILE
        said = yaml.safe_load(file.read_text())
        said["policy"]["deadline"] = seconds
        file.write_text(yaml.safe_dump(said))


def nominal(rate: float) -> tuple[int, int]:
    """A batch size and a number of units whose ratio is the sampling rate in (0, 1]."""
    ratio = Fraction(rate).limit_denominator(LARGEST_UNITS)
    return max(1, ratio.numerator), ratio.denominator


def pushed(steps: int) -> list[float]:
    """How often the gradient of each of so many steps is in their updates, the last step first.

    With momentum m, that of the k-th step from the end counts 1 + m + ... + m^(k-1).
    """
    return [(1 - MOMENTUM**k) / (1 - MOMENTUM) for k in range(1, steps + 1)]


def attack_plan(mechanism: Mechanism, opening: Opening, images: int) -> Plan:
    """The mechanism's steps on the smallest network, with the features of `opening.like`."""
    batch, units = nominal(mechanism.sampling_rate)
    clip, noise, like = mechanism.clipping_norm, mechanism.noise_multiplier, opening.like
    value: dict[str, Any] = {
        "name": "audit",
        "model": {"backbone": "tiny", "image_size": SIZE, "decoder_width": 8},
        "tasks": {"findings_weight": LOUD, "lungs_weight": QUIET},
        "heads": "shared" if like is None else like.heads,
        "training": {
            "local_steps": mechanism.steps, "batch_size": batch, "max_gradient_norm": None,
            "optimizer": "sgd", "schedule": "constant", "warmup_rounds": 0.0, "weight_decay": 0.0,
            "learning_rate": min(10.0, max(1e-12, MOVE * batch / (noise * clip))),
            "augment": STILL,
        },
        "privacy": {
            "mode": "dp-sgd", "unit": mechanism.unit, "noise_multiplier": noise,
            "clipping_norm": clip, "images_per_unit": images, "delta": _delta(opening, units),
            "views": 1 if like is None else like.privacy.views,
        },
        "federation": {"rounds": opening.rounds, "weighting": "equal", "wire": "fp32"},
    }  # fmt: skip
    if like is not None:
        value["model"]["bridge"] = like.model.bridge
        semi = like.semi_supervision.model_dump(mode="json")
        still = {"weak": STILL, "strong": {**STILL, "blur": 0.0, "cutout": 0.0}}
        value["semi_supervision"] = semi | still | {"start": 0.0, "ramp": 0.0}
    return plan_from_json(json.dumps(value))


def site_settings(mechanism: Mechanism, opening: Opening) -> dict[str, Any]:
    """What the played sites say: the audited site's policy, open to every question."""
    scores = mechanism.purpose == "metrics"
    _, units = nominal(mechanism.sampling_rate)
    policy = opening.policy.model_dump(mode="json") | OPEN
    policy |= {"unit": mechanism.unit, "deadline": None, "delta": _delta(opening, units)}
    policy |= {"metrics": "noised", "metrics_noise": mechanism.noise_multiplier} if scores else {}
    policy |= {} if scores else {"metrics": "none"}
    return {
        "simulated": True,
        "engine": opening.engine,
        "device": opening.device,
        "physical_batch": min(opening.physical_batch, SIDE_BY_SIDE),
        "nominal_units": units,
        "policy": policy,
    }


def _delta(opening: Opening, units: int) -> float:
    """A delta that the played site may admit: below 1 / units."""
    return min(opening.policy.delta, 0.5 / units)
