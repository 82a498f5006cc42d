"""The patient bootstrap against a naive one with the same resamples, its pairs, its speed."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from common import metrics
from common.bootstrap import (
    Replicates,
    ScoreTable,
    bootstrap,
    difference,
    mean_interval,
    mean_of,
)
from common.findings import FINDINGS
from common.subgroups import subgroup_table

NAMES = ("A", "B", "C")


def _population(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 patients of 1 to 8 images; ties, unknown targets and a rare finding."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{n:02}" for n in range(60)], rng.integers(1, 9, 60))
    sick = rng.random((60, 3)) < (0.4, 0.2, 0.05)
    _, patient = np.unique(patients, return_inverse=True)
    targets = sick[patient].astype(np.int8)
    targets[rng.random(targets.shape) < 0.1] = -1
    scores = np.round(rng.normal(targets == 1), 1)
    return targets, scores, patients


def _naive(
    targets: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Copy the images of every drawn patient and rank them anew: (R, F) AUROC and precision."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    auroc, precision = [], []
    for _ in range(resamples):
        drawn = np.concatenate([rows[p] for p in rng.integers(0, len(rows), len(rows))])
        pairs = list(zip(targets[drawn].T, scores[drawn].T, strict=True))
        auroc.append([metrics.auroc(t, s) for t, s in pairs])
        precision.append([metrics.average_precision(t, s) for t, s in pairs])
    return np.array(auroc, dtype=float), np.array(precision, dtype=float)


def test_agrees_with_a_naive_bootstrap() -> None:
    population = _population()
    result = bootstrap(*population, resamples=50, seed=3, names=NAMES)
    auroc, precision = _naive(*population, resamples=50, seed=3)
    np.testing.assert_allclose(result.auroc.samples, auroc, rtol=1e-12)
    np.testing.assert_allclose(result.average_precision.samples, precision, rtol=1e-12)
    assert np.isnan(auroc).any(), "the example must hold resamples without positives"
    columns = list(zip(population[0].T, population[1].T, strict=True))
    assert result.auroc.value.tolist() == pytest.approx([metrics.auroc(*c) for c in columns])
    interval = result.auroc.table()["A"]
    assert [interval["low"], interval["high"]] == pytest.approx(
        np.percentile(auroc[:, 0], [2.5, 97.5]).tolist()
    )
    whole = result.auroc.macro()
    assert [whole["low"], whole["high"]] == pytest.approx(
        np.percentile(np.nanmean(auroc, axis=1), [2.5, 97.5]).tolist()
    )


def _table(
    targets: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    names: Sequence[str] = FINDINGS,
) -> ScoreTable:
    return bootstrap(targets, scores, patients, resamples, seed, names).auroc.scores()


def test_table_has_the_shape_of_the_summary() -> None:
    targets, scores, patients = _population()
    targets[:, 1] = 0
    table = _table(targets, scores, patients, resamples=20, names=NAMES)
    assert list(table["auroc"]) == list(NAMES)
    assert table["auroc"]["B"] == {"value": None, "low": None, "high": None, "positives": 0}
    defined = [table["auroc"][name]["value"] for name in ("A", "C")]
    assert table["macro_auroc"] == pytest.approx(metrics.macro(defined))
    assert table["macro_low"] is not None
    assert table["macro_high"] is not None
    assert table["macro_low"] <= table["macro_auroc"] <= table["macro_high"]


def test_same_seed_same_interval_and_another_seed_another() -> None:
    population = _population()
    first = _table(*population, resamples=30, seed=1, names=NAMES)
    assert _table(*population, resamples=30, seed=1, names=NAMES) == first
    assert _table(*population, resamples=30, seed=2, names=NAMES) != first


def test_no_resamples_no_interval() -> None:
    table = _table(*_population(), resamples=0, names=NAMES)
    assert table["auroc"]["A"]["value"] is not None
    assert table["auroc"]["A"]["low"] is None
    assert table["macro_low"] is None


def test_one_patient_with_the_finding_has_a_value_but_no_interval() -> None:
    targets = np.array([[1], [1], [0], [0], [0]], dtype=np.int8)
    scores = np.array([[0.9], [0.8], [0.1], [0.85], [0.3]])
    table = _table(targets, scores, np.array([1, 1, 2, 3, 3]), resamples=20, names=("A",))
    assert table["auroc"]["A"] == {
        "value": pytest.approx(5 / 6),
        "low": None,
        "high": None,
        "positives": 2,
    }
    assert table["macro_low"] is None


def test_an_empty_population_is_undefined() -> None:
    table = _table(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), 5, names=NAMES)
    assert table["macro_auroc"] is None
    assert table["auroc"]["A"]["value"] is None


def test_patients_give_wider_intervals_than_images() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 20)
    target = np.repeat(rng.integers(0, 2, 40), 20).astype(np.int8)[:, None]
    score = np.repeat(rng.normal(size=40), 20)[:, None] + target + rng.normal(size=(800, 1)) / 5
    names = ("A",)
    by_patient = _table(target, score, patients, 200, names=names)["auroc"]["A"]
    by_image = _table(target, score, np.arange(800), 200, names=names)["auroc"]["A"]

    def width(interval: dict[str, float]) -> float:
        return interval["high"] - interval["low"]

    assert width(by_patient) > 2 * width(by_image)  # type: ignore[arg-type]


def _model(noise: float, seed: int = 0, blank: int | None = None) -> Replicates:
    targets, _, patients = _population()
    scores = np.random.default_rng(seed).normal(targets == 1, noise)
    if blank is not None:
        scores[:, blank] = np.nan
    return bootstrap(targets, scores, patients, resamples=200, seed=5, names=NAMES).auroc


def test_paired_difference() -> None:
    good, bad = _model(0.3), _model(3.0)
    gain = difference(good, bad)
    np.testing.assert_allclose(gain.samples, good.samples - bad.samples)
    whole = gain.macro()
    assert whole["low"] is not None
    assert whole["low"] > 0
    assert difference(good, good).macro()["value"] == 0
    assert difference(good, good).macro()["high"] == 0


def test_difference_and_mean_leave_out_what_a_model_does_not_know() -> None:
    full, partial = _model(1.0), _model(1.0, seed=1, blank=1)
    assert difference(full, partial).table()["B"]["value"] is None
    both = mean_of([full, partial])
    assert both.value[1] == full.value[1]
    assert both.value[0] == pytest.approx((full.value[0] + partial.value[0]) / 2)
    assert both.table()["B"]["low"] is not None


def test_only_pairs_are_compared() -> None:
    targets, scores, patients = _population()
    first = bootstrap(targets, scores, patients, 10, seed=0, names=NAMES).auroc
    other_seed = bootstrap(targets, scores, patients, 10, seed=1, names=NAMES).auroc
    other_targets = bootstrap(np.abs(targets), scores, patients, 10, seed=0, names=NAMES).auroc
    for other in (other_seed, other_targets):
        with pytest.raises(ValueError, match="same images, patients and seed"):
            difference(first, other)
        with pytest.raises(ValueError, match="same images, patients and seed"):
            mean_of([first, other])
    with pytest.raises(ValueError, match="at least one model"):
        mean_of([])


def test_wrong_shapes_are_named() -> None:
    targets, scores, patients = _population()
    with pytest.raises(ValueError, match="must both be"):
        bootstrap(targets, scores, patients[1:], names=NAMES)
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        mean_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        mean_interval(np.array([np.nan]), np.zeros(1))


def test_mean_interval() -> None:
    values, patients = np.array([0.9, 0.7, 0.95, 0.8]), np.array(["a", "a", "b", "c"])
    interval = mean_interval(values, patients, resamples=200)
    assert interval["value"] == pytest.approx(values.mean())
    # The extreme resamples hold one patient only.
    assert (interval["low"], interval["high"]) == (pytest.approx(0.8), pytest.approx(0.95))
    assert interval["positives"] == 4
    assert mean_interval(np.zeros(0), np.zeros(0))["value"] is None
    assert mean_interval(values[:1], patients[:1])["low"] is None


def test_the_official_test_set_is_quick() -> None:
    """14 findings, 25,596 images of 2,797 patients, 1,000 resamples: 5 s, and twice that here."""
    rng = np.random.default_rng(0)
    images, people = 25_596, 2_797
    patients = np.concatenate([np.arange(people), rng.integers(0, people, images - people)])
    rates = np.geomspace(0.24, 0.0034, len(FINDINGS))
    targets = (rng.random((images, len(FINDINGS))) < rates).astype(np.int8)
    scores = rng.normal(targets).astype(np.float32)
    start = time.process_time()  # not the wall: other work may share the machine
    table = _table(targets, scores, patients)
    assert time.process_time() - start < 10
    assert table["macro_auroc"] is not None


def test_subgroups_blank_small_cells() -> None:
    rng = np.random.default_rng(0)
    images = 400
    targets = np.zeros((images, 2), dtype=np.int8)
    targets[: images // 2, 0] = 1
    targets[:9, 1] = 1
    order = rng.permutation(images)
    targets, scores = targets[order], rng.normal(targets[order])
    sex = np.array(["F", "M"])[np.arange(images) % 2]
    age = np.full(images, 50.0)
    age[:8], age[8:20], age[20:30] = 17.9, 18.0, np.nan
    view = np.where(np.arange(images) < 300, "PA", "")
    table = subgroup_table(targets, scores, sex, age, view, {"A": 0.5}, ("A", "B"))
    groups = {(row["kind"], row["label"]): row for row in table}
    assert ("view", "AP") not in groups
    assert groups["age", "under 18"]["images"] == 8
    assert groups["age", "under 18"]["auroc"]["A"] is None
    assert groups["age", "under 18"]["macro_auroc"] is None
    assert groups["age", "18-39"]["images"] == 12
    assert sum(row["images"] for row in table if row["kind"] == "age") == images - 10
    women = groups["sex", "female"]
    assert women["auroc"]["B"] is None  # nine positives in all
    cell, chosen = women["auroc"]["A"], sex == "F"
    assert cell is not None
    assert cell["value"] == metrics.auroc(targets[chosen, 0], scores[chosen, 0])
    assert cell["value"] == women["macro_auroc"]
    assert cell["sensitivity"] is not None
    plain = subgroup_table(targets, scores, sex, age, view, names=("A", "B"))[0]["auroc"]["A"]
    assert plain is not None
    assert plain["sensitivity"] is None
