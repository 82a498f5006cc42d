"""Metrics against torchmetrics, against hand counts, and as properties."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
)

from common import metrics

TARGETS = hnp.arrays(np.int8, st.shared(st.integers(1, 40), key="n"), elements=st.integers(-1, 1))
# Few distinct values, so that ties are common; exact in float, so that maps keep them apart.
SCORES = hnp.arrays(
    np.float64,
    st.shared(st.integers(1, 40), key="n"),
    elements=st.integers(-8, 8).map(lambda value: value / 4),
)
MASKS = hnp.arrays(np.bool_, (3, 4, 4))


def _example(seed: int, images: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, images).astype(np.int8)
    return target, np.round(1 / (1 + np.exp(-rng.normal(target))), 2)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_agrees_with_torchmetrics(seed: int) -> None:
    target, score = _example(seed)
    tensors = torch.from_numpy(score), torch.from_numpy(target).long()
    assert metrics.auroc(target, score) == pytest.approx(float(BinaryAUROC()(*tensors)), abs=1e-6)
    expected = float(BinaryAveragePrecision()(*tensors))
    assert metrics.average_precision(target, score) == pytest.approx(expected, abs=1e-6)


def test_calibration_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(2000)
    target = (rng.random(2000) < probability**2).astype(np.int8)
    tensors = torch.from_numpy(probability), torch.from_numpy(target).long()
    expected = float(BinaryCalibrationError(n_bins=15, norm="l1")(*tensors))
    assert metrics.ece(target, probability) == pytest.approx(expected, abs=1e-6)
    assert metrics.brier(target, probability) == pytest.approx(np.mean((probability - target) ** 2))


def test_calibration_of_perfect_and_worst() -> None:
    target = np.array([0, 1, 1, -1])
    perfect, worst = np.array([0.0, 1.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.0, 0.5])
    assert (metrics.ece(target, perfect), metrics.brier(target, perfect)) == (0.0, 0.0)
    assert (metrics.ece(target, worst), metrics.brier(target, worst)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="not logits"):
        metrics.ece(target, perfect * 3)


@pytest.mark.parametrize("targets", [[0, 0, -1], [1, 1, -1], [-1, -1, -1], []])
def test_undefined_is_none(targets: list[int]) -> None:
    target, score = np.array(targets, dtype=np.int8), np.linspace(0, 1, len(targets))
    assert metrics.auroc(target, score) is None
    assert metrics.average_precision(target, score) is None
    assert metrics.choose_threshold(target, score) is None


def test_a_finding_without_output_is_undefined() -> None:
    target, score = np.array([0, 1, 1]), np.full(3, np.nan)
    assert metrics.auroc(target, score) is None
    assert metrics.ece(target, score) is None
    assert metrics.brier(target, score) is None
    point = metrics.operating_point(target, score, 0.5)
    assert [point[key] for key in ("sensitivity", "specificity", "ppv", "npv")] == [None] * 4


def test_macro_leaves_undefined_out() -> None:
    assert metrics.macro([0.5, None, 1.0]) == 0.75
    assert metrics.macro([None]) is None
    assert metrics.macro([]) is None


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="2 scores are not finite"):
        metrics.auroc(np.array([0, 1, 1]), np.array([np.nan, 0.5, np.inf]))
    with pytest.raises(ValueError, match="present"):
        metrics.auroc(np.array([0, 2]), np.zeros(2))
    with pytest.raises(ValueError, match=r"\(2,\) and score \(3,\)"):
        metrics.auroc(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="specificity must be"):
        metrics.choose_threshold(np.array([0, 1]), np.zeros(2), "specificity", 1.5)


@settings(deadline=None)  # a busy machine is not a failure
@given(TARGETS, SCORES)
def test_auroc_survives_a_monotone_transform_and_turns_round(
    target: np.ndarray, score: np.ndarray
) -> None:
    value = metrics.auroc(target, score)
    assert metrics.auroc(target, np.exp(score) + 3) == value
    reverse = metrics.auroc(target, -score)
    if value is None:
        assert reverse is None
    else:
        assert 0 <= value <= 1
        assert reverse == pytest.approx(1 - value)


@settings(deadline=None)
@given(TARGETS, SCORES)
def test_average_precision_is_a_share(target: np.ndarray, score: np.ndarray) -> None:
    value = metrics.average_precision(target, score)
    assert value is None or 0 < value <= 1


@settings(deadline=None)
@given(TARGETS, SCORES)
def test_youden_threshold_is_the_best_observed_one(target: np.ndarray, score: np.ndarray) -> None:
    threshold = metrics.choose_threshold(target, score)
    if threshold is None:
        return

    def youden(at: float) -> float:
        point = metrics.operating_point(target, score, at)
        assert point["sensitivity"] is not None
        assert point["specificity"] is not None
        return point["sensitivity"] + point["specificity"] - 1

    candidates = np.unique(score[target >= 0])
    assert youden(threshold) == pytest.approx(max(youden(value) for value in candidates))


@settings(deadline=None)
@given(TARGETS, SCORES, st.floats(0, 1))
def test_specificity_threshold_keeps_its_promise(
    target: np.ndarray, score: np.ndarray, specificity: float
) -> None:
    threshold = metrics.choose_threshold(target, score, "specificity", specificity)
    if threshold is not None:
        reached = metrics.operating_point(target, score, threshold)["specificity"]
        assert reached is not None
        assert reached >= specificity - 1e-9


def test_specificity_threshold_of_ten_negatives() -> None:
    target = np.array([0] * 10 + [1] * 2)
    score = np.array([*range(10), 8.5, 9.5])
    assert metrics.choose_threshold(target, score, "specificity", 0.9) == 8.5
    tied = metrics.choose_threshold(target, np.zeros(12), "specificity", 0.9)
    assert tied is not None
    assert 0 < tied < 1e-300  # nothing raises an alarm, and the number is still finite


def test_operating_point_counts() -> None:
    target = np.array([1, 1, 1, 0, 0, 0, 0, -1])
    score = np.array([0.9, 0.5, 0.1, 0.5, 0.1, 0.1, 0.1, 0.9])
    point = metrics.operating_point(target, score, 0.5)
    assert point == {
        "threshold": 0.5,
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(3 / 4),
        "ppv": pytest.approx(2 / 3),
        "npv": pytest.approx(3 / 4),
    }
    assert metrics.operating_point(target, score, 2.0)["ppv"] is None


def test_tables_go_finding_by_finding() -> None:
    targets = np.array([[0, 0], [1, 0], [1, 0], [0, -1]])
    scores = np.array([[0.1, 0.2], [0.8, 0.2], [0.7, 0.2], [0.3, 0.2]])
    thresholds = metrics.choose_thresholds(targets, scores, names=("A", "B"))
    assert thresholds == {"A": 0.7, "B": None}
    table = metrics.operating_table(targets, scores, thresholds, ("A", "B"))
    assert table["A"] is not None
    assert (table["A"]["sensitivity"], table["B"]) == (1.0, None)
    calibration = metrics.calibration_table(targets, scores, ("A", "B"))
    assert calibration["B"] == {"ece": pytest.approx(0.2), "brier": pytest.approx(0.04)}


@settings(deadline=None)
@given(MASKS, MASKS)
def test_dice_is_never_below_iou(truth: np.ndarray, predicted: np.ndarray) -> None:
    dice, iou = metrics.dice(truth, predicted), metrics.iou(truth, predicted)
    assert (dice >= iou).all()
    assert dice == pytest.approx(2 * iou / (1 + iou))


def test_overlap_of_known_masks() -> None:
    truth, predicted = np.zeros((3, 2, 2), dtype=np.uint8), np.zeros((3, 2, 2), dtype=np.uint8)
    truth[0, 0] = 1
    predicted[0, :, 0] = 1
    truth[1, 0, 0] = 1
    assert metrics.dice(truth, predicted).tolist() == [0.5, 0.0, 1.0]
    assert metrics.iou(truth, predicted).tolist() == [pytest.approx(1 / 3), 0.0, 1.0]
    with pytest.raises(ValueError, match="must both be"):
        metrics.dice(truth, predicted[:2])


def test_metrics_need_no_torch() -> None:
    code = "import sys, common.bootstrap, common.subgroups; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
