"""A coordinator that sends what it likes, and sees all that leaves: parcels and their times."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.answer import answer
from common.checkpoint import array_sha256
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan
from common.update import Broadcast
from common.wire import Parcel, pack_broadcast

Question = tuple[str, int, Flat]  # action, round, shared parameters (P,) float32


@dataclass(frozen=True)
class Reply:
    """What the coordinator sees of one question: the answer, and seconds until it came."""

    answer: Parcel
    seconds: float


def parcel(plan: Plan, round_number: int, shared: Flat) -> Parcel:
    """The question as it arrives at a site: everything in the base, nothing in the delta.

    shared: (P,) float32.
    """
    delta = np.zeros_like(shared)
    broadcast = Broadcast(plan.to_json(), round_number, array_sha256(shared), delta, shared)
    return pack_broadcast(broadcast, "fp32")


def timed(plan: Plan, folder: Path, questions: list[Question]) -> list[Reply]:
    """The answers of the site in `folder`, in order, each with its time."""
    replies = []
    for action, number, shared in questions:
        question = parcel(plan, number, shared)
        begun = time.monotonic()
        replied = answer(action, question, folder)
        replies.append(Reply(replied, time.monotonic() - begun))
    return replies


def ask(plan: Plan, folder: Path, questions: list[Question]) -> list[Parcel]:
    """The site's answers, in order."""
    return [reply.answer for reply in timed(plan, folder, questions)]


def honest(plan: Plan) -> Flat:
    """The weights that the plan starts from, (P,) float32."""
    model = build_model(plan)
    return flatten(model, shared_layout(model, plan.heads))
