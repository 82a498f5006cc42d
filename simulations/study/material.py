"""The images of a study: who may be trained on, with which labels, and who tests.

Labels and masks are hidden at random, image by image, in the training rows only. The order in
which they are hidden belongs to the seed, so that of one seed the 3 masks are among the 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import model_validator

from client.data.cache import open_cache
from client.settings import open_site_folder
from common.errors import Problem
from common.findings import FINDINGS
from common.section import Section
from simulations.experiment.baselines import annotated_rows
from simulations.experiment.hospitals import MASK_HOSPITAL
from simulations.experiment.prepare import Prepared
from simulations.study.cells import SiteRows, TestSet

FINDINGS_TEST, LUNGS_TEST = "findings", "lungs"
ROW_COLUMNS = ["image", "split", "labelled", "masked", *FINDINGS]
LABEL_STREAM, MASK_STREAM = 1, 2

Budget = int | Literal["all"]  # annotated training images


class Filter(Section):
    """Which images count: those of one view, or of one hospital, or both."""

    view: Literal["PA", "AP"] | None = None
    site: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Filter":
        if self.view is None and self.site is None:
            raise ValueError("a view (PA or AP), a site, or both")
        return self


@dataclass(frozen=True, eq=False)
class Material:
    """All rows of all hospitals, and the tests that none of them has.

    rows: image, patient, site, view, split, labelled, masked, and 14 bool columns named by
    findings (what the image's hospital annotates). annotates: per hospital.
    """

    rows: pd.DataFrame
    annotates: dict[str, tuple[str, ...]]
    cache: Path
    tests: list[TestSet] = field(default_factory=list)

    @property
    def sites(self) -> tuple[str, ...]:
        """The hospitals, in the order of their names."""
        return tuple(self.annotates)


def load_material(prepared: Prepared) -> Material:
    """Read the rows and tests of a prepared folder. Raises DataError or CacheError."""
    index = open_cache(prepared.cache_folder).index
    facts = index[["image", "patient", "view", "mask_row"]]
    parts, annotates = [], {}
    for name in prepared.sites:
        folder = open_site_folder(prepared.folder(name))
        annotates[name] = folder.settings.annotates
        parts.append(annotated_rows(folder).assign(site=name))
    rows = pd.concat(parts, ignore_index=True).merge(facts, on="image", validate="1:1")
    rows["masked"] = rows.pop("mask_row") >= 0
    rows["labelled"] &= rows[list(FINDINGS)].any(axis=1)
    material = Material(rows, annotates, prepared.cache_folder)
    findings = prepared.findings_test()[["image", "site"]]
    lungs = prepared.lungs_test()[["image"]].merge(findings, on="image", how="left")
    lungs["site"] = lungs["site"].fillna("")
    for name, table in ((FINDINGS_TEST, findings), (LUNGS_TEST, lungs)):
        known = table.merge(facts[["image", "patient", "view"]], on="image", validate="1:1")
        material.tests.append(TestSet(name, prepared.cache_folder, known))
    return material


def matching(rows: pd.DataFrame, kind: Filter | None) -> "pd.Series[bool]":
    """Which rows (view, site) a filter lets through. A mask hospital's images always pass.

    They have no view on record, and without them there would be nothing to outline.
    """
    return _of_kind(rows, kind) | (rows["site"] == MASK_HOSPITAL)


def matching_test(rows: pd.DataFrame, kind: Filter | None, unknown: bool) -> "pd.Series[bool]":
    """Which test rows a filter lets through. unknown: also a mask hospital's without a view.

    Its held-back images have the site "". A model trained with its masks is at home on them
    whatever the filter, but only a filter on that hospital makes a test of another kind of them.
    """
    held_back = rows["site"] == ""
    passes = _of_kind(rows.assign(site=rows["site"].mask(held_back, MASK_HOSPITAL)), kind)
    return passes | (held_back & (rows["view"] == "")) if unknown else passes


def _of_kind(rows: pd.DataFrame, kind: Filter | None) -> "pd.Series[bool]":
    """Which rows are of a view and a site; all without a filter."""
    passes = pd.Series(True, index=rows.index)
    if kind is not None and kind.view is not None:
        passes &= rows["view"] == kind.view
    if kind is not None and kind.site is not None:
        passes &= rows["site"] == kind.site
    return passes


def hide(
    rows: pd.DataFrame, findings: Budget | None, masks: Budget | None, seed: int
) -> pd.DataFrame:
    """The rows with all but `findings` labels and `masks` masks of training images hidden.

    "all" hides none, None all: those of a task that the row does not learn.
    """
    out = rows.copy()
    for column, budget, stream in (
        ("labelled", findings, LABEL_STREAM),
        ("masked", masks, MASK_STREAM),
    ):
        if budget == "all":
            continue
        has = np.flatnonzero(((rows["split"] == "train") & rows[column]).to_numpy())
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
        # By name: the draw then does not depend on the order of the hospitals.
        has = has[np.argsort(rows["image"].to_numpy()[has], kind="stable")]
        hidden = rng.permutation(has)[budget or 0 :]
        out.iloc[hidden, out.columns.get_loc(column)] = False  # type: ignore[index]
    return out


def budget_problems(
    rows: pd.DataFrame, findings: Sequence[Budget], masks: Sequence[Budget], where: str
) -> list[Problem]:
    """Budgets that ask for more labels or masks than the training rows have."""
    found = []
    training = rows[rows["split"] == "train"]
    for key, column, asked in (("findings", "labelled", findings), ("masks", "masked", masks)):
        have = int(training[column].sum())
        most = max((number for number in asked if isinstance(number, int)), default=0)
        if asked and max(most, 1) > have:
            wanted = f"{max(most, 1)} training images" if most else "all of none"
            step = "Lower the budget, or give more annotated images."
            found.append(problem(f"{where}{key}", wanted, f"at most {have}, all there are", step))
    return found


def pooled(rows: pd.DataFrame) -> dict[str, SiteRows]:
    """All rows as one site."""
    return {"pooled": SiteRows(rows[ROW_COLUMNS].reset_index(drop=True))}


def by_hospital(rows: pd.DataFrame, material: Material) -> dict[str, SiteRows]:
    """The rows as sites, one for each hospital that has any."""
    sites = {}
    for name, annotates in material.annotates.items():
        own = rows.loc[rows["site"] == name, ROW_COLUMNS].reset_index(drop=True)
        if len(own):
            sites[name] = SiteRows(own, annotates)
    return sites


def problem(key: str, found: str, allowed: str, step: str) -> Problem:
    """Something that the spec asks and the data cannot give."""
    return Problem("study", f"key {key!r}", found, allowed, step)
