"""Small real site folders for tests: PNG files, cache, site.yaml, rows.parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from client.data.cache import Cache, build_cache
from client.data.nih import open_archive
from common.findings import FINDINGS
from common.model_plan import ModelPlan
from common.plan import Plan, plan_from_json
from simulations.experiment.hospitals import OPEN

SIZE = 32


def small_plan(**more: Any) -> Plan:
    """A plan that trains on SIZE px in a second; keyword arguments are whole sections."""
    value: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "deterministic": True,
        "model": ModelPlan(backbone="tiny", image_size=SIZE, decoder_width=8).model_dump(),
        "training": {"local_epochs": 1.0, "batch_size": 4},
        "federation": {"rounds": 3},
    }
    return plan_from_json(json.dumps(value | more))


def small_cache(archive: Path, folder: Path) -> Cache:
    """Decode an archive to SIZE px."""
    return build_cache(open_archive(archive), folder, SIZE, workers=1)


def write_folder(
    folder: Path, cache: Cache, annotates: tuple[str, ...] = FINDINGS, **settings: Any
) -> Path:
    """A site with all images of the cache: by patient, 1 of 4 is val, the others train."""
    (folder / "state").mkdir(parents=True)
    (folder / "reports").mkdir()
    index = cache.index
    turn = index["patient"].rank(method="dense").astype(int) % 4
    rows = pd.DataFrame(
        {
            "image": index["image"],
            "split": np.where(turn == 0, "val", "train"),
            "labelled": index["labelled"],
        }
    )
    rows.to_parquet(folder / "rows.parquet")
    values = {"name": folder.name, "cache": str(cache.folder), "annotates": list(annotates), **OPEN}
    (folder / "site.yaml").write_text(yaml.safe_dump(values | {"device": "cpu"} | settings))
    return folder
