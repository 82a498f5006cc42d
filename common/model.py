"""The multitask model: one shared encoder, a findings head and a lungs head."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.encoder import Encoder, build_encoder, fold_batch_norm
from common.errors import InputError, Problem
from common.heads import FindingsHead, LungsHead
from common.parameters import ENCODER
from common.plan import Plan
from common.saliency import PLANES, bridge_planes
from common.sections import ModelPlan


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
    Raises InputError when pretrained weights are asked for and cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        encoder = build_encoder(plan.model.backbone)
        model = MultitaskModel(encoder, plan.tasks.findings, plan.tasks.lungs, plan.model)
    if pretrained and plan.model.pretrained != "none":
        load_pretrained(encoder, plan.model.backbone, plan.model.pretrained)
    return model


def load_pretrained(encoder: Encoder, backbone: str, source: str) -> None:
    """Fill the encoder, in place, with a torchvision-style state dict of the same backbone.

    source: "imagenet" (through torchvision, which downloads once) or a local .safetensors or
    state-dict file; of a whole model of ours, such as a site's final one, the encoder is taken.
    The first convolution is summed over RGB, since a grey image is the same
    in all three; BatchNorm is folded into GroupNorm (`encoder.fold_batch_norm`).
    Raises InputError when the weights are not there, or are another network's.
    """
    state = _imagenet(backbone) if source == "imagenet" else _weight_file(Path(source))
    own = any(name.startswith(ENCODER) for name in state)

    def named(name: str) -> str:
        return ENCODER + name if own else _torchvision_name(name, backbone)

    wanted = [named(name) for name, _ in encoder.named_parameters()]
    missing = [name for name in wanted if name not in state]
    if missing:
        raise InputError(
            Problem(
                source,
                f"weight {missing[0]!r}",
                f"{len(missing)} of {len(wanted)} weights missing",
                f"a torchvision state dict of {backbone}",
                "Use weights of the plan's backbone.",
            )
        )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            value = _converted(named(name), state, parameter.shape)
            if value.shape != parameter.shape:
                found = f"shape {tuple(value.shape)}"
                allowed = str(tuple(parameter.shape))
                raise InputError(
                    Problem(source, name, found, allowed, "Use weights of the plan's backbone.")
                )
            parameter.copy_(value)


def _converted(name: str, state: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """One torchvision weight in our form: grey stem, GroupNorm affine."""
    value = state[name].float()
    if value.ndim == 4 and value.shape[1] == 3 and shape[1] == 1:
        return value.sum(dim=1, keepdim=True)
    layer, _, kind = name.rpartition(".")
    if value.ndim == 1 and f"{layer}.running_var" in state:
        weight, bias = fold_batch_norm(
            state[f"{layer}.weight"].float(),
            state[f"{layer}.bias"].float(),
            state[f"{layer}.running_mean"].float(),
            state[f"{layer}.running_var"].float(),
        )
        return weight if kind == "weight" else bias
    return value


# Where a stage's children came from in torchvision's own modules.
_STAGES = {
    "resnet": {
        "stages.0.0.": "conv1.",
        "stages.0.1.": "bn1.",
        "stages.1.1.": "layer1.",
        "stages.2.": "layer2.",
        "stages.3.": "layer3.",
        "stages.4.": "layer4.",
    },
    "densenet": {
        "stages.0.0.": "features.conv0.",
        "stages.0.1.": "features.norm0.",
        "stages.1.1.": "features.denseblock1.",
        "stages.2.0.": "features.transition1.",
        "stages.2.1.": "features.denseblock2.",
        "stages.3.0.": "features.transition2.",
        "stages.3.1.": "features.denseblock3.",
        "stages.4.0.": "features.transition3.",
        "stages.4.1.": "features.denseblock4.",
        "stages.4.2.": "features.norm5.",
    },
}


def _torchvision_name(name: str, backbone: str) -> str:
    for ours, theirs in _STAGES.get(backbone.rstrip("0123456789"), {}).items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _imagenet(backbone: str) -> dict[str, Tensor]:
    from common.torchvision_encoders import IMAGENET  # see `build_encoder`

    weights = IMAGENET.get(backbone)
    if weights is None:
        step = "Use one of the backbones " + ", ".join(IMAGENET)
        allowed = f"none, or a local file, for {backbone}"
        raise InputError(Problem("plan", "model.pretrained", "imagenet", allowed, f"{step}."))
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:  # URLError and the like: offline, or a proxy in the way
        raise InputError(
            Problem(
                "plan",
                "model.pretrained",
                f"imagenet, which could not be downloaded ({error})",
                "a network connection, none, or a local file",
                "Fetch the torchvision weights elsewhere and give their path.",
            )
        ) from None


def _weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a state dict is data; an arbitrary pickle would be code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(_not_weights(path, f"a file that cannot be read ({reason})")) from None
    except Exception as error:  # torch raises pickle.UnpicklingError for code in the file
        raise InputError(_not_weights(path, type(error).__name__)) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(_not_weights(path, "something else than named tensors"))
    return state


def _not_weights(path: Path, found: str) -> Problem:
    allowed = ".safetensors or a torch state dict"
    return Problem(str(path), "model.pretrained", found, allowed, "Check the path and the file.")
