"""After the last round: fit the findings head to the encoder that the federation ended with."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.data.batches import SiteData, to_model_format
from client.learning.optimizer import grouped_optimizer, head_factor, set_learning_rate
from client.learning.train import round_seed
from common.heads import FindingsHead, pool
from common.losses import findings_loss
from common.model import MultitaskModel
from common.plan import Plan


def fit_findings_head(
    model: MultitaskModel,
    data: SiteData,
    plan: Plan,
    round_number: int,
    site: str,
    epochs: int,
    go_on: Callable[[], None] = lambda: None,
) -> None:
    """Fit the findings head, in place, to the encoder as it is now (which stays as it is).

    During the rounds a site's head follows the site's own copy of the encoder. After the last
    aggregation the shared encoder is a little different; `epochs` passes over features
    computed once bring the head there. go_on: called before each batch; what it raises ends it.
    """
    rows = data.labelled("train", plan.tasks)
    if epochs == 0 or model.findings is None or len(rows) == 0:
        return
    features = pooled_features(model, data, rows, go_on)
    targets = torch.from_numpy(data.targets[rows]).to(features.device)
    known = torch.from_numpy(data.known[rows]).to(features.device)
    head: FindingsHead = model.findings
    optimizer = grouped_optimizer(
        [(list(head.parameters()), head_factor(plan.training))], plan.training
    )
    generator = torch.Generator().manual_seed(round_seed(plan, site, round_number))
    for epoch in range(epochs):
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        set_learning_rate(optimizer, plan.training.learning_rate * cosine)
        order = torch.randperm(len(rows), generator=generator).to(features.device)
        for chosen in torch.split(order, plan.training.batch_size):
            go_on()
            optimizer.zero_grad(set_to_none=True)
            logits = head.from_pooled(features[chosen])
            loss = findings_loss(logits, targets[chosen], known[chosen]).mean()
            torch.autograd.backward(loss)
            optimizer.step()


@torch.no_grad()
def pooled_features(
    model: MultitaskModel,
    data: SiteData,
    rows: npt.NDArray[np.int64],
    go_on: Callable[[], None] = lambda: None,
    batch_size: int = 64,
) -> Tensor:
    """Encoder features of rows (R,), without augmentation: (R, C) float32.

    go_on: called before each batch; what it raises ends it.
    """
    model.eval()
    parts = []
    for start in range(0, len(rows), batch_size):
        go_on()
        images = data.pictures(rows[start : start + batch_size])
        parts.append(pool(model.encoder(to_model_format(images))).float())
    return torch.cat(parts)
