"""Flower's own strategies, used for their arithmetic on one flat array.

Each strategy used here is equivariant to a shift of the parameters: mean, median, trimmed
mean, Krum's distances, and the pseudo-gradient x - mean of the adaptive ones do not depend on
where the origin lies. So the current model is made the origin: a strategy gets the sites'
deltas, its own current parameters are zero, and what it returns is the step to add to the
server's float32 master. Compared with averaging whole weights this keeps the low bits of the
deltas (Krum computes |x|^2 + |y|^2 - 2xy in float32, which cancels badly for weights), and the
only state between rounds is the momentum.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)

from common.parameters import Flat, Layout
from common.sections import StrategyPlan
from common.update import Update

_KEY, _WEIGHT = "shared", "weight"


def build_strategy(plan: StrategyPlan) -> FedAvg:
    """Flower's strategy of the plan's name (all of them derive from FedAvg)."""
    common: dict[str, Any] = {"weighted_by_key": _WEIGHT}
    rate = plan.server_learning_rate
    adaptive = common if rate is None else {**common, "eta": rate}
    match plan.name:
        case "fedavg":
            return FedAvg(**common)
        case "fedprox":  # the proximal term is the sites' part; the server's part is FedAvg
            return FedProx(**common, proximal_mu=plan.proximal_mu)
        case "fedadam":
            return FedAdam(**adaptive)
        case "fedyogi":
            return FedYogi(**adaptive)
        case "fedavgm":
            sgd = {"server_learning_rate": rate, "server_momentum": plan.server_momentum}
            given = {name: value for name, value in sgd.items() if value is not None}
            return FedAvgM(**common | given)
        case "fedmedian":
            return FedMedian(**common)
        case "fedtrimmedavg":
            return FedTrimmedAvg(**common, beta=plan.trim)
        case "krum":
            return Krum(**common, num_malicious_nodes=plan.malicious_sites)


class Aggregator:
    """One strategy over the rounds of a run, with its state as plain arrays."""

    def __init__(self, plan: StrategyPlan) -> None:
        self._strategy = build_strategy(plan)

    def step(self, number: int, updates: Sequence[Update], layout: Layout) -> Flat:
        """The change of the shared parameters, (P,) float32, for the updates of round `number`.

        updates: at least one, checked by the firewall. They are ordered by site, so that the
        sums, and with them the encoder's hash, do not depend on who answered first.
        """
        ordered = sorted(updates, key=lambda update: update.site)
        deltas = impute(ordered, layout)
        self._set_origin(layout.size)
        replies = [_reply(d, u.weight) for d, u in zip(deltas, ordered, strict=True)]
        arrays, _ = self._strategy.aggregate_train(number, replies)
        if arrays is None:
            raise ValueError("no updates to aggregate")
        return arrays[_KEY].numpy().astype(np.float32, copy=False)

    def _set_origin(self, size: int) -> None:
        """Tell a strategy that keeps the current parameters that they are zero."""
        zero = np.zeros(size, np.float32)
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = ArrayRecord({_KEY: Array(zero)})
        elif isinstance(self._strategy, FedAdam | FedYogi):
            self._strategy.current_arrays = {_KEY: zero}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What has to survive a restart: the moments, each (P,), or nothing."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM):
            momentum = strategy.momentum_vector
            return {} if momentum is None else {"momentum": momentum[0]}
        if isinstance(strategy, FedAdam | FedYogi) and strategy.m_t and strategy.v_t:
            return {"m": strategy.m_t[_KEY], "v": strategy.v_t[_KEY]}
        return {}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take up the state that `state` gave, bit for bit."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM) and "momentum" in arrays:
            strategy.momentum_vector = [arrays["momentum"]]
        if isinstance(strategy, FedAdam | FedYogi) and "m" in arrays:
            strategy.m_t, strategy.v_t = {_KEY: arrays["m"]}, {_KEY: arrays["v"]}


def impute(updates: Sequence[Update], layout: Layout) -> list[Flat]:
    """The sites' deltas, (P,) float32 each, with what a site did not train filled in.

    A site that does not annotate a finding returns zeros for that finding's head, which would
    pull the average towards "no change". Such coordinates take the weighted mean of the
    sites that cover them; any weighted mean over all sites is then the mean over the covering
    ones (Surgical Aggregation, arXiv 2301.06683, section 3). Covered by nobody: no change.
    With local heads only the encoder travels, which every site covers.
    """
    covered = np.stack([layout.coverage(update.covers) for update in updates])
    partial = ~covered.all(axis=0)
    if not partial.any():
        return [update.delta for update in updates]
    part = covered[:, partial]  # (K, Q): only the Q disputed coordinates, in float64
    deltas = np.stack([update.delta[partial] for update in updates]).astype(np.float64)
    weights = np.array([update.weight for update in updates])[:, None] * part
    total = weights.sum(axis=0)
    mean = (weights * deltas).sum(axis=0) / np.where(total > 0, total, 1.0)
    filled = []
    for update, row, own in zip(updates, deltas, part, strict=True):
        delta = update.delta.copy()
        delta[partial] = np.where(own, row, mean)
        filled.append(delta)
    return filled


def _reply(delta: Flat, weight: float) -> Message:
    """The reply message from which a strategy reads one site's array and weight.

    Made with explicit metadata, since the strategy needs no run, node or clock.
    """
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=1.0,
        message_type="train",
    )
    content = RecordDict(
        {"arrays": ArrayRecord({_KEY: Array(delta)}), "metrics": MetricRecord({_WEIGHT: weight})}
    )
    return make_message(metadata=metadata, content=content)
