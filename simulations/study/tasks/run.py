"""One multitask network against single-task ones: are its answers as good, and what does it save?

Kinds of networks, all with the plan's encoder, trained from the same start on the same images
for the same number of steps: the multitask one (all findings, and the lungs), one for all
findings, one for the lungs, and one for each finding alone. All data are pooled: the question is
about tasks, not about hospitals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from client.data.batches import SiteData, select, supervised_streams
from client.data.cache import open_cache
from client.learning.train import steps_per_round
from client.ward import pick_device
from common.bootstrap import Replicates, bootstrap, difference, mean_interval
from common.errors import DataError, PlanError, Problem
from common.findings import FINDINGS
from common.plan import Plan
from simulations.bench.timing import machine
from simulations.experiment.prepare import Prepared
from simulations.study.cells import Cell, Outcome, SiteRows, TestSet, run_cells
from simulations.study.material import FINDINGS_TEST, LUNGS_TEST, load_material, pooled
from simulations.study.statistics import Truth, load_truth, only
from simulations.study.tasks.cost import (
    FINDINGS_ONLY,
    LUNGS_ONLY,
    MULTITASK,
    SINGLE,
    measure_costs,
    task_plan,
)

MIN_POSITIVES = 10  # of a finding in the test, to count in the mean that the page leads with
CPU = torch.device("cpu")


def check_plan(plan: Plan) -> None:
    """Raises PlanError for a plan that does not learn both tasks."""
    missing = [name for name in ("findings", "lungs") if not getattr(plan.tasks, name)]
    if missing:
        key, allowed = f"key 'tasks.{missing[0]}'", "true: the multitask network learns both"
        raise PlanError(Problem("plan", key, "false", allowed, "Change the value."))


def run_tasks(
    plan: Plan, prepared: Prepared, workers: int, console: Console, repeats: int = 5
) -> dict[str, Any]:
    """Train what `prepared.run` does not hold yet, compare, and measure the cost.

    Returns what `tasks.json` holds; `failed` in it names the networks that could not be
    trained, with their reasons: what hangs on them is undefined. repeats: of the timing.
    Raises PlanError as `check_plan`, DataError when there is no mask or no label to learn from.
    """
    check_plan(plan)
    material = load_material(prepared)
    sites, cache = pooled(material.rows), material.cache
    [everything] = sites.values()
    data = select(open_cache(cache), everything.rows, FINDINGS, CPU, "training images")
    cells = task_cells(plan, sites, data)
    outcomes, failed = run_cells(cells, material.tests, cache, prepared.run, workers, console)
    console.print("measuring what one answer costs")
    costs = measure_costs(plan, pick_device("auto"), repeats)
    return {
        "schema": 1,
        "status": "incomplete" if failed else "completed",
        "name": plan.name,
        "plan": plan.model_dump(mode="json"),
        "plan_sha256": plan.sha256,
        "data": _describe(prepared, data, material.tests),
        "training": _training(plan, cells, data),
        **_compare(plan, material.tests, outcomes),
        "cost": asdict(costs),
        "cell_seconds": {name: outcome.seconds for name, outcome in outcomes.items()},
        "failed": failed,
        "machine": machine() | {"workers": workers},
    }


def task_cells(plan: Plan, sites: Mapping[str, SiteRows], data: SiteData) -> list[Cell]:
    """The trainings: all kinds of networks on the rows of the one site, which `data` has opened.

    A finding that nobody annotates gets no network of its own. Raises DataError when nothing
    teaches the findings, or nothing the lungs.
    """
    train = data.rows("train")
    annotated = data.annotated("train")
    if not annotated.any() or not (data.mask_row[train] >= 0).any():
        what = "a lung mask" if annotated.any() else "an annotated finding"
        found, allowed = f"no training image with {what}", "labels and masks to learn from"
        step = "Give an archive with labels, and masks with --masks."
        raise DataError(Problem("training images", "", found, allowed, step))
    both = _fixed_steps(plan, data)
    findings_plan = task_plan(both, findings=True, lungs=False)
    cells = [
        Cell(MULTITASK, both, sites),
        Cell(FINDINGS_ONLY, findings_plan, sites),
        Cell(LUNGS_ONLY, task_plan(both, findings=False, lungs=True), sites),
    ]
    for finding, known in zip(FINDINGS, annotated, strict=True):
        if known:
            only_it = {name: SiteRows(site.rows, (finding,)) for name, site in sites.items()}
            cells.append(Cell(_single(finding), findings_plan, only_it))
    return cells


def _single(finding: str) -> str:
    return f"{SINGLE}-{finding}"


def _fixed_steps(plan: Plan, data: SiteData) -> Plan:
    """The plan with as many steps a round as the multitask network takes, for all networks.

    An epoch of those that learn less would be shorter, and the comparison one of training time.
    """
    steps = steps_per_round(plan.training, supervised_streams(data, plan.training, plan.tasks))
    training = plan.training.model_copy(update={"local_steps": steps, "local_epochs": None})
    return plan.model_copy(update={"training": training})


def _describe(prepared: Prepared, data: SiteData, tests: Sequence[TestSet]) -> dict[str, Any]:
    """How many images there were, of which kind."""
    train = data.rows("train")
    return {
        "name": prepared.data,
        "synthetic": prepared.synthetic,
        "train_images": len(train),
        "train_labelled": int(data.known[train].any(axis=1).sum()),
        "train_masks": int((data.mask_row[train] >= 0).sum()),
        "train_positives": {
            finding: int(((data.targets[train] == 1) & data.known[train])[:, column].sum())
            for column, finding in enumerate(FINDINGS)
        },
        "test_images": len(tests[0].rows),
        "test_patients": int(tests[0].rows["patient"].nunique()),
        "lungs_test_images": len(tests[1].rows),
    }


def _training(plan: Plan, cells: Sequence[Cell], data: SiteData) -> dict[str, Any]:
    """Steps, and what one step teaches the three kinds of networks that see all labels or masks.

    labels, masks: images with a label, and with a mask, in one step, on average. If they differ
    between two kinds, then so does more than the task.
    """
    local_steps = cells[0].plan.training.local_steps or 0
    each = {}
    for cell in cells[:3]:
        streams = supervised_streams(data, cell.plan.training, cell.plan.tasks)
        taught = [(np.concatenate(stream.units), stream.steps()) for stream in streams]
        labels = sum(data.known[rows].any(axis=1).sum() / steps for rows, steps in taught)
        masks = sum((data.mask_row[rows] >= 0).sum() / steps for rows, steps in taught)
        tasks = cell.plan.tasks
        each[cell.name] = {"labels": labels * tasks.findings, "masks": masks * tasks.lungs}
    return {"steps": local_steps * plan.federation.rounds, "per_step": each, "seed": plan.seed}


def _compare(
    plan: Plan, tests: Sequence[TestSet], outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """`accuracy` of the findings and `lungs`: who is how right, with the paired differences."""
    truths = {test.name: load_truth(test) for test in tests}
    truth = truths[FINDINGS_TEST]
    said = {
        MULTITASK: _logits(outcomes, [MULTITASK] * len(FINDINGS), len(truth.targets)),
        FINDINGS_ONLY: _logits(outcomes, [FINDINGS_ONLY] * len(FINDINGS), len(truth.targets)),
        SINGLE: _logits(outcomes, [_single(finding) for finding in FINDINGS], len(truth.targets)),
    }
    resamples, owners = plan.evaluation.bootstrap, truths[LUNGS_TEST].patients
    dice = {name: outcome.dice[LUNGS_TEST] for name, outcome in outcomes.items()}
    return {
        "accuracy": accuracy(truth, said, resamples, plan.seed),
        "lungs": lungs_accuracy(dice, owners, resamples, plan.seed),
    }


def _logits(
    outcomes: Mapping[str, Outcome], speakers: Sequence[str], rows: int
) -> npt.NDArray[np.float32]:
    """(rows, 14): each finding's column from the network that speaks on it, NaN without one."""
    logits = np.full((rows, len(FINDINGS)), np.nan, dtype=np.float32)
    for column, name in enumerate(speakers):
        if name in outcomes:
            logits[:, column] = outcomes[name].logits[FINDINGS_TEST][:, column]
    return logits


