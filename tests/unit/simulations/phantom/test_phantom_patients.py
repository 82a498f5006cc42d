"""The cohort: prevalence, co-occurrence, visits, views, ages, split and hidden labels."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from common.findings import FINDINGS
from simulations.phantom.patients import hide_labels, sample_cohort, split_patients
from simulations.phantom.render import Study


@pytest.fixture(scope="module")
def many() -> list[Study]:
    return sample_cohort(8000, 4, seed=5)


def positives(studies: list[Study]) -> np.ndarray:
    return np.array([[name in dict(s.findings) for name in FINDINGS] for s in studies])


def test_the_number_of_images_is_exact() -> None:
    for images in (1, 2, 7, 300):
        assert len(sample_cohort(images, 2, seed=1)) == images


def test_prevalences_follow_the_release_and_are_raised(many: list[Study]) -> None:
    share = dict(zip(FINDINGS, positives(many).mean(axis=0), strict=True))
    assert 0.15 < share["Infiltration"] < 0.21
    assert 0.01 < share["Hernia"] < 0.04
    assert all(share["Infiltration"] >= value for value in share.values())
    assert all(share["Hernia"] <= value for value in share.values())
    assert share["Effusion"] > share["Mass"] > share["Fibrosis"]
    nothing = float((~positives(many).any(axis=1)).mean())
    assert 0.40 < nothing < 0.52


def test_a_thousand_images_hold_every_finding_in_both_lists() -> None:
    for seed in range(4):
        studies = sample_cohort(1000, 4, seed)
        test = split_patients(studies, seed)
        in_test = np.array([study.patient in test for study in studies])
        found = positives(studies)
        assert found[~in_test].sum(axis=0).min() >= 8
        assert found[in_test].sum(axis=0).min() >= 1
        assert 0.17 < in_test.mean() < 0.23


def test_findings_go_together_as_in_the_release(many: list[Study]) -> None:
    found = positives(many)
    column = {name: found[:, k] for k, name in enumerate(FINDINGS)}
    assert 0.33 < column["Infiltration"][column["Edema"]].mean() < 0.55
    assert 0.20 < column["Pneumothorax"][column["Emphysema"]].mean() < 0.42


def test_ap_is_sicker_and_views_differ_by_hospital(many: list[Study]) -> None:
    portable = np.array([study.view == "AP" for study in many])
    found = positives(many)
    edema, hernia = FINDINGS.index("Edema"), FINDINGS.index("Hernia")
    assert found[portable, edema].mean() > 2.0 * found[~portable, edema].mean()
    assert found[portable, hernia].mean() < found[~portable, hernia].mean()
    assert 0.33 < portable.mean() < 0.47
    hospital = np.array([study.hospital for study in many])
    shares = [portable[hospital == k].mean() for k in range(4)]
    assert max(shares) - min(shares) > 0.2


def test_visits_are_many_for_few_and_ages_never_fall(many: list[Study]) -> None:
    counts = Counter(study.patient for study in many)
    assert 1.9 < len(many) / len(counts) < 3.2
    assert float(np.median(list(counts.values()))) == 1.0
    assert max(counts.values()) > 20
    for one, two in pairwise(many):
        if one.patient == two.patient:
            assert two.follow_up == one.follow_up + 1
            assert two.age >= one.age
            assert (two.sex, two.hospital) == (one.sex, one.hospital)
        else:
            assert two.patient == one.patient + 1
            assert two.follow_up == 0
    ages = [study.age for study in many]
    assert min(ages) >= 1
    assert max(ages) <= 95
    assert 0.02 < float(np.mean([age < 18 for age in ages])) < 0.09
    assert {study.sex for study in many} == {"M", "F"}


def test_chronic_findings_stay_and_not_in_children(many: list[Study]) -> None:
    stays = [
        "Emphysema" in dict(two.findings)
        for one, two in pairwise(many)
        if one.patient == two.patient and "Emphysema" in dict(one.findings)
    ]
    assert float(np.mean(stays)) > 0.6
    assert all(s.age >= 18 for s in many if "Emphysema" in dict(s.findings))


def test_severity_is_a_share(many: list[Study]) -> None:
    values = np.array([value for study in many for _, value in study.findings])
    assert values.min() >= 0.0
    assert values.max() <= 1.0
    assert values.std() > 0.2


def test_hidden_labels_are_by_patient_and_spare_the_test_list() -> None:
    studies = sample_cohort(600, 3, seed=2)
    test = split_patients(studies, seed=2)
    hidden = hide_labels(studies, test, 0.25, seed=2)
    state: dict[int, set[bool]] = {}
    for study in hidden:
        state.setdefault(study.patient, set()).add(study.labelled)
    assert all(len(values) == 1 for values in state.values())
    assert 0.2 < np.mean([not study.labelled for study in hidden]) < 0.3
    assert all(study.labelled for study in hidden if study.patient in test)
    assert all(study.labelled for study in hide_labels(studies, test, 0.0, seed=2))
    assert not any(study.labelled for study in hide_labels(studies, test, 1.0, seed=2))


def test_one_patient_has_no_test_list_and_two_have() -> None:
    assert split_patients(sample_cohort(1, 1, seed=0), seed=0) == set()
    few = sample_cohort(6, 1, seed=0)
    patients = {study.patient for study in few}
    assert 0 < len(split_patients(few, seed=0)) < len(patients)
