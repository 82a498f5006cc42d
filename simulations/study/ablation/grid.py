"""Which cells an ablation needs: rows, budgets, arrangements, domains and seeds, each once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pandas as pd

from common.errors import InputError, Problem
from common.plan import Plan
from simulations.study.ablation.spec import (
    ROWS,
    AblationSpec,
    Arrangement,
    Domain,
    RowName,
    row_plan,
)
from simulations.study.cells import Cell, SiteRows
from simulations.study.material import (
    Budget,
    Material,
    budget_problems,
    by_hospital,
    hide,
    matching,
    matching_test,
    pooled,
    problem,
)


@dataclass(frozen=True)
class Setting:
    """Under what a row is trained. A budget is None for a task that the row does not learn."""

    findings: Budget | None
    masks: Budget | None
    arrangement: Arrangement
    domain: str | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """One row in one setting with one seed: one cell, or one for each hospital alone."""

    row: RowName
    setting: Setting
    seed: int
    cells: tuple[Cell, ...]


def trials(spec: AblationSpec, material: Material) -> list[Trial]:
    """All trainings that the spec asks for.

    Raises InputError, with every problem, when the data have too few labels or masks, or a
    filter leaves nothing.
    """
    check(spec, material)
    found = []
    for seed, name in product(spec.seeds, spec.rows):
        plan = row_plan(spec.plan, name, seed)
        for findings, masks in _budgets(name, spec.findings, spec.masks):
            rows = hide(material.rows, findings, masks, seed)
            for arrangement in spec.arrangements:
                setting = Setting(findings, masks, arrangement)
                cells = tuple(_cells(_name(name, seed, setting), plan, setting, rows, material))
                found.append(Trial(name, setting, seed, cells))
        for number, domain in enumerate(spec.domains, start=1):
            own = material.rows[matching(material.rows, domain.train)]
            for findings, masks in _budgets(name, domain.findings, domain.masks):
                setting = Setting(findings, masks, "pooled", domain.name)
                rows = hide(own, findings, masks, seed)
                label = f"{_name(name, seed, setting)}.domain{number}"
                found.append(Trial(name, setting, seed, (Cell(label, plan, pooled(rows)),)))
    return found


def _budgets(
    name: RowName, findings: tuple[Budget, ...], masks: tuple[Budget, ...]
) -> Iterator[tuple[Budget | None, Budget | None]]:
    """The budgets of a row: only those of the tasks that it learns, so that none is twice."""
    row = ROWS[name]
    yield from product(findings if row.findings else (None,), masks if row.lungs else (None,))


def _name(row: RowName, seed: int, setting: Setting) -> str:
    parts: list[str] = [row]
    parts += [] if setting.findings is None else [f"f{setting.findings}"]
    parts += [] if setting.masks is None else [f"m{setting.masks}"]
    return ".".join([*parts, f"s{seed}", setting.arrangement])


def _cells(
    name: str, plan: Plan, setting: Setting, rows: pd.DataFrame, material: Material
) -> Iterator[Cell]:
    if setting.arrangement == "pooled":
        yield Cell(name, plan, pooled(rows))
        return
    sites = by_hospital(rows, material)
    if setting.arrangement == "federation":
        yield Cell(name, plan, sites)
        return
    for site, own in sites.items():
        if _teaches(own, plan):
            yield Cell(f"{name}.{site}", plan, {site: own})


def _teaches(site: SiteRows, plan: Plan) -> bool:
    """Whether a hospital could learn alone: some training row is annotated for some task."""
    training = site.rows[site.rows["split"] == "train"]
    labels = plan.tasks.findings and bool(site.annotates) and training["labelled"].any()
    return bool(labels or (plan.tasks.lungs and training["masked"].any()))


def check(spec: AblationSpec, material: Material) -> None:
    """Raise InputError, with every problem, when the data cannot give what the spec asks."""
    learnt = [ROWS[name] for name in spec.rows]
    labels, masks = any(row.findings for row in learnt), any(row.lungs for row in learnt)
    problems = budget_problems(
        material.rows, spec.findings if labels else (), spec.masks if masks else (), ""
    )
    for number, domain in enumerate(spec.domains):
        where = f"domains.{number}."
        problems += _unknown_sites(domain, material, where)
        own = material.rows[matching(material.rows, domain.train)]
        problems += budget_problems(
            own, domain.findings if labels else (), domain.masks if masks else (), where
        )
        problems += _untested(domain, material, where)
    if problems:
        raise InputError(problems)


def _untested(domain: Domain, material: Material, where: str) -> Iterator[Problem]:
    """Filters that leave no image to test on: no labelled one, and none with a mask."""
    for key, kind, unknown in (("train", domain.train, True), ("test", domain.test, False)):
        tests = (test.rows for test in material.tests)
        left = any(matching_test(rows, kind, unknown).any() for rows in tests)
        # A hospital that does not exist is a problem of its own.
        if not left and kind.site in (None, *material.sites):
            step = "Choose another view or hospital, or hold more patients back for the test."
            yield problem(f"{where}{key}", "no test image", "at least one of its kind", step)


def _unknown_sites(domain: Domain, material: Material, where: str) -> list[Problem]:
    return [
        problem(
            f"{where}{key}.site",
            repr(kind.site),
            "one of " + ", ".join(material.sites),
            "Name a hospital of this partition.",
        )
        for key, kind in (("train", domain.train), ("test", domain.test))
        if kind.site is not None and kind.site not in material.sites
    ]
