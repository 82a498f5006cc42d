"""Which images a cell may use: budgets, hospitals, domains."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from simulations.study.ablation.grid import trials
from simulations.study.cells import Cell
from simulations.study.material import Filter, Material, hide, matching, matching_test
from tests.conftest import ArchiveFactory
from tests.unit.simulations.study.study_world import study_material, study_spec


@pytest.fixture
def material(tmp_path: Path, nih_archive: ArchiveFactory) -> Material:
    archive = nih_archive(patients=24, masks=True)
    return study_material(study_spec(), archive, tmp_path / "run", archive / "masks")


def used(rows: pd.DataFrame, column: str) -> set[str]:
    return set(rows.loc[(rows["split"] == "train") & rows[column], "image"])


def test_smaller_budgets_lie_within_larger_ones_and_validation_is_whole(
    material: Material,
) -> None:
    three, five = (hide(material.rows, 6, budget, seed=1) for budget in (3, 5))
    assert len(used(three, "masked")) == 3
    assert used(three, "masked") < used(five, "masked")
    assert used(three, "labelled") == used(five, "labelled")
    assert len(used(three, "labelled")) == 6
    assert used(hide(material.rows, 6, 3, seed=2), "labelled") != used(three, "labelled")
    shuffled = hide(material.rows.sample(frac=1, random_state=0), 6, 3, seed=1)
    assert used(shuffled, "masked") == used(three, "masked")
    val = material.rows["split"] == "val"
    for column in ("labelled", "masked"):
        np.testing.assert_array_equal(three.loc[val, column], material.rows.loc[val, column])
    whole = hide(material.rows, "all", None, seed=1)
    assert used(whole, "labelled") == used(material.rows, "labelled")
    assert not used(whole, "masked")


def test_the_tests_share_no_patient_with_training(material: Material) -> None:
    for test in material.tests:
        assert len(test.rows)
        assert not set(test.rows["patient"]) & set(material.rows["patient"])


def test_nothing_is_trained_twice(material: Material) -> None:
    spec = study_spec(findings=[4, "all"], masks=[3, 5], seeds=[1, 2])
    todo = trials(spec, material)
    per_row = Counter(trial.row for trial in todo)
    assert per_row["segmenter"] == per_row["classifier"] == 2 * 2
    assert per_row["multitask"] == per_row["bridge"] == 2 * 2 * 2
    cells = [cell for trial in todo for cell in trial.cells]
    assert len({cell.name for cell in cells}) == len(cells)

    def content(cell: Cell) -> tuple[str, ...]:
        rows = cell.sites["pooled"].rows
        return cell.plan.sha256, str(sorted(used(rows, "labelled"))), str(used(rows, "masked"))

    assert len({content(cell) for cell in cells}) == len(cells)


def test_arrangements_share_the_same_annotations(material: Material) -> None:
    spec = study_spec(
        rows=["multitask"],
        findings=[6],
        masks=[3],
        seeds=[1],
        arrangements=["pooled", "local", "federation"],
    )
    todo = {trial.setting.arrangement: trial.cells for trial in trials(spec, material)}
    [pooled], [federation], local = todo["pooled"], todo["federation"], todo["local"]
    assert list(federation.sites) == list(material.sites)
    assert pooled.plan == federation.plan == local[0].plan
    for column in ("labelled", "masked"):
        whole = used(pooled.sites["pooled"].rows, column)
        shares = [used(site.rows, column) for site in federation.sites.values()]
        assert set().union(*shares) == whole
        assert sum(map(len, shares)) == len(whole)
    for cell in local:
        [(name, site)] = cell.sites.items()
        assert cell.name.endswith(f".{name}")
        assert used(site.rows, "labelled") or used(site.rows, "masked")


def test_a_hospital_without_annotations_is_not_trained_alone(material: Material) -> None:
    spec = study_spec(
        rows=["segmenter", "segmenter+unlabelled"], masks=[1], seeds=[1], arrangements=["local"]
    )
    assert [len(trial.cells) for trial in trials(spec, material)] == [1, 1]


def test_a_domain_trains_on_its_kind_only(material: Material) -> None:
    domain = {"name": "PA to AP", "train": {"view": "PA"}, "test": {"view": "AP"}, "masks": [2]}
    spec = study_spec(rows=["multitask"], seeds=[1], domains=[domain])
    [_, trial] = trials(spec, material)
    assert trial.setting.domain == "PA to AP"
    [cell] = trial.cells
    views = material.rows.set_index("image")["view"]
    assert set(views[cell.sites["pooled"].rows["image"]]) == {"PA"}
    site = material.sites[0]
    here = material.rows[matching(material.rows, Filter(site=site, view="AP"))]
    assert set(here["site"]) == {site}
    assert set(here["view"]) == {"AP"}


def test_what_the_data_cannot_give_is_said_at_once(material: Material) -> None:
    domain = {"name": "x", "train": {"site": "site-9"}, "test": {"view": "AP"}}
    spec = study_spec(findings=[500], masks=[3, 400], domains=[domain])
    with pytest.raises(InputError) as caught:
        trials(spec, material)
    text = str(caught.value)
    assert "key 'findings': found 500 training images; allowed: at most" in text
    assert "key 'masks': found 400 training images" in text
    assert "key 'domains.0.train.site': found 'site-9'; allowed: one of site-1, site-2" in text
    assert "key 'domains.0.findings': found all of none; allowed: at most 0" in text
    assert "key 'domains.0.train':" not in text  # once is enough
    lungs_only = study_spec(rows=["segmenter"], findings=[500], masks=[3])
    assert trials(lungs_only, material)  # a budget that no row uses


def test_a_domain_without_a_test_image_is_refused(material: Material) -> None:
    for test in material.tests:
        test.rows["view"] = "PA"
    home = {"name": "home", "train": {"view": "PA"}, "test": {"site": material.sites[0]}}
    away = {"name": "away", "train": {"view": "AP"}, "test": {"view": "AP"}}
    with pytest.raises(InputError) as caught:
        trials(study_spec(rows=["multitask"], domains=[home, away]), material)
    text = str(caught.value)
    assert "key 'domains.1.train': found no test image" in text
    assert "key 'domains.1.test': found no test image" in text
    assert "domains.0" not in text


def test_a_mask_hospital_passes_every_filter(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    spec = study_spec()
    archive = nih_archive(patients=24)
    source = nih_archive("outlined", patients=30, images=1, masks=True, layout="images")
    for image in list((source / "images").glob("*.png")):
        # A name with an NIH name in it would be one of the archive's own patients.
        name = f"m{image.name.replace('_000', '')}"
        mask = source / "masks" / image.name
        image.rename(image.with_name(name))
        mask.rename(mask.with_name(name))
    for file in (*source.glob("*.csv"), *source.glob("*.txt")):
        file.unlink()
    plan = spec.plan.model_copy(
        update={"simulation": spec.plan.simulation.model_copy(update={"mask_test": 5})}
    )
    spec = spec.model_copy(update={"plan": plan})
    material = study_material(spec, archive, tmp_path / "run", source)
    assert "masks" in material.sites
    rows = material.rows[matching(material.rows, Filter(view="PA"))]
    assert set(rows["view"]) == {"PA", ""}
    assert int(rows["masked"].sum()) == 25
    assert not rows.loc[rows["site"] == "masks", "labelled"].any()
    lungs = material.tests[1].rows
    assert set(lungs["site"]) == set(lungs["view"]) == {""}
    assert matching_test(lungs, Filter(view="PA"), unknown=True).all()
    assert not matching_test(lungs, Filter(view="AP"), unknown=False).any()
    assert matching_test(lungs, None, unknown=False).all()
    own, other = Filter(site="masks"), Filter(site=material.sites[-1])
    findings = material.tests[0].rows
    for unknown in (True, False):
        assert matching_test(lungs, own, unknown).all()
        assert not matching_test(findings, own, unknown).any()
        assert matching_test(lungs, other, unknown).all() == unknown
    domain = {"name": "to masks", "train": {"view": "PA"}, "test": {"site": "masks"}}
    asked = study_spec(rows=["segmenter"], masks=[3], seeds=[1], domains=[domain])
    assert len(trials(asked, material)) == 2
