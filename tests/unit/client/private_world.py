"""A small site with a policy, and private plans for it."""

import json
from pathlib import Path
from typing import Any

import yaml

from client.data.cache import Cache
from client.site import Site
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan, plan_from_json
from tests.unit.client.sites import SIZE, write_folder

POLICY: dict[str, Any] = {"epsilon": 100.0, "min_noise_multiplier": 0.1}
DEADLINE = 600.0  # of a real site whose answers nobody waits for
UNITS = 8


def private_plan(name: str = "private", **more: Any) -> Plan:
    """Three rounds of two steps on SIZE px; keyword arguments are merged into whole sections."""
    value: dict[str, Any] = {
        "name": name,
        "model": {"backbone": "tiny", "image_size": SIZE, "decoder_width": 8},
        "training": {"local_steps": 2, "batch_size": 4, "max_gradient_norm": None},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": 1.0, "images_per_unit": 2},
        "federation": {"rounds": 3, "weighting": "declared"},
    }
    for section, change in more.items():
        old = value.get(section, {})
        value[section] = {**old, **change} if isinstance(change, dict) else change
    return plan_from_json(json.dumps(value))


def private_site(folder: Path, cache: Cache, **settings: Any) -> Path:
    """A real (not simulated) hospital with a budget."""
    simulated = settings.get("simulated", False)
    times = {} if simulated else {"deadline": DEADLINE}
    policy = POLICY | times | settings.pop("policy", {})
    more = {"nominal_units": UNITS, "policy": policy, "simulated": False} | settings
    return write_folder(folder, cache, **more)


def change_policy(folder: Path, **policy: Any) -> None:
    """Edit the policy in a site.yaml, as a privacy officer would."""
    file = folder / "site.yaml"
    value = yaml.safe_load(file.read_text())
    value["policy"] |= policy
    file.write_text(yaml.safe_dump(value))


def start(plan: Plan) -> Flat:
    """The plan's initial shared parameters."""
    model = build_model(plan)
    return flatten(model, shared_layout(model, plan.heads))


def kinds(site: Site) -> list[str]:
    """The kinds of the entries in a site's ledger."""
    return [entry.kind for entry in site.gate.ledger.entries()]
