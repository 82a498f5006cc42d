"""The multitask model: one shared encoder, a findings head and a lungs head."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from common.encoder import OURS, Affine, Encoder, Pixels
from common.errors import InputError, Problem
from common.heads import FindingsHead, LungsHead
from common.model_plan import ModelPlan
from common.parameters import ENCODER
from common.plan import Plan
from common.pretrained import is_ours, read_weights
from common.saliency import PLANES, bridge_planes


@dataclass
class Outputs:
    """findings: (B, 14) logits or None. lungs: (M, 1, S, S) logits or None."""

    findings: Tensor | None
    lungs: Tensor | None


class MultitaskModel(nn.Module):
    """Encoder and heads. A task that the plan leaves out has no head at all."""

    def __init__(self, encoder: Encoder, findings: bool, lungs: bool, plan: ModelPlan) -> None:
        super().__init__()
        self.encoder = encoder
        self.findings = FindingsHead(encoder.channels[-1]) if findings else None
        stages = _BRIDGED[plan.bridge](len(encoder.channels))
        planes = PLANES if stages else 0
        self.lungs = (
            LungsHead(encoder.channels, plan.decoder_width, planes, stages) if lungs else None
        )

    @property
    def words(self) -> str:
        """What the shapes of the parameters do not tell: it belongs to the layout."""
        return self.encoder.words

    def forward(
        self, images: Tensor, lung_rows: Tensor | None = None, planes: Tensor | None = None
    ) -> Outputs:
        """Run both heads on one pass of the encoder.

        images: (B, 1, S, S) float in [0, 1]. lung_rows: (M,) int64, the rows that need the
        decoder (None: all). Decoding only images that have a mask is what keeps a multitask
        step near the price of a findings-only step. planes: (M, 2, S, S), what `planes`
        returned for those rows; worked out here if a bridge needs them and they are not given.
        """
        if planes is None and self.lungs is not None and self.lungs.bridged:
            planes = self.planes(images if lung_rows is None else images[lung_rows])
        features = self.encoder(images)
        findings = None if self.findings is None else self.findings(features)
        if self.lungs is None or (lung_rows is not None and lung_rows.numel() == 0):
            return Outputs(findings, None)
        if lung_rows is not None and lung_rows.numel() < images.shape[0]:
            features = [feature[lung_rows] for feature in features]
        return Outputs(findings, self.lungs(features, images.shape[-1], planes))

    def planes(self, images: Tensor) -> Tensor | None:
        """What crosses the bridge for images (M, 1, S, S): (M, 2, S, S), None without a bridge.

        Apart from `forward`, so that neither a compiled forward nor hooks for gradients per
        unit see the second pass through the encoder.
        """
        if self.lungs is None or not self.lungs.bridged or images.shape[0] == 0:
            return None
        if self.findings is None:
            raise ValueError("a bridge needs the findings head")  # the plan's validator asks too
        return bridge_planes(self.encoder, self.findings, images)


# Stages of the lungs head that the bridge joins, given how many there are.
_BRIDGED: dict[str, Callable[[int], Collection[int]]] = {
    "off": lambda stages: (),
    "decoder-input": lambda stages: (stages - 1,),
    "all-stages": range,
}


def build_model(plan: Plan, pretrained: bool = True) -> MultitaskModel:
    """The plan's model with the plan's initial weights: the same on every machine.

    pretrained: whether to load the weights that the plan names. A site need not: it receives
    them from the server, and may have neither the file nor a network.

    The seed is used inside a fork of torch's generator, so the caller's random state is kept.
    Raises InputError when pretrained weights are asked for and cannot be had, or are another
    network's, and for a plan that trains nothing that travels.
    """
    source = plan.model.pretrained if pretrained else "none"
    state = None if source == "none" else read_weights(source, plan.model.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        encoder = build_encoder(plan.model, state)
        model = MultitaskModel(encoder, plan.tasks.findings, plan.tasks.lungs, plan.model)
    _fix(encoder, plan)
    return model


def _fix(encoder: Encoder, plan: Plan) -> None:
    """Take gradients from what the plan does not train.

    Raises InputError when nothing that travels is trained.
    """
    trains = plan.training.trains
    for number, stage in enumerate(encoder.by_stage()):
        if number < plan.model.frozen_stages or trains == "heads":
            for parameter in stage:
                parameter.requires_grad_(False)
    if trains == "norms":
        for module in encoder.modules():
            if not isinstance(module, Affine | nn.GroupNorm | nn.LayerNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
    if plan.heads == "local" and not any(p.requires_grad for p in encoder.parameters()):
        found, step = "a fixed encoder and local heads: nothing would travel", "Share the heads."
        raise InputError(Problem("plan", "heads", found, "shared with a fixed encoder", step))


def build_encoder(plan: ModelPlan, state: Mapping[str, Tensor] | None = None) -> Encoder:
    """The plan's encoder, holding a state dict as `read_weights` gives it, or random weights.

    Raises InputError for a network that cannot be had, and for weights that are another's.
    """
    ours = OURS.get(plan.backbone)
    theirs = state is not None and not is_ours(state)
    if ours is not None:
        encoder: Encoder = ours()
    else:
        # timm takes 2 s to import, so it is loaded for a network of its own alone.
        from common.timm_encoders import build_timm

        pixels = pixels_of(plan)
        encoder = build_timm(plan.backbone, norm_of(plan), pixels, state if theirs else None)
    if state is not None and (ours is not None or not theirs):
        _take(encoder, plan, state)
    return encoder


def norm_of(plan: ModelPlan) -> Literal["affine", "group"]:
    """What normalises a network of timm: the plan's word, or what suits its start."""
    if plan.norm != "auto":
        return plan.norm
    return "group" if plan.pretrained == "none" else "affine"


def pixels_of(plan: ModelPlan) -> Pixels:
    """How grey levels enter a network of timm: the plan's word, or what its weights expect."""
    if plan.pixels == "image" or (plan.pixels == "auto" and plan.pretrained == "none"):
        return Pixels()
    if plan.pixels == "xrv":
        # torchxrayvision.datasets.normalize: [0, 1] to [-1024, 1024].
        return Pixels(0.5, 0.5 / 1024)
    from common.timm_encoders import timm_pixels

    return timm_pixels(plan.backbone)


def _take(encoder: Encoder, plan: ModelPlan, state: Mapping[str, Tensor]) -> None:
    """Copy an encoder of ours, alone or in a whole model, in place."""
    own, prefix = dict(encoder.named_parameters()), ENCODER if is_ours(state) else ""
    missing = [name for name in own if prefix + name not in state]
    if missing:
        raise InputError(_other_weights(plan, f"{len(missing)} of {len(own)} weights missing"))
    with torch.no_grad():
        for name, parameter in own.items():
            value = state[prefix + name]
            if value.shape != parameter.shape:
                found, allowed = f"shape {tuple(value.shape)}", str(tuple(parameter.shape))
                step = "Use weights of the plan's backbone."
                raise InputError(Problem(plan.pretrained, name, found, allowed, step))
            parameter.copy_(value)


def _other_weights(plan: ModelPlan, found: str) -> Problem:
    allowed = f"weights of {plan.backbone}"
    return Problem(plan.pretrained, "model.pretrained", found, allowed, "Use its own weights.")
