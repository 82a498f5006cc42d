"""What the run is worth: federated, alone and pooled on the same tests, as one summary.

Test data choose nothing: thresholds come from the hospitals' validation rows, and the encoder
to be tested is named by the plan beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.data.batches import SiteData, select
from client.data.cache import Cache, open_cache
from client.learning.evaluate import Heads, Predictions, predict, true_findings
from client.learning.resident import load_parameters
from client.settings import open_site_folder
from client.site import Site
from client.ward import pick_device
from common.bootstrap import (
    Bootstrap,
    Interval,
    Replicates,
    bootstrap,
    difference,
    mean_interval,
    mean_of,
)
from common.checkpoint import array_sha256, read_arrays
from common.findings import FINDINGS
from common.metrics import auroc, calibration_table, choose_thresholds, macro, operating_table
from common.model import MultitaskModel, build_model
from common.parameters import flatten, load_flat, shared_layout
from common.plan import Plan
from common.subgroups import subgroup_table
from server.run_folder import BEST, LATEST, read_encoder
from simulations.experiment.baselines import baseline_folder, pooled_rows
from simulations.experiment.hospitals import POOLED
from simulations.experiment.prepare import Prepared


@dataclass(frozen=True)
class Tests:
    """The test sets that no hospital has: rows of the global test, and the held-back masks."""

    findings: SiteData
    lungs: SiteData
    validation: SiteData
    populations: npt.NDArray[np.str_]  # per findings row: the hospital it resembles

    @property
    def targets(self) -> npt.NDArray[np.int8]:
        """(N, 14) int8: 1, 0, -1 unknown."""
        return true_findings(self.findings, np.arange(len(self.findings.table)))

    @property
    def patients(self) -> npt.NDArray[Any]:
        """(N,) patient identifiers: the unit of the bootstrap."""
        return self.findings.table["patient"].to_numpy()


@dataclass(frozen=True)
class Tested:
    """One model (or the council) on the tests."""

    findings: Predictions
    lungs: Predictions


def load_tests(prepared: Prepared, device: torch.device) -> Tests:
    """Open the run's tests. Raises DataError when the cache misses one of their images."""
    cache = open_cache(prepared.cache_folder)
    test = prepared.findings_test()
    rows = test[["image"]].assign(split="test", labelled=True)
    lung_rows = prepared.lungs_test()[["image"]].assign(split="test", labelled=False)
    val = pooled_rows(prepared)
    val = val[val["split"] == "val"].reset_index(drop=True)
    return Tests(
        findings=_select(cache, rows, device, "findings test"),
        lungs=_select(cache, lung_rows, device, "lungs test"),
        validation=_select(cache, val, device, "validation"),
        populations=test["site"].to_numpy(str),
    )


def _select(cache: Cache, rows: Any, device: torch.device, name: str) -> SiteData:
    return select(cache, rows, FINDINGS, device, name)


def run_models(
    model: MultitaskModel, heads: list[Heads], tests: Tests
) -> tuple[list[Tested], Tested]:
    """Each site's heads over one encoder, and their council, on both tests."""
    findings, council = predict(model, heads, tests.findings, _everything(tests.findings))
    lungs, lungs_council = predict(model, heads, tests.lungs, _everything(tests.lungs))
    own = [Tested(one, other) for one, other in zip(findings, lungs, strict=True)]
    return own, Tested(council, lungs_council)


def _everything(data: SiteData) -> npt.NDArray[np.int64]:
    return np.arange(len(data.table))


def personal_model(plan: Plan, site: Site, device: torch.device) -> tuple[MultitaskModel, Heads]:
    """A site's final model, and the heads with which it may speak.

    Raises InputError when the site has no final model.
    """
    model = build_model(plan, pretrained=False)
    load_parameters(model, read_arrays(site.final_model(plan)))
    model = model.to(device)
    return model, replace(site.heads(model), evidence=site.evidence(plan))


