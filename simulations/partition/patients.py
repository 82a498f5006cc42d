"""From rows to patients: what the schemes need to know about each of them."""

import numpy as np
import pandas as pd

from common.findings import FINDINGS, NO_FINDING

UNLABELLED = "unlabelled"


def describe_patients(table: pd.DataFrame) -> pd.DataFrame:
    """One row a patient, index `patient` sorted, so that the order of the table is no matter.

    Columns: images (int64); ap_share (float64, AP images / images with a known view, NaN when
    none is known); age (float32, years at the first image with a known age, NaN when none);
    in_test, in_pool (bool: has images inside, outside the official test list).
    """
    ordered = table.sort_values(["patient", "follow_up", "image"], kind="stable")
    by_patient = ordered.groupby("patient", sort=True)
    known_view = ordered["view"].isin(["PA", "AP"])
    share = (ordered["view"] == "AP").astype("float64").where(known_view)
    test = official_test(ordered)
    return pd.DataFrame(
        {
            "images": by_patient.size(),
            "ap_share": share.groupby(ordered["patient"]).mean(),
            "age": by_patient["age"].first(),  # first() skips NaN
            "in_test": test.groupby(ordered["patient"]).any(),
            "in_pool": (~test).groupby(ordered["patient"]).any(),
        }
    )


def official_test(table: pd.DataFrame) -> "pd.Series[bool]":
    """Per row (bool): is it in the archive's official test list?"""
    if "split" not in table.columns:
        return pd.Series(False, index=table.index)
    return table["split"] == "test"


def rarest_finding(table: pd.DataFrame, patients: pd.DataFrame) -> "pd.Series[str]":
    """Per patient (index of `patients`): the rarest finding seen on any of the images.

    Rare is measured in images outside the official test list. A patient with labels and no
    finding is "No Finding"; a patient without any label is "unlabelled".
    """
    findings = list(FINDINGS)
    present = table[findings] == 1
    counts = present[~official_test(table)].sum()
    rare_first = counts.sort_values(kind="stable").index.tolist()
    per_patient = present.groupby(table["patient"]).any().loc[patients.index, rare_first]
    labelled = table["labelled"].groupby(table["patient"]).any().loc[patients.index]
    # argmax of booleans is the first True, hence the rarest finding of the patient.
    first = np.asarray(rare_first, dtype=object)[per_patient.to_numpy().argmax(axis=1)]
    without = np.where(labelled.to_numpy(), NO_FINDING, UNLABELLED)
    chosen = np.where(per_patient.any(axis=1).to_numpy(), first, without)
    return pd.Series(chosen, index=patients.index, dtype="str")
