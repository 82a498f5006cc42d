"""What a model says about images, and how right it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.data.batches import Rows, SiteData, mixed_precision, to_model_format
from common.findings import FINDINGS, LUNGS
from common.heads import FindingsHead, LungsHead
from common.metrics import auroc, dice, iou, macro
from common.model import MultitaskModel
from common.saliency import bridge_planes

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Heads:
    """One site's heads, and the findings on which they may speak.

    bridge: whose saliency the lungs head is given, if any. evidence: on how much each finding's
    answer rests, by name, and "lungs"; what is not named counts 1.
    """

    findings: FindingsHead | None
    lungs: LungsHead | None
    annotates: tuple[str, ...]
    bridge: FindingsHead | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)

    def says(self, finding: str) -> float:
        """The weight of what these heads say on a finding; 0 for one they do not cover."""
        speaks = self.findings is not None and finding in self.annotates
        return self.evidence.get(finding, 1.0) if speaks else 0.0


@dataclass(frozen=True)
class Predictions:
    """Outputs for R rows.

    logits: (R, 14) float32, NaN in the columns of findings that the heads don't cover.
    lungs: (M,) Dice and IoU of the rows that have a mask; empty without masks or lungs head.
    """

    logits: npt.NDArray[np.float32]
    dice: npt.NDArray[np.float64]
    iou: npt.NDArray[np.float64]

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(R, 14) float32 in [0, 1], NaN where there is no logit."""
        return (1 / (1 + np.exp(-self.logits))).astype(np.float32)


@dataclass(frozen=True)
class Scores:
    """Numbers about one model on one split; a metric that is undefined is left out."""

    metrics: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def predict(
    model: MultitaskModel,
    heads: Sequence[Heads],
    data: SiteData,
    rows: Rows,
    go_on: Callable[[], None] = lambda: None,
) -> tuple[list[Predictions], Predictions]:
    """Run several sites' heads over one shared encoder, with one encoder pass per image.

    Returns each site's own predictions, and the council's: for each finding the mean of the
    logits of the sites that annotate it, and the mean of the lung probabilities of those with a
    lungs head, each weighted by its evidence. rows: (R,) positions in `data`. The model is left
    in evaluation mode.
    go_on: called before each batch; what it raises ends it.
    """
    model.eval()
    sites = [_Collected() for _ in heads]
    council, shares = _Collected(), _shares(heads, data.images.device)
    silent = shares.sum(dim=0) == 0
    speaking = [head.evidence.get(LUNGS, 1.0) for head in heads if head.lungs is not None]
    for start in range(0, len(rows), EVALUATION_BATCH):
        go_on()
        batch = data.batch(rows[start : start + EVALUATION_BATCH])
        with mixed_precision(batch.images.device):
            features = model.encoder(to_model_format(batch.images))
            logits = [_logits(head, features) for head in heads]
            masked = [feature[batch.lung_rows] for feature in features]
            pictures = batch.images[batch.lung_rows]
            lungs = [_lungs(model, head, masked, pictures) for head in heads]
        for site, own_logits, own_lungs in zip(sites, logits, lungs, strict=True):
            site.add(own_logits, own_lungs, batch.masks)
        said = [probability for probability in lungs if probability is not None]
        mean_lungs = _mean(torch.stack(said), speaking) if said else None
        together = (torch.stack(logits).nan_to_num() * shares).sum(dim=0)
        council.add(together.masked_fill(silent, torch.nan), mean_lungs, batch.masks)
    return [site.predictions() for site in sites], council.predictions()


def _shares(heads: Sequence[Heads], device: torch.device) -> Tensor:
    """Each site's share of the council's logit, (H, 1, 14), 0 where nobody speaks."""
    weights = torch.tensor([[head.says(finding) for finding in FINDINGS] for head in heads])
    total = weights.sum(dim=0, keepdim=True)
    shares = torch.where(total > 0, weights / total.clamp_min(1e-12), torch.zeros_like(weights))
    return shares.unsqueeze(1).to(device)


def _mean(values: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean over the first of values (H, ...)."""
    shares = torch.tensor(weights, device=values.device) / sum(weights)
    mean: Tensor = torch.tensordot(shares, values, 1)
    return mean


def _logits(head: Heads, features: list[Tensor]) -> Tensor:
    """(B, 14) float32 logits, NaN where the site has nothing to say."""
    speaks = torch.tensor([finding in head.annotates for finding in FINDINGS])
    silent = features[0].new_full((features[0].shape[0], len(FINDINGS)), torch.nan).float()
    if head.findings is None:
        return silent
    return torch.where(speaks.to(silent.device), head.findings(features).float(), silent)


def _lungs(
    model: MultitaskModel, head: Heads, features: list[Tensor], images: Tensor
) -> Tensor | None:
    """(M, 1, S, S) float32 lung probabilities of images (M, 1, S, S) that have a mask."""
    if head.lungs is None or images.shape[0] == 0:
        return None
    planes = None
    if head.bridge is not None:
        planes = bridge_planes(model.encoder, head.bridge, images)
    probability: Tensor = head.lungs(features, images.shape[-1], planes).float().sigmoid()
    return probability


class _Collected:
    """Predictions of successive batches."""

    def __init__(self) -> None:
        self._logits: list[npt.NDArray[np.float32]] = [np.empty((0, len(FINDINGS)), np.float32)]
        self._dice: list[npt.NDArray[np.float64]] = [np.empty(0)]
        self._iou: list[npt.NDArray[np.float64]] = [np.empty(0)]

    def add(self, logits: Tensor, lungs: Tensor | None, masks: Tensor) -> None:
        self._logits.append(logits.cpu().numpy())
        if lungs is None:
            return
        truth = (masks > 0.5).squeeze(1).cpu().numpy()
        predicted = (lungs > 0.5).squeeze(1).cpu().numpy()
        self._dice.append(dice(truth, predicted))
        self._iou.append(iou(truth, predicted))

    def predictions(self) -> Predictions:
        return Predictions(
            np.concatenate(self._logits), np.concatenate(self._dice), np.concatenate(self._iou)
        )


def true_findings(data: SiteData, rows: Rows) -> npt.NDArray[np.int8]:
    """Targets (R, 14) int8 as the metrics want them: 1, 0, or -1 where not annotated."""
    return np.where(data.known[rows], data.targets[rows].astype(np.int8), np.int8(-1))


def score(
    predictions: Predictions, targets: npt.NDArray[np.int8], prefix: str, min_cell: int = 1
) -> Scores:
    """Macro AUROC and mean Dice, named `{prefix}_macro_auroc` and `{prefix}_dice`.

    min_cell: a finding with fewer positives or negatives does not count, nor do fewer masks.
    """
    large = [i for i in range(targets.shape[1]) if _smallest_cell(targets[:, i]) >= min_cell]
    values = [auroc(targets[:, i], predictions.logits[:, i]) for i in large]
    metrics: dict[str, float] = {}
    mean_auroc = macro(values)
    if mean_auroc is not None:
        metrics[f"{prefix}_macro_auroc"] = mean_auroc
    if len(predictions.dice) >= min_cell:
        metrics[f"{prefix}_dice"] = float(predictions.dice.mean())
    return Scores(metrics)


def _smallest_cell(targets: npt.NDArray[np.int8]) -> int:
    """The number of positives or of negatives in (N,), whichever is smaller."""
    return min(int((targets == 1).sum()), int((targets == 0).sum()))
