"""The one model of a plan that a site keeps on its device between rounds."""

import os
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from common.model import build_model
from common.parameters import Flat, Layout, flatten, shared_layout
from common.plan import Plan

Arrays = dict[str, npt.NDArray[Any]]


class Resident:
    """One plan's model, built once. `forward` shares its parameters and may be compiled."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        if plan.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(plan.deterministic)
        self.plan_sha256, self.tasks = plan.sha256, plan.tasks
        self.model = build_model(plan, pretrained=False).to(device)
        # Gradients per unit need NCHW: with NHWC, Opacus' convolutions are wrong without a word.
        if device.type == "cuda" and plan.privacy.mode == "off":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.forward: nn.Module = (
            torch.compile(self.model) if plan.training.compile else self.model  # type: ignore[assignment]
        )
        self.layout: Layout = shared_layout(self.model, plan.heads)
        self._fresh = self.local_parameters()

    def delta(self, received: Flat) -> Flat:
        """What training has changed of shared parameters (P,): those that move, (T,) float32."""
        changed: Flat = (flatten(self.model, self.layout) - received)[: self.layout.moving]
        return changed

    def local_parameters(self) -> Arrays:
        """Parameters that do not travel: the local heads."""
        shared = set(self.layout.names)
        return {k: v for k, v in all_parameters(self.model).items() if k not in shared}

    def set_local_parameters(self, arrays: Arrays) -> None:
        """Put local heads in place; those not given go back to the plan's initial ones."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self._fresh:
                    parameter.copy_(torch.from_numpy(arrays.get(name, self._fresh[name]).copy()))


def load_parameters(model: nn.Module, arrays: Arrays) -> None:
    """Copy named arrays, such as those of `Site.final_model`, into a model, in place."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    model.load_state_dict(tensors, strict=False)


def all_parameters(model: nn.Module) -> Arrays:
    """Copies of all parameters of a model, by name."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
    }
