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

from common.errors import StepRejectedError
from common.findings import FINDINGS, LUNGS
from common.parameters import Flat, Layout
from common.sections import StrategyName, StrategyPlan
from common.update import Update
from server.firewall import update_norm
from server.shares import capped_shares

_KEY, _WEIGHT = "shared", "weight"
# These take no mean of the sites: what one site sends is compared with what the others send.
_COMPARING: frozenset[StrategyName] = frozenset({"fedmedian", "fedtrimmedavg", "krum"})


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

    def __init__(self, plan: StrategyPlan, max_share: float = 0.5) -> None:
        """max_share: the most that one site may have of an average (`capped_shares`)."""
        self._plan, self._max_share = plan, max_share
        self._strategy = build_strategy(plan)

    def advance(
        self, number: int, updates: Sequence[Update], layout: Layout, shared: Flat, longest: float
    ) -> Flat:
        """The shared parameters after round `number`, (P,) float32: `shared` and the step.

        longest: the L2 norm that a step may have. Raises StepRejectedError when the step, the new
        parameters or the moments are not finite, or the step is longer; the moments are then what
        they were before, so that one round can't spoil those that follow.
        """
        before = {name: value.copy() for name, value in self.state().items()}
        with np.errstate(over="ignore", invalid="ignore"):  # both are looked for here
            step = self.step(number, updates, layout)
            after = layout.moved(shared, step)
            length = update_norm(step)
        code, detail = "", ""
        parts = {"the step": step, "the new parameters": after} | {
            f"the strategy's moment {name!r}": value for name, value in self.state().items()
        }
        strange = [name for name, value in parts.items() if not np.isfinite(value).all()]
        if strange:
            code, detail = "not-finite", f"{strange[0]} would not be finite"
        elif not length <= longest:
            code, detail = "too-long", f"step of L2 norm {length:.4g} above {longest:.4g}"
        if code:
            self._strategy = build_strategy(self._plan)
            self.restore(before)
            raise StepRejectedError(code, detail)
        return after

    def step(self, number: int, updates: Sequence[Update], layout: Layout) -> Flat:
        """The change of the parameters that move, (T,) float32, for the updates of round `number`.

        updates: at least one, checked by the firewall. They are ordered by site, so that the
        sums, and with them the encoder's hash, do not depend on who answered first.
        """
        if not updates:
            raise ValueError("no updates to aggregate: at least one is needed")
        ordered = sorted(updates, key=lambda update: update.site)
        compares = self._plan.name in _COMPARING
        deltas = impute(ordered, layout, self._max_share, compares)
        self._set_origin(layout.moving)
        shares = capped_shares([update.weight for update in ordered], self._max_share)
        replies = [_reply(d, float(share)) for d, share in zip(deltas, shares, strict=True)]
        arrays, _ = self._strategy.aggregate_train(number, replies)
        assert arrays is not None  # as there are updates
        return arrays[_KEY].numpy().astype(np.float32, copy=False)

    def _set_origin(self, size: int) -> None:
        """Tell a strategy that keeps the current parameters that they are zero."""
        zero = np.zeros(size, np.float32)
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = ArrayRecord({_KEY: Array(zero)})
        elif isinstance(self._strategy, FedAdam | FedYogi):
            self._strategy.current_arrays = {_KEY: zero}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What has to survive a restart: the moments, each (T,), or nothing."""
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


def impute(
    updates: Sequence[Update], layout: Layout, max_share: float = 0.5, compares: bool = False
) -> list[Flat]:
    """The sites' deltas, (T,) float32 each, with what a site did not train filled in.

    A site that does not annotate a finding returns zeros for that finding's head, which would
    pull the average towards "no change". In such rows it votes the mean of the sites that cover
    them; any weighted mean over all sites is then the mean over the covering ones (Surgical
    Aggregation, arXiv 2301.06683, section 3). Covered by nobody: no change. With local heads only
    the encoder travels, which every site covers.

    The mean of a row is by `capped_shares` among the sites that cover it, as fewer may cover a row
    than the encoder. So that a mean over all sites keeps those shares, the covering sites vote it
    too, unless the strategy `compares` what they sent.
    """
    filled = [update.delta for update in updates]
    encoder = layout.coverage(())
    for name in (*FINDINGS, LUNGS):
        covering = [update for update in updates if name in update.covers]
        rows = layout.coverage((name,)) & ~encoder
        if len(covering) == len(updates) or not rows.any():
            continue
        mean = np.zeros(np.count_nonzero(rows))
        if covering:  # in float64
            shares = capped_shares([update.weight for update in covering], max_share)
            mean += sum(s * u.delta[rows] for s, u in zip(shares, covering, strict=True))
        for k, update in enumerate(updates):
            if not (compares and name in update.covers):
                if filled[k] is update.delta:
                    filled[k] = update.delta.copy()
                filled[k][rows] = mean
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
