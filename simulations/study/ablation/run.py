"""The ablation: train all cells, score each trial on every view of the tests, answer questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from client.data.cache import open_cache
from simulations.bench.timing import machine
from simulations.experiment.prepare import Prepared
from simulations.study.ablation.grid import Setting, Trial, trials
from simulations.study.ablation.questions import Asked, Scored, asked
from simulations.study.ablation.spec import AblationSpec, as_json
from simulations.study.cells import Outcome, TestSet, run_cells
from simulations.study.equipment import equipment_cache
from simulations.study.material import (
    FINDINGS_TEST,
    LUNGS_TEST,
    Filter,
    Material,
    load_material,
    matching_test,
)
from simulations.study.statistics import (
    Judge,
    View,
    auroc_difference,
    auroc_summary,
    load_truth,
    lungs_difference,
    lungs_summary,
)

OTHER_EQUIPMENT = "other equipment"
HOME, ELSEWHERE = "in-domain", "cross-domain"


def run_ablation(
    spec: AblationSpec, prepared: Prepared, folder: Path, workers: int, console: Console
) -> dict[str, Any]:
    """Train what the folder does not hold yet, compare, and return what `ablation.json` holds.

    Raises InputError when the data cannot give what the spec asks. Cells that fail are named
    in `failed`, and what hangs on them is left out.
    """
    material = load_material(prepared)
    todo = trials(spec, material)
    if spec.equipment:
        _add_equipment(spec, material, folder, console)
    cells = [cell for trial in todo for cell in trial.cells]
    steps = spec.plan.federation.rounds * (spec.plan.training.local_steps or 0)
    console.print(f"{len(cells)} cells of {steps} steps each, {workers} side by side")
    done, failed = run_cells(cells, material.tests, material.cache, folder, workers, console)
    console.print("comparing")
    judge = Judge(
        {test.name: load_truth(test) for test in material.tests},
        spec.plan.evaluation.bootstrap,
        spec.plan.seed,
        spec.min_positives,
    )
    scored = list(_score(spec, material, todo, done, judge))
    return {
        "schema": 1,
        "status": "completed" if not failed else "incomplete",
        "failed": failed,
        "spec": as_json(spec),
        "plan_sha256": spec.plan.sha256,
        "steps": steps,
        "machine": machine() | {"workers": workers},
        "cell_seconds": {name: outcome.seconds for name, outcome in done.items()},
        "data": _describe(prepared, material),
        "results": [_result(each, judge) for each in scored],
        "comparisons": [line for question in asked(scored) for line in _compare(question, judge)],
    }


def _add_equipment(spec: AblationSpec, material: Material, folder: Path, console: Console) -> None:
    """The tests once more, as another X-ray unit would show them."""
    images = {name for test in material.tests for name in test.rows["image"]}
    console.print(f"showing {len(images)} test images as other equipment would")
    place = folder / "equipment"
    cache = equipment_cache(open_cache(material.cache), images, place, spec.plan.seed)
    for test in list(material.tests):
        material.tests.append(TestSet(f"{test.name}, {OTHER_EQUIPMENT}", cache, test.rows))


def _views(spec: AblationSpec, material: Material, setting: Setting) -> Iterator[View]:
    """The parts of the tests on which a setting is scored."""
    if setting.domain is not None:
        domain = next(each for each in spec.domains if each.name == setting.domain)
        yield _view(HOME, material, "", domain.train)
        yield _view(ELSEWHERE, material, "", domain.test, unknown=False)
        return
    yield _view(HOME, material, "", None)
    if spec.equipment:
        yield _view(OTHER_EQUIPMENT, material, f", {OTHER_EQUIPMENT}", None)


def _view(
    name: str, material: Material, suffix: str, kind: Filter | None, unknown: bool = True
) -> View:
    """unknown: with the images of which nobody knows whether they are of that kind."""
    findings, lungs = FINDINGS_TEST + suffix, LUNGS_TEST + suffix
    rows = {
        test.name: matching_test(test.rows, kind, unknown).to_numpy()
        for test in material.tests
        if test.name in (findings, lungs)
    }
    return View(name, findings, lungs, rows[findings], rows[lungs])


def _score(
    spec: AblationSpec,
    material: Material,
    todo: Sequence[Trial],
    done: Mapping[str, Outcome],
    judge: Judge,
) -> Iterator[Scored]:
    """Every row in every setting on every view; seeds with a failed cell are left out."""
    groups: dict[tuple[str, Setting], list[Trial]] = {}
    for trial in todo:
        if trial.cells and all(cell.name in done for cell in trial.cells):
            groups.setdefault((trial.row, trial.setting), []).append(trial)
    for (row, setting), members in groups.items():
        models = {t.seed: [done[cell.name] for cell in t.cells] for t in members}
        views = list(_views(spec, material, setting))
        counted = judge.counted(*views)
        for view in views:
            findings = {seed: judge.findings(each, view) for seed, each in models.items()}
            dice = {seed: judge.lungs(each, view, "dice") for seed, each in models.items()}
            iou = {seed: judge.lungs(each, view, "iou") for seed, each in models.items()}
            yield Scored(
                row,
                setting,
                view,
                counted,
                {seed: value for seed, value in findings.items() if value is not None},
                {seed: value for seed, value in dice.items() if value is not None},
                {seed: value for seed, value in iou.items() if value is not None},
                judge.lung_patients([m for each in models.values() for m in each], view),
            )


def _result(scored: Scored, judge: Judge) -> dict[str, Any]:
    """One line of the table."""
    line: dict[str, Any] = {
        "row": scored.row,
        **asdict(scored.setting),
        "view": scored.view.name,
        "auroc": None,
        "dice": None,
        "iou": None,
    }
    if scored.findings and scored.counted:
        summary = auroc_summary(scored.findings, scored.counted)
        line["auroc"] = summary | {"counted": list(scored.counted)}
    if scored.dice:
        line["dice"] = lungs_summary(scored.dice, scored.patients, judge)
        line["iou"] = lungs_summary(scored.iou, scored.patients, judge)
    return line


def _compare(question: Asked, judge: Judge) -> Iterator[dict[str, Any]]:
    """The paired differences of a question: macro AUROC and Dice, as far as both sides have."""
    first, second = question.first, question.second
    values = {
        "auroc": auroc_difference(first.findings, second.findings, first.counted),
        "dice": lungs_difference(first.dice, second.dice, first.patients, judge),
    }
    for measure, value in values.items():
        if value is not None and value["mean"] is not None:
            yield {
                "question": question.question,
                "row": first.row,
                "against": second.row,
                **asdict(first.setting),
                "against_arrangement": second.setting.arrangement,
                "view": first.view.name,
                "measure": measure,
                **value,
            }


def _describe(prepared: Prepared, material: Material) -> dict[str, Any]:
    """What the cells had to learn from, and what they were tested on."""
    rows, training = material.rows, material.rows["split"] == "train"
    tests = {
        test.name: {"images": len(test.rows), "patients": int(test.rows["patient"].nunique())}
        for test in material.tests
    }
    return {
        "name": prepared.data,
        "synthetic": prepared.synthetic,
        "hospitals": list(material.sites),
        "training_images": int(training.sum()),
        "training_patients": int(rows.loc[training, "patient"].nunique()),
        "labelled": int((training & rows["labelled"]).sum()),
        "outlined": int((training & rows["masked"]).sum()),
        "validation_images": int(np.sum(rows["split"] == "val")),
        "tests": tests,
    }
