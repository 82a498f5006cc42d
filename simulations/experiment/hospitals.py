"""A simulated hospital: what it has, and what it says in its `site.yaml`.

A deployed hospital writes this itself, and strictly. A simulated one allows what the plan asks,
so that the plan can be studied; its ledger is real, and protects nobody.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from client.settings import SiteSettings
from common.plan import Plan

# What a site folder without privacy needs: baselines, studies, benchmarks.
OPEN: dict[str, Any] = {
    "simulated": True,
    "policy": {
        "non_private": "allow",
        "metrics": "full",
        "min_cell": 1,
        # Who simulates decides alone what it may cost: the plan's own limits are enough.
        "max_rounds": 10_000,
        "max_steps": 100_000,
        "max_plan_steps": 1_000_000_000,
        "max_epochs": 1000.0,
        "max_head_epochs": 1000,
        "max_batch_size": 131_072,
        "max_images_per_unit": 1000,
        "max_views": 64,
        "max_image_size": 1024,
        "max_decoder_width": 256,
    },
}
MASK_HOSPITAL, POOLED = "masks", "pooled"  # hospitals that the experiment adds
UNBOUND = 1e6  # the lifetime epsilon of a hospital to which the plan gives no cap


@dataclass(frozen=True, eq=False)
class Hospital:
    """One hospital as it is cut from the archive, before anything is trained.

    settings: its `site.yaml`. rows: image, patient, split (str), labelled (bool: its labels may
    be used), outlined (bool: it has a lung mask), and the findings (int8: 1, 0, -1 unknown).
    """

    settings: SiteSettings
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """The hospital's name."""
        return self.settings.name

    @property
    def training(self) -> pd.DataFrame:
        """The rows that it trains on."""
        return self.rows[self.rows["split"] == "train"]

    @property
    def labels(self) -> pd.DataFrame:
        """The labels that it trains on: of the findings that it annotates, rows that have any."""
        usable = self.training.loc[self.training["labelled"], list(self.settings.annotates)]
        return usable[(usable >= 0).any(axis=1)]


def hospital(
    plan: Plan, name: str, annotates: tuple[str, ...], number: int, rows: pd.DataFrame
) -> Hospital:
    """Hospital `number` (from 0), with the settings that the plan gives it. rows: its own."""
    training = rows[rows["split"] == "train"]
    units = training["patient"].nunique() if plan.privacy.unit == "patient" else len(training)
    said = simulated_settings(plan, number, units, int(training["outlined"].sum()))
    values = {"name": name, "cache": "../../cache", "annotates": annotates, **said}
    return Hospital(SiteSettings.model_validate(values), rows)


def simulated_settings(plan: Plan, number: int, training_units: int, masks: int) -> dict[str, Any]:
    """The settings of hospital `number` (from 0) beyond its name and data.

    training_units: patients, or images, as the plan's unit says; masks: training images with a
    lung mask. Both become public words, as a hospital would give them: a count rounded to two
    digits, and yes or no.
    """
    caps = plan.simulation.lifetime_epsilon
    privacy = plan.privacy
    return {
        "simulated": True,
        "nominal_units": rounded(training_units),
        "outlines_lungs": masks > 0,
        "policy": OPEN["policy"]
        | {
            "unit": privacy.unit,
            "epsilon": UNBOUND if caps is None else caps[number],
            "delta": privacy.delta,
            "join": "until-spent",
            "min_noise_multiplier": 0.0,
            "max_clipping_norm": 1e4,
        },
    }


def rounded(count: int) -> int:
    """A count to two significant digits, at least 1."""
    if count < 1:
        return 1
    digits = len(str(count))
    return int(round(count, 2 - digits))
