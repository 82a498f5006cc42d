"""A small prepared phantom and cells on it, for the tests of studies."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from client.data.cache import open_cache
from common.plan import Plan
from simulations.experiment.prepare import prepare
from simulations.study.ablation.spec import AblationSpec, spec_from_json
from simulations.study.cells import Cell, SiteRows, TestSet
from simulations.study.material import Material, load_material
from tests.unit.client.sites import SIZE, small_cache, small_plan


def silent() -> Console:
    return Console(file=io.StringIO())


def quick_plan(seed: int = 1, **more: Any) -> Plan:
    """Two rounds of two steps."""
    training = {"local_steps": 2, "batch_size": 4}
    federation = {"rounds": 2, "min_sites": 2}
    values: Mapping[str, Any] = {"seed": seed, "training": training, "federation": federation}
    return small_plan(**{**values, **more})


class CellWorld:
    """An archive with masks, decoded; the first images train, the others test."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.folder, self.cache = folder, small_cache(archive, folder / "cache").folder
        index = open_cache(self.cache).index
        rows = index[["image", "patient"]].assign(labelled=index["labelled"], masked=True)
        half = len(rows) // 2
        self.train = rows.iloc[:half].assign(split="train")
        self.train.loc[self.train.index[-2:], "split"] = "val"
        self.tests = [TestSet("all", self.cache, rows.iloc[half:].reset_index(drop=True))]

    def cell(self, name: str, sites: int = 1, **plan: Any) -> Cell:
        parts = [self.train.iloc[number::sites] for number in range(sites)]
        rows = {f"site-{number}": site_rows(part) for number, part in enumerate(parts)}
        return Cell(name, quick_plan(**plan), rows)


def site_rows(rows: pd.DataFrame) -> SiteRows:
    return SiteRows(rows[["image", "split", "labelled", "masked"]].reset_index(drop=True))


def study_plan(**more: Any) -> dict[str, Any]:
    """The best plan of a tiny study, as YAML would have it."""
    value: dict[str, Any] = {
        "name": "tiny",
        "seed": 4,
        "model": {
            "backbone": "tiny",
            "image_size": SIZE,
            "decoder_width": 8,
            "bridge": "decoder-input",
        },
        "training": {"local_steps": 1, "batch_size": 4},
        "semi_supervision": {"mode": "mean-teacher", "batch_size": 2},
        "federation": {"rounds": 1},
        "evaluation": {"bootstrap": 20},
        "simulation": {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}},
    }
    return value | more


def study_spec(**more: Any) -> AblationSpec:
    return spec_from_json(json.dumps({"plan": study_plan()} | more), "spec")


def study_material(spec: AblationSpec, archive: Path, run: Path, masks: Path) -> Material:
    run.mkdir(parents=True, exist_ok=True)
    return load_material(prepare(spec.plan, run, archive, masks, False, silent()))
