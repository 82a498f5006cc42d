"""A phantom archive's table without its pictures: what can be known before any is drawn."""

import numpy as np
import pandas as pd

from common.findings import FINDINGS
from simulations.phantom.patients import hide_labels, sample_cohort, split_patients


def phantom_table(
    images: int, hospitals: int, seed: int, unlabelled: float = 0.1
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table and the hospitals (patient -> name) of the archive that `make_phantom` makes.

    The table has a row for each image: image, patient, sex, view, split (str), follow_up (int64),
    age (float32, years), labelled (bool), and the findings (int8: 1, 0, -1 unknown).
    """
    studies = sample_cohort(images, hospitals, seed)
    test = split_patients(studies, seed)
    studies = hide_labels(studies, test, unlabelled, seed)
    labelled = np.array([study.labelled for study in studies], dtype=bool)
    found = [{name for name, _ in study.findings} for study in studies]
    table = pd.DataFrame(
        {
            "image": pd.Series([study.image for study in studies], dtype="str"),
            "patient": pd.Series([str(study.patient) for study in studies], dtype="str"),
            "follow_up": np.array([study.follow_up for study in studies], dtype=np.int64),
            "age": np.array([study.age for study in studies], dtype=np.float32),
            "sex": pd.Series([study.sex for study in studies], dtype="str"),
            "view": pd.Series([study.view for study in studies], dtype="str"),
            "labelled": labelled,
        }
    )
    for finding in FINDINGS:
        present = np.array([finding in names for names in found], dtype=np.int8)
        table[finding] = np.where(labelled, present, np.int8(-1)).astype(np.int8)
    splits = ["test" if study.patient in test else "train_val" for study in studies]
    table["split"] = pd.Series(splits, dtype="str")
    return table, {str(study.patient): f"hospital-{study.hospital + 1}" for study in studies}
