"""Small random tables in the shape that the NIH reader gives, for the partitioner's tests."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from common.findings import FINDINGS

RARITY = dict(zip(FINDINGS, np.linspace(0.30, 0.02, len(FINDINGS)), strict=True))


def make_table(
    patients: int = 240, seed: int = 0, official_test: bool = True, unlabelled: float = 0.0
) -> pd.DataFrame:
    """A table of `patients` patients with 1 to 5 images, a third of them PA only."""
    rng = np.random.default_rng(seed)
    number = rng.integers(1, 6, size=patients)
    who = np.repeat(np.arange(1, patients + 1), number)
    follow_up = np.concatenate([np.arange(images) for images in number])
    ap_chance = rng.choice([0.0, 0.25, 0.9], size=patients)[who - 1]
    labelled = rng.random(len(who)) >= unlabelled
    table = pd.DataFrame(
        {
            "image": [f"{p:08d}_{f:03d}.png" for p, f in zip(who, follow_up, strict=True)],
            "patient": who.astype(str),
            "follow_up": follow_up.astype("int64"),
            "age": rng.integers(1, 90, size=patients)[who - 1].astype("float32"),
            "sex": rng.choice(["M", "F"], size=patients)[who - 1],
            "view": np.where(rng.random(len(who)) < ap_chance, "AP", "PA"),
            "labelled": labelled,
        }
    )
    for finding, share in RARITY.items():
        present = (rng.random(len(who)) < share).astype("int8")
        table[finding] = np.where(labelled, present, -1).astype("int8")
    if official_test:
        in_test = rng.random(patients)[who - 1] < 0.2
        table["split"] = np.where(in_test, "test", "train_val")
    return table


def hand_table(views: Mapping[str, str], ages: Mapping[str, float] | None = None) -> pd.DataFrame:
    """A table from a text of views per patient: {"7": "PPA"} is two PA images and one AP."""
    names = {"P": "PA", "A": "AP", "?": ""}
    rows = [
        {
            "image": f"{patient}_{number:03d}.png",
            "patient": patient,
            "follow_up": number,
            "age": np.float32((ages or {}).get(patient, 50.0)),
            "sex": "F",
            "view": names[view],
            "labelled": True,
            **dict.fromkeys(FINDINGS, np.int8(0)),
        }
        for patient, text in views.items()
        for number, view in enumerate(text)
    ]
    return pd.DataFrame(rows)
