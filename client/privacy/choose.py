"""Which engine a site uses, and for which networks an engine is refused.

Most of what is refused here would not fail but give wrong gradients, and so a false epsilon.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from client.privacy.engines import Engine, LoopEngine
from client.privacy.vmap import VmapEngine
from client.settings import EngineName
from common.errors import InputError, Problem
from common.model import MultitaskModel

# Parameters below which the loop spends more time on Python than on the network.
SMALL = 1_000_000


def open_engine(name: EngineName, model: MultitaskModel, device: torch.device, most: int) -> Engine:
    """The engine of a site for what the model trains at the time of the call.

    most: images in memory at once, a constant of the site.
    auto: on a CPU the loop, which is the fastest there but for small networks; for those, and
    on a GPU, which a loop would leave idle, vmap where the network allows it.
    Opacus is imported only for an engine of that name.
    Raises InputError for a network on which the engine would be wrong.
    """
    problems = _batch_problems(model)
    if name == "auto":
        small = sum(p.numel() for p in model.parameters()) < SMALL
        prefers = device.type == "cuda" or small
        name = "vmap" if prefers and not _vmap_problems(model) else "loop"
    if name == "vmap":
        problems += _vmap_problems(model)
    if name == "opacus":
        problems += _opacus_problems(model)
    if problems:
        raise InputError(problems)
    if name == "vmap":
        return VmapEngine(model, most)
    if name == "opacus":
        from client.privacy.hooks import OpacusEngine  # a slow import that few sites need

        return OpacusEngine(model, most)
    return LoopEngine(model, most)


def _batch_problems(model: nn.Module) -> list[Problem]:
    """Layers that look at several images: no gradient is a single unit's then."""
    return [
        Problem(
            "site.yaml",
            "key 'engine'",
            f"a network with statistics over images ({_named(name, module)})",
            "networks in which each image stands for itself, such as those with GroupNorm",
            "Differential privacy is not possible with this network: use another backbone.",
        )
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False)
    ]


def _vmap_problems(model: nn.Module) -> list[Problem]:
    return [
        _unfit("vmap", f"a network with dropout ({_named(name, module)})", "auto, loop, opacus")
        for name, module in model.named_modules()
        if isinstance(module, _DropoutNd) and module.p > 0
    ]


def _opacus_problems(model: nn.Module) -> list[Problem]:
    problems = []
    for name, module in model.named_modules():
        reason = _opacus_reason(module)
        if reason is not None:
            found = f"a network with {reason} ({_named(name, module)})"
            problems.append(_unfit("opacus", found, "auto, loop, vmap"))
    return problems


def _opacus_reason(module: nn.Module) -> str | None:
    """Why Opacus would be wrong about a layer; None where nothing is known against it."""
    own = [p for p in module.parameters(recurse=False) if p.requires_grad]
    if own and any(True for _ in module.buffers()):
        return "trained weights beside a buffer"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding mode {getattr(module, 'padding_mode', '')}"
    if any(p.ndim == 4 and not p.is_contiguous() for p in own):
        return "weights in NHWC memory, as on a GPU"
    return None


def _named(name: str, module: nn.Module) -> str:
    return f"{name}: {type(module).__name__}"


def _unfit(engine: str, found: str, allowed: str) -> Problem:
    return Problem(
        "site.yaml",
        "key 'engine'",
        f"{engine} for {found}",
        f"{allowed} for this network",
        "Set engine to loop, which is right for every network without statistics over images.",
    )
