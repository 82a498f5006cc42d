"""What a malicious coordinator sends: finite weights, as a plan allows them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.heads import pool
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan
from simulations.privacy.membership.coordinator import honest


def hostile(plan: Plan) -> Iterator[tuple[str, Flat]]:
    """Finite weights that drive a network to its limits, each with a name, layer by layer.

    In turn every tensor is set until float32 overflows in it or behind it, underflows, or is loud
    in one channel; and every layer is loud and the next one quiet by as much, so that what one
    head sees stays in range. All are what a plan's layout allows.
    """
    start, layout = honest(plan), shared_layout(build_model(plan), plan.heads)
    sizes = [int(np.prod(shape)) for shape in layout.shapes]
    ends = np.cumsum(sizes)
    places = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    for number, (name, place) in enumerate(zip(layout.names, places, strict=True)):
        signs = np.where(start[place] < 0, -1, 1).astype(np.float32)
        for value in (3e38, 1e30, 1e19, 0.0):
            yield f"{value:g} in {name}", _with(start, place, signs * np.float32(value))
        first = place.start + max(1, sizes[number] // layout.shapes[number][0])
        yield f"a channel in {name}", _with(start, slice(place.start, first), np.float32(1e25))
        if name.endswith(".weight") and number + 2 < len(places):
            # A norm's weight and bias, and the convolution behind them.
            loud = slice(place.start, places[number + 1].stop)
            pair = _with(start, loud, (start[loud] + 0.5) * np.float32(1e37))
            pair[places[number + 2]] *= np.float32(1e-37)
            yield f"a pair in {name}", pair
    for value in (0.0, 1e-38, 3e38):
        yield f"{value:g} everywhere", np.full_like(start, value)


@torch.no_grad()
def aimed(plan: Plan, target: Tensor, others: Tensor) -> Flat:
    """Weights of a findings head that overflow for one image and for no other.

    target: (N, 1, S, S), of which the first image; others: (M, 1, S, S). The linear
    discriminant of the encoder's features, scaled to the end of float32. For shared heads.
    """
    model = build_model(plan).eval()
    assert model.findings is not None
    features = pool(model.encoder(torch.cat([target[:1], others]))).double()
    mine, rest = features[0], features[1:]
    spread = torch.cov(rest.T) + 1e-6 * torch.eye(features.shape[1], dtype=torch.float64)
    direction = torch.linalg.solve(spread, mine - rest.mean(0))
    scores = features @ direction
    middle = (scores[0] + scores[1:].max()) / 2
    head = (direction * (3.4028e38 / middle)).clamp(-3.4e38, 3.4e38).float()
    model.findings.linear.weight.copy_(head.expand_as(model.findings.linear.weight))
    model.findings.linear.bias.zero_()
    return flatten(model, shared_layout(model, plan.heads))


def _with(start: Flat, place: slice, values: Flat | np.float32) -> Flat:
    changed = start.copy()
    with np.errstate(over="ignore"):
        changed[place] = values
    return np.nan_to_num(changed, posinf=3e38, neginf=-3e38)
