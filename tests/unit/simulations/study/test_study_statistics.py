"""Means, spreads and paired differences, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.findings import FINDINGS
from common.metrics import auroc
from simulations.study.ablation.grid import Setting, Trial
from simulations.study.ablation.run import _result, _score
from simulations.study.ablation.words import headline, in_words, limits, summary, verdict
from simulations.study.cells import Cell, Outcome, TestSet
from simulations.study.material import Material
from simulations.study.statistics import (
    Judge,
    Truth,
    View,
    auroc_difference,
    auroc_summary,
    lungs_difference,
    lungs_summary,
    seeds_interval,
)
from tests.unit.simulations.study.study_world import study_spec

ROWS = 60
RNG = np.random.default_rng(0)
TARGETS = (RNG.random((ROWS, len(FINDINGS))) < 0.3).astype(np.int8)
TARGETS[:, 1] = 0  # a finding that the test does not have
PATIENTS = np.repeat(np.arange(ROWS // 2), 2).astype(str)
EVERY = np.ones(ROWS, dtype=bool)
VIEW = View("in-domain", "findings", "lungs", EVERY, EVERY)


def judge(min_positives: int = 10) -> Judge:
    truth = Truth(TARGETS, PATIENTS)
    return Judge({"findings": truth, "lungs": truth}, 200, 1, min_positives)


def outcome(seed: int, skill: float, dice: float) -> Outcome:
    rng = np.random.default_rng(seed)
    logits = (skill * TARGETS + rng.normal(size=TARGETS.shape)).astype(np.float32)
    overlap = np.where(np.arange(ROWS) < 40, dice + 0.01 * rng.random(ROWS), np.nan)
    return Outcome({"findings": logits}, {"lungs": overlap}, {"lungs": overlap - 0.1}, 1.0, "")


def by_hand(model: Outcome, columns: list[int]) -> float:
    scores = [auroc(TARGETS[:, c], model.logits["findings"][:, c]) for c in columns]
    return float(np.mean([score for score in scores if score is not None]))


def test_means_are_over_the_findings_with_enough_positives() -> None:
    scorer = judge()
    counted = scorer.counted(VIEW)
    columns = [FINDINGS.index(name) for name in counted]
    assert columns == [c for c in range(14) if TARGETS[:, c].sum() >= 10]
    assert 1 not in columns
    models = {seed: outcome(seed, 1.0, 0.9) for seed in (1, 2, 3)}
    scored = {seed: scorer.findings([model], VIEW) for seed, model in models.items()}
    result = auroc_summary({k: v for k, v in scored.items() if v is not None}, counted)
    expected = [by_hand(model, columns) for model in models.values()]
    assert list(result["macro"]["seeds"].values()) == pytest.approx(expected)
    assert result["macro"]["mean"] == pytest.approx(np.mean(expected))
    assert result["macro"]["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert result["macro"]["low"] < result["macro"]["mean"] < result["macro"]["high"]
    assert set(result["findings"]) == set(FINDINGS)
    assert result["findings"][FINDINGS[1]]["mean"] is None


def test_a_finding_counts_only_where_every_view_has_enough_of_it() -> None:
    scorer = judge()
    first, second = np.arange(ROWS) < 40, np.arange(ROWS) >= 20
    none = np.zeros(ROWS, dtype=bool)
    home, away = (View(name, "findings", "lungs", rows, rows)
                  for name, rows in (("in-domain", first), ("cross-domain", second)))  # fmt: skip
    at_home, abroad, both = scorer.counted(home), scorer.counted(away), scorer.counted(home, away)
    assert set(both) == set(at_home) & set(abroad)
    assert set(both) < set(at_home)
    # A test of lungs alone takes no finding away from the other view.
    assert scorer.counted(home, View("masks", "findings", "lungs", none, EVERY)) == at_home
    assert scorer.counted(View("masks", "findings", "lungs", none, EVERY)) == ()


def test_a_domain_is_scored_on_the_same_findings_at_home_and_away() -> None:
    domain = {"name": "PA to AP", "train": {"view": "PA"}, "test": {"view": "AP"}}
    spec = study_spec(domains=[domain], equipment=False)
    views = np.where(np.arange(ROWS) < 45, "PA", "AP")
    rows = pd.DataFrame({"image": PATIENTS, "patient": PATIENTS, "site": "site-1", "view": views})
    tests = [TestSet(name, Path(), rows) for name in ("findings", "lungs")]
    material = Material(pd.DataFrame(), {}, Path(), tests)
    setting = Setting("all", "all", "pooled", "PA to AP")
    trial = Trial("multitask", setting, 1, (Cell("cell", spec.plan, {}),))
    scorer = judge(min_positives=5)
    done = {"cell": outcome(1, 1.0, 0.9)}
    home, away = _score(spec, material, [trial], done, scorer)
    assert (home.view.name, away.view.name) == ("in-domain", "cross-domain")
    alone = [set(scorer.counted(each.view)) for each in (home, away)]
    assert home.counted == away.counted
    assert set(home.counted) == set.intersection(*alone) < alone[0]
    assert home.counted
    lines = [_result(each, scorer) for each in (home, away)]
    assert [line["auroc"]["counted"] for line in lines] == [list(home.counted)] * 2


def test_differences_are_paired_and_need_seeds_of_both() -> None:
    scorer = judge()
    counted = scorer.counted(VIEW)
    columns = [FINDINGS.index(name) for name in counted]
    good = {seed: outcome(seed, 2.0, 0.9) for seed in (1, 2)}
    poor = {seed: outcome(seed, 0.3, 0.8) for seed in (2, 3)}
    first, second = (
        {seed: scores for seed, model in side.items() if (scores := scorer.findings([model], VIEW))}
        for side in (good, poor)
    )
    result = auroc_difference(first, second, counted)
    assert result is not None
    expected = by_hand(good[2], columns) - by_hand(poor[2], columns)
    assert result["mean"] == pytest.approx(expected)
    assert list(result["seeds"]) == [2]
    assert result["low"] > 0
    same = auroc_difference(first, first, counted)
    assert same is not None
    assert (same["mean"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    assert auroc_difference({1: first[1]}, {3: second[3]}, counted) is None
    assert auroc_difference(first, first, ()) is None


def test_dice_is_paired_image_by_image() -> None:
    scorer = judge()
    models = {seed: (outcome(seed, 1, 0.9), outcome(seed + 9, 1, 0.8)) for seed in (1, 2)}
    dice = [
        {seed: values for seed, pair in models.items()
         if (values := scorer.lungs([pair[side]], VIEW, "dice")) is not None}
        for side in (0, 1)
    ]  # fmt: skip
    patients = scorer.lung_patients([models[1][0]], VIEW)
    assert len(patients) == 40
    result = lungs_difference(dice[0], dice[1], patients, scorer)
    assert result is not None
    expected = np.mean([dice[0][seed] - dice[1][seed] for seed in (1, 2)])
    assert result["mean"] == pytest.approx(expected)
    assert 0.08 < result["low"] < result["high"] < 0.12
    whole = lungs_summary(dice[0], patients, scorer)
    assert whole["mean"] == pytest.approx(np.mean([dice[0][1], dice[0][2]]))
    assert lungs_difference(dice[0], {}, patients, scorer) is None


def test_hospitals_alone_count_as_their_mean_and_silent_ones_not_at_all() -> None:
    scorer = judge()
    models = [outcome(1, 2.0, 0.9), outcome(2, 0.5, 0.7)]
    silent = Outcome(
        {"findings": np.full((ROWS, 14), np.nan, np.float32)},
        {"lungs": np.full(ROWS, np.nan)}, {"lungs": np.full(ROWS, np.nan)}, 1.0, "",
    )  # fmt: skip
    counted = scorer.counted(VIEW)
    columns = [FINDINGS.index(name) for name in counted]
    scores = scorer.findings([*models, silent], VIEW)
    assert scores is not None
    result = auroc_summary({1: scores}, counted)
    assert result["macro"]["mean"] == pytest.approx(np.mean([by_hand(m, columns) for m in models]))
    assert result["macro"]["sd"] is None
    dice = scorer.lungs([*models, silent], VIEW, "dice")
    assert dice is not None
    assert dice.mean() == pytest.approx(0.805, abs=0.01)
    assert scorer.findings([silent], VIEW) is None
    assert scorer.lungs([silent], VIEW, "dice") is None
    assert not len(scorer.lung_patients([silent], VIEW))


def line(mean: float, low: float | None, high: float | None, *seeds: float) -> dict[str, object]:
    values = dict(enumerate(seeds))
    return {"mean": mean, "low": low, "high": high, "seeds": values, **seeds_interval(seeds)}


def test_the_interval_over_seeds_is_students() -> None:
    found = seeds_interval([0.01, 0.02, 0.03])
    half = 4.302653 * 0.01 / 3**0.5  # the t table at 2 degrees of freedom
    assert found["seeds_low"] == pytest.approx(0.02 - half, abs=1e-6)
    assert found["seeds_high"] == pytest.approx(0.02 + half, abs=1e-6)
    assert seeds_interval([0.01, None]) == {"seeds_low": None, "seeds_high": None}


GAIN = line(0.02, 0.01, 0.03, 0.02, 0.021, 0.019)
LOSS = line(-0.02, -0.03, -0.01, -0.02, -0.021, -0.019)
PERHAPS = line(0.02, 0.01, 0.03, 0.01, 0.03)
SPLIT = line(0.02, 0.01, 0.03, 0.05, -0.01)
NOTHING = line(0.0, -0.01, 0.02, 0.0, 0.0)


@pytest.mark.parametrize(
    ("difference", "kind", "words"),
    [
        (GAIN, "helps", "helps: all 3 trainings agree, over trainings +0.018 to +0.022"),
        (LOSS, "hurts", "hurts: all 3 trainings agree, over trainings −0.022 to −0.018"),
        (PERHAPS, "perhaps helps", "perhaps helps: all 2 trainings agree, but over trainings −0."),
        (NOTHING, "unseen", "no difference can be seen: the interval −0.010 to +0.020 includes 0"),
        (SPLIT, "unsure", "but not all 2 trainings agree"),
        (line(0.02, 0.01, 0.03, 0.02), "unsure", "from one training: another may differ"),
        (line(0.02, None, None, 0.02), "unseen", "no interval: too few test patients"),
    ],
)
def test_words_say_what_the_numbers_allow(
    difference: dict[str, object], kind: str, words: str
) -> None:
    assert verdict(difference) == kind
    assert words in in_words(difference)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GAIN, NOTHING], "perhaps: better in 1 of 2 comparisons (+0.000 to +0.020)"),
        ([GAIN, GAIN, NOTHING], "yes: better in 2 of 3 comparisons (+0.000 to +0.020)"),
        ([GAIN, PERHAPS, NOTHING], "perhaps: better in 2 of 3 comparisons"),
        ([PERHAPS], "perhaps: better in 1 of 1 comparisons (+0.020)"),
        ([LOSS], "no, on the contrary: worse in 1 of 1 comparisons (−0.020)"),
        ([LOSS, NOTHING], "perhaps the contrary: worse in 1 of 2 comparisons (−0.020 to +0.000)"),
        ([GAIN, LOSS], "it depends: better in 1 and worse in 1 of 2 comparisons"),
        ([NOTHING], "not that one could see, in 1 comparison (+0.000)"),
        ([SPLIT, NOTHING], "open: not all trainings agree, in 1 of 2 comparisons"),
    ],
)
def test_the_short_answer(lines: list[dict[str, object]], words: str) -> None:
    assert headline(lines).startswith(words)


def facts(mode: str, lungs_batch_size: int | None, *rows: str) -> dict[str, Any]:
    """As much of `ablation.json` as the limits are worked out from."""
    training = {"lungs_batch_size": lungs_batch_size}
    plan = {"training": training, "semi_supervision": {"mode": mode}}
    spec = {"seeds": [1, 2], "rows": rows, "plan": plan}
    return {"spec": spec, "comparisons": [GAIN] * 3, "data": {"synthetic": False}}


def test_limits_name_what_the_plan_mixes_into_the_differences() -> None:
    both = " ".join(limits(facts("fixmatch", 4, "classifier", "multitask+unlabelled")))
    assert "at least one interval in twenty" in both
    assert "they are not independent" in both
    assert "averaged together in a step" in both
    assert "labels of the validation images" in both
    for other in (facts("mean-teacher", None, "multitask+unlabelled"), facts("off", 4)):
        assert "averaged together" not in " ".join(limits(other))
        assert "validation images" not in " ".join(limits(other))
    supervised = limits(facts("fixmatch", None, "classifier", "segmenter+unlabelled"))
    assert "validation images" not in " ".join(supervised)  # a guess on lungs has no threshold


def test_several_answers_in_one_sentence() -> None:
    assert summary([GAIN, GAIN, NOTHING], "Dice") == (
        "Dice: 2 × a gain, 1 × no difference that can be seen (+0.000 to +0.020)."
    )