def accuracy(
    truth: Truth,
    said: Mapping[str, npt.NDArray[np.float32]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """AUROC of the three kinds and the multitask network's paired differences to the others.

    said: (N, 14) logits of "multitask", "findings" and "single", a column of NaN without an
    answer. Returns `findings` (a line for each of the 14), `macro` (their mean, over those with
    MIN_POSITIVES test positives or more) and `macro_defined` (over all), both only over findings
    that all three kinds define, which they name in `over`. A line has an `Interval` for each
    kind, and for `multitask_vs_single` and `multitask_vs_findings`.
    """
    tables = {
        kind: bootstrap(truth.targets, logits, truth.patients, resamples, seed).auroc
        for kind, logits in said.items()
    }
    for other in (SINGLE, FINDINGS_ONLY):
        tables[f"{MULTITASK}_vs_{other}"] = difference(tables[MULTITASK], tables[other])
    intervals = {key: table.table() for key, table in tables.items()}
    defined = [
        finding
        for column, finding in enumerate(FINDINGS)
        if all(np.isfinite(table.value[column]) for table in tables.values())
    ]
    positives = dict(zip(FINDINGS, tables[MULTITASK].positives, strict=True))
    often = [finding for finding in defined if positives[finding] >= MIN_POSITIVES]
    return {
        "findings": {
            finding: {key: table[finding] for key, table in intervals.items()}
            for finding in FINDINGS
        },
        "macro": _mean_line(tables, often),
        "macro_defined": _mean_line(tables, defined),
    }


def _mean_line(tables: Mapping[str, Replicates], findings: Sequence[str]) -> dict[str, Any]:
    """The mean over some findings in every resample, and which findings those are."""
    means = {key: only(table, findings).macro() for key, table in tables.items()}
    return {"over": list(findings), **means}


def lungs_accuracy(
    dice: Mapping[str, npt.NDArray[np.float64]],
    patients: npt.NDArray[Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Mean Dice of "multitask" and "lungs", (M,) each, and their paired difference by image.

    patients: (M,). Images without a Dice (NaN) are left out; a kind that is not given is
    undefined.
    """
    unknown = np.full(len(patients), np.nan)
    values = {kind: dice.get(kind, unknown) for kind in (MULTITASK, LUNGS_ONLY)}
    values[f"{MULTITASK}_vs_{LUNGS_ONLY}"] = values[MULTITASK] - values[LUNGS_ONLY]
    return {
        key: mean_interval(each[np.isfinite(each)], patients[np.isfinite(each)], resamples, seed)
        for key, each in values.items()
    }
