"""Cells are done once, go on where they stopped, and fail alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.answer import answer, open_once
from common.checkpoint import read_json
from simulations.study import cells as module
from simulations.study.cells import SiteRows, run_cells
from simulations.study.federate import InProcessTransport, train_together
from tests.conftest import ArchiveFactory
from tests.unit.simulations.study.study_world import CellWorld, quick_plan, silent


@pytest.fixture
def world(tmp_path: Path, nih_archive: ArchiveFactory) -> CellWorld:
    return CellWorld(tmp_path, nih_archive(patients=12, masks=True))


def test_cells_are_trained_once_tested_and_kept(world: CellWorld) -> None:
    folder = world.folder / "study"
    lungs_only = {"tasks": {"findings": False}}
    asked = [
        world.cell("alone"),
        world.cell("together", sites=2),
        world.cell("lungs", **lungs_only),
    ]
    done, failed = run_cells(asked, world.tests, world.cache, folder, 2, silent())
    assert not failed
    assert list(done) == ["alone", "together", "lungs"]
    rows = len(world.tests[0].rows)
    for name, outcome in done.items():
        assert outcome.logits["all"].shape == (rows, 14)
        assert np.isnan(outcome.logits["all"]).all() == (name == "lungs")
        assert outcome.dice["all"].shape == (rows,)
        assert (outcome.dice["all"] >= outcome.iou["all"]).all()
        assert outcome.plan_sha256 == next(c.plan.sha256 for c in asked if c.name == name)
        assert not (folder / "cells" / name / "work").exists()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("outcome.json")}
    again, _ = run_cells(asked, world.tests, world.cache, folder, 2, silent())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("outcome.json")} == stamps
    np.testing.assert_array_equal(again["alone"].logits["all"], done["alone"].logits["all"])


def test_another_plan_or_other_rows_are_another_cell(world: CellWorld) -> None:
    key = module._keys([world.cell("a")], world.tests, world.cache)["a"]
    other_plan = world.cell("a", seed=9)
    rows = world.cell("a").sites["site-0"]
    fewer = replace(world.cell("a"), sites={"site-0": SiteRows(rows.rows.iloc[1:])})
    silenced = replace(world.cell("a"), sites={"site-0": SiteRows(rows.rows, ("Hernia",))})
    for other in (other_plan, fewer, silenced):
        assert module._keys([other], world.tests, world.cache)["a"] != key
    same = module._keys([world.cell("a")], world.tests, world.cache)["a"]
    assert same == key
    assert module._keys([world.cell("a")], [], world.cache)["a"] != key


def test_an_interrupted_cell_goes_on_and_ends_the_same(
    world: CellWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = world.cell("alone")
    key = module._keys([cell], world.tests, world.cache)["alone"]
    straight, broken = world.folder / "straight", world.folder / "broken"
    module._do(cell, key, world.tests, world.cache, straight)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_test", die)
        with pytest.raises(KeyboardInterrupt):
            module._do(cell, key, world.tests, world.cache, broken)
    assert not module._finished(broken, key)
    with monkeypatch.context() as patch:  # its rounds are done: nothing is trained again
        patch.setattr("client.site.train_round", die)
        module._do(cell, key, world.tests, world.cache, broken)
    assert module._finished(broken, key)
    for name in ("logits", "dice"):
        one, other = (getattr(module._read(each), name)["all"] for each in (straight, broken))
        np.testing.assert_array_equal(one, other)


def test_a_cell_that_fails_is_named_and_stops_no_other(world: CellWorld) -> None:
    unlabelled = world.train.assign(labelled=False, masked=False)
    empty = SiteRows(unlabelled[["image", "split", "labelled", "masked"]])
    bad = replace(world.cell("bad"), sites={"site-0": empty})
    good = world.cell("good")
    done, failed = run_cells(
        [bad, good], world.tests, world.cache, world.folder / "study", 1, silent()
    )
    assert list(done) == ["good"]
    assert list(failed) == ["bad"]
    assert "no " in failed["bad"]


def test_names_that_are_no_folder_or_not_unique(world: CellWorld) -> None:
    for cells in ([world.cell("a/b")], [world.cell("a"), world.cell("a")]):
        with pytest.raises(ValueError, match="unique"):
            run_cells(cells, world.tests, world.cache, world.folder / "study", 1, silent())


def test_a_federation_resumes_after_its_last_round(world: CellWorld) -> None:
    cell = world.cell("together", sites=2)
    folders = {
        where: [
            module._write_site(world.folder / where / name, cell, name, world.cache)
            for name in cell.sites
        ]
        for where in ("straight", "broken")
    }
    train_together(cell.plan, folders["straight"], world.folder / "run-straight")
    asked: list[str] = []

    class Stop(Exception):  # noqa: N818
        pass

    def stops(action: str, parcel: object, folder: Path) -> object:
        asked.append(action)
        if asked.count("train") == 3:
            raise Stop
        return answer(action, parcel, folder)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.study.federate.answer", stops)
        with pytest.raises(Stop):
            train_together(cell.plan, folders["broken"], world.folder / "run-broken")
    train_together(cell.plan, folders["broken"], world.folder / "run-broken")
    states = [read_json(world.folder / f"run-{name}" / "state.json") for name in folders]
    assert [state["status"] for state in states] == ["completed", "completed"]
    assert states[0]["encoder_sha256"] == states[1]["encoder_sha256"]
    train_together(cell.plan, [], world.folder / "run-broken")  # completed: nothing to do


def test_a_site_that_is_forgotten_is_opened_anew(world: CellWorld) -> None:
    cell = world.cell("alone")
    folder = module._write_site(world.folder / "site-0", cell, "site-0", world.cache)
    first = open_once(folder)
    assert open_once(folder) is first
    module.train_alone(quick_plan().to_json(), folder, 1)
    train_together(
        quick_plan(federation={"rounds": 1, "min_sites": 1}), [folder], world.folder / "run"
    )
    assert open_once(folder) is not first
    assert InProcessTransport([folder]).nodes() == [0]