def summarise(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """Test everything that the run has trained; the part of `summary.json` that is results.

    Keys: sites, federated, local_only, pooled, lungs, cross_site, and what the report adds to
    them. A baseline that the plan leaves out is null. Raises InputError if a model is missing.
    """
    device = pick_device("auto")
    tests = load_tests(prepared, device)
    federated = build_model(plan, pretrained=False).to(device)
    file = LATEST if plan.evaluation.encoder == "last" else BEST
    layout = shared_layout(federated, plan.heads)
    load_flat(federated, layout, read_encoder(prepared.run / file, layout))
    sites = [Site.open(prepared.folder(name)) for name in prepared.sites]
    heads = [personal_model(plan, site, device)[1] for site in sites]
    own, council = run_models(federated, heads, tests)
    council_scores = _bootstrap(plan, council, tests)
    alone = _alone(plan, prepared, tests, device)
    result: dict[str, Any] = {
        "sites": {site: describe_site(prepared, site) for site in prepared.sites},
        "federated": {
            "council": council_scores.auroc.scores(),
            "personal": {
                site: _bootstrap(plan, tested, tests).auroc.scores()
                for site, tested in zip(prepared.sites, own, strict=True)
            },
        },
        "lungs": _lungs(plan, council, tests),
        "cross_site": cross_site(own, tests, prepared.sites),
        "tested_encoder_sha256": array_sha256(flatten(federated, layout)),
        "cross_site_order": list(prepared.sites),
        "data": {
            "name": prepared.data,
            "synthetic": prepared.synthetic,
            "test_images": len(tests.findings.table),
            "test_patients": len(np.unique(tests.patients)),
        },
        **_operating(federated, heads, council, tests),
    }
    return result | _compare(plan, council_scores.auroc, alone, tests)


def _alone(plan: Plan, prepared: Prepared, tests: Tests, device: torch.device) -> dict[str, Tested]:
    """The baselines' models on the tests, by name; "pooled" is one of them."""
    names = list(prepared.sites) if "local" in plan.evaluation.baselines else []
    if "pooled" in plan.evaluation.baselines:
        names.append(POOLED)
    tested = {}
    for name in names:
        site = Site.open(baseline_folder(prepared, name))
        if not site.final_model(plan).exists():
            continue  # it failed, and the experiment has said so
        model, heads = personal_model(plan, site, device)
        [tested[name]], _ = run_models(model, [heads], tests)
    return tested


def _bootstrap(plan: Plan, tested: Tested, tests: Tests) -> Bootstrap:
    """Resampled with the plan's seed: all models on the same resamples, so they can be paired."""
    logits, resamples = tested.findings.logits, plan.evaluation.bootstrap
    return bootstrap(tests.targets, logits, tests.patients, resamples, plan.seed)


def _compare(
    plan: Plan, council: Replicates, alone: Mapping[str, Tested], tests: Tests
) -> dict[str, Any]:
    """The baselines' tables, and the council's paired difference to each."""
    scores = {name: _bootstrap(plan, tested, tests).auroc for name, tested in alone.items()}
    pooled = scores.pop(POOLED, None)
    speaking = [table for table in scores.values() if np.isfinite(table.value).any()]
    mean_local = mean_of(speaking) if speaking else None
    lungs = {name: _lungs(plan, tested, tests) for name, tested in alone.items()}
    return {
        "local_only": {name: table.scores() for name, table in scores.items()},
        "local_mean": None if mean_local is None else mean_local.scores(),
        "pooled": None if pooled is None else pooled.scores(),
        "lungs_alone": lungs,
        "comparisons": {
            "council_vs_local_mean": _paired(council, mean_local),
            "council_vs_pooled": _paired(council, pooled),
        },
    }


def _paired(council: Replicates, other: Replicates | None) -> Interval | None:
    """Difference of the macro AUROCs, council minus other, on the same resamples."""
    return None if other is None else difference(council, other).macro()


def _lungs(plan: Plan, tested: Tested, tests: Tests) -> dict[str, Any]:
    """Mean Dice and IoU on the held-back masks with patient-bootstrap intervals."""
    if not len(tested.lungs.dice):
        return {"dice": None, "iou": None, "images": 0}
    patients = tests.lungs.table["patient"].to_numpy()
    resamples, seed = plan.evaluation.bootstrap, plan.seed
    dice = mean_interval(tested.lungs.dice, patients, resamples, seed)
    iou = mean_interval(tested.lungs.iou, patients, resamples, seed)
    return {
        "dice": dice["value"],
        "dice_low": dice["low"],
        "dice_high": dice["high"],
        "iou": iou["value"],
        "iou_low": iou["low"],
        "iou_high": iou["high"],
        "images": len(tested.lungs.dice),
    }


def cross_site(own: list[Tested], tests: Tests, sites: tuple[str, ...]) -> list[list[float | None]]:
    """Macro AUROC of every site's model (rows) on every site's test population (columns)."""
    return [
        [_macro_on(tested, tests, tests.populations == population) for population in sites]
        for tested in own
    ]


def _macro_on(tested: Tested, tests: Tests, chosen: npt.NDArray[np.bool_]) -> float | None:
    targets, logits = tests.targets[chosen], tested.findings.logits[chosen]
    return macro(auroc(targets[:, column], logits[:, column]) for column in range(len(FINDINGS)))


def _operating(
    model: MultitaskModel, heads: list[Heads], council: Tested, tests: Tests
) -> dict[str, Any]:
    """The council's calibration, frozen thresholds and subgroups."""
    rows = _everything(tests.validation)
    _, validated = predict(model, heads, tests.validation, rows)
    truth = true_findings(tests.validation, rows)
    thresholds = choose_thresholds(truth, validated.probabilities)
    table, probability = tests.findings.table, council.findings.probabilities
    sex, age, view = (table[column].to_numpy() for column in ("sex", "age", "view"))
    return {
        "calibration": calibration_table(tests.targets, probability),
        "operating_points": operating_table(tests.targets, probability, thresholds),
        "subgroups": subgroup_table(tests.targets, probability, sex, age, view, thresholds),
    }


def describe_site(prepared: Prepared, site: str) -> dict[str, Any]:
    """What a hospital holds: counts of patients, images, labels and masks, and its views."""
    folder = open_site_folder(prepared.folder(site))
    index = open_cache(prepared.cache_folder).index.drop(columns=["split", "labelled"])
    rows = folder.rows().merge(index, on="image")
    known = rows["view"].isin(["AP", "PA"])
    return {
        "patients": int(rows["patient"].nunique()),
        "images": len(rows),
        "train": int((rows["split"] == "train").sum()),
        "labelled": int(rows["labelled"].sum()) if folder.settings.annotates else 0,
        "masks": int((rows["mask_row"] >= 0).sum()),
        "ap_share": float((rows["view"] == "AP").sum() / known.sum()) if known.any() else None,
        "annotates": list(folder.settings.annotates),
    }
