"""A site as the federation sees it: repeatable, resumable, and silent about its data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from client.learning.resident import load_parameters
from client.site import Site
from client.ward import pick_device
from common.checkpoint import read_arrays
from common.errors import CacheError, LayoutError
from common.findings import FINDINGS
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan
from common.sections import TasksPlan
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import private_plan, private_site
from tests.unit.client.sites import small_cache, small_plan, write_folder


def start(plan: Plan) -> Flat:
    model = build_model(plan)
    return flatten(model, shared_layout(model, plan.heads))


@pytest.fixture
def folder(tmp_path: Path, nih_archive: ArchiveFactory) -> Path:
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    return write_folder(tmp_path / "ward", cache)


def test_an_update_says_what_it_is(folder: Path) -> None:
    plan = small_plan()
    shared = start(plan)
    site = Site.open(folder)
    update = site.train(plan, 1, shared)
    assert (update.site, update.round, update.plan_sha256) == ("ward", 1, plan.sha256)
    assert update.layout_sha256 == shared_layout(build_model(plan), "local").sha256
    assert update.delta.shape == shared.shape
    assert np.abs(update.delta).max() > 0
    assert update.covers == (*FINDINGS, "lungs")
    assert set(update.metrics) == {"train_loss", "val_macro_auroc", "val_dice"}
    assert update.weight == len(site.data.supervised("train", TasksPlan()))
    assert update.seconds > 0


def test_a_round_asked_for_twice_gives_the_same_update(folder: Path) -> None:
    plan = small_plan()
    shared = start(plan)
    site = Site.open(folder)
    first = site.train(plan, 1, shared)
    second = site.train(plan, 2, shared + first.delta)
    again = Site.open(folder).train(plan, 2, shared + first.delta)
    assert (again.delta == second.delta).all()
    assert (Site.open(folder).train(plan, 1, shared).delta == first.delta).all()


def test_heads_and_optimizer_go_on_where_they_were(folder: Path) -> None:
    """Round 2 of a site that trained round 1 differs from round 2 of one that did not."""
    plan = small_plan()
    shared = start(plan)
    site = Site.open(folder)
    site.train(plan, 1, shared)
    with_history = site.train(plan, 2, shared)
    for file in site.folder.state.rglob("*.safetensors"):
        file.unlink()
    assert not (Site.open(folder).train(plan, 2, shared).delta == with_history.delta).all()


def test_only_two_states_are_kept(folder: Path) -> None:
    plan = small_plan(federation={"rounds": 5})
    site, shared = Site.open(folder), start(plan)
    for number in range(1, 5):
        site.train(plan, number, shared)
    names = sorted(path.name for path in site.folder.state.rglob("*.safetensors"))
    assert names == ["round-00003.safetensors", "round-00004.safetensors"]


def test_a_new_run_of_the_same_plan_does_not_see_the_old_one(folder: Path) -> None:
    plan = small_plan(federation={"rounds": 5})
    site, shared = Site.open(folder), start(plan)
    first = [site.train(plan, number, shared).delta for number in (1, 2, 3)]
    again = [site.train(plan, number, shared).delta for number in (1, 2, 3)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_heads_never_travel_unless_shared(folder: Path) -> None:
    local, shared = small_plan(), small_plan(heads="shared")
    site = Site.open(folder)
    encoder_only = site.train(local, 1, start(local)).delta.size
    everything = site.train(shared, 1, start(shared)).delta.size
    parameters = sum(p.numel() for p in build_model(local).parameters())
    assert encoder_only < everything == parameters


@pytest.mark.parametrize("weighting", ["equal", "size", "labelled"])
def test_weights(folder: Path, weighting: str) -> None:
    plan = small_plan(federation={"rounds": 3, "weighting": weighting})
    site = Site.open(folder)
    expected = {
        "equal": 1.0,
        "size": float(len(site.data.rows("train"))),
        "labelled": float(len(site.data.supervised("train", TasksPlan()))),
    }[weighting]
    assert site.train(plan, 1, start(plan)).weight == expected


def test_validation_only_in_the_rounds_that_ask_for_it(folder: Path) -> None:
    plan = small_plan(evaluation={"every": 2})
    site = Site.open(folder)
    assert set(site.train(plan, 1, start(plan)).metrics) == {"train_loss"}
    assert "val_dice" in site.train(plan, 2, start(plan)).metrics


def test_a_mask_hospital_speaks_of_lungs_only(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    site = Site.open(write_folder(tmp_path / "masks", cache, annotates=()))
    update = site.train(small_plan(), 1, start(small_plan()))
    assert update.covers == ("lungs",)
    assert set(update.metrics) == {"train_loss", "val_dice"}


def test_finish_keeps_a_personal_model(folder: Path) -> None:
    plan = small_plan(training={"local_epochs": 1.0, "head_epochs": 3})
    shared = start(plan)
    site = Site.open(folder)
    shared = shared + site.train(plan, 1, shared).delta
    before = site.evaluate(plan, 1, shared)
    scores = site.finish(plan, 1, shared)
    assert scores.metrics.keys() == before.metrics.keys()
    model = build_model(plan)
    load_parameters(model, read_arrays(site.final_model(plan)))
    layout = shared_layout(model, "local")
    assert (flatten(model, layout) == shared).all()
    assert site.evaluate(plan, 1, shared) == before  # evaluation changes nothing


def test_deterministic_plans_repeat_to_the_bit(folder: Path) -> None:
    plan = small_plan()
    site = Site.open(folder)
    scores = [site.evaluate(plan, 1, start(plan)) for _ in range(2)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"model": {"backbone": "tiny", "image_size": 64}}, CacheError, "images of 32 px"),
        ({"heads": "shared"}, LayoutError, "the layout of the plan's model"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    folder: Path, section: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Site.open(folder).train(small_plan(**section), 1, start(small_plan()))


def test_auto_is_the_gpu_only_if_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("tasks", "metrics"),
    [({"lungs": False}, {"val_macro_auroc"}), ({"findings": False}, {"val_dice"})],
)
def test_single_task_plans_train_on_what_they_need(
    tmp_path: Path, nih_archive: ArchiveFactory, tasks: dict[str, bool], metrics: set[str]
) -> None:
    """Half of the images have no mask, a fifth no label: neither may reach the wrong task."""
    archive = nih_archive(patients=9, masks=True)
    for mask in sorted((archive / "masks").glob("*_000.png")):
        mask.unlink()
    site = Site.open(write_folder(tmp_path / "ward", small_cache(archive, tmp_path / "cache")))
    plan = small_plan(tasks=tasks)
    update = site.train(plan, 1, start(plan))
    assert set(update.metrics) == {"train_loss", *metrics}
    assert np.isfinite(update.metrics["train_loss"])
    assert update.weight == len(site.data.supervised("train", plan.tasks))


def test_a_site_covers_only_what_it_can_teach(folder: Path) -> None:
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(labelled=False).to_parquet(folder / "rows.parquet")
    assert Site.open(folder).covers == ("lungs",)


@pytest.mark.parametrize("private", [False, True])
def test_what_is_fixed_stays_as_it_came_and_does_not_leave(
    tmp_path: Path, nih_archive: ArchiveFactory, private: bool
) -> None:
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    folder = write_folder(tmp_path / "ward", cache)
    plan = small_plan(heads="shared")
    if private:
        folder = private_site(tmp_path / "private", cache)
        plan = private_plan(heads="shared")
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"frozen_stages": 3})})
    site, model = Site.open(folder), build_model(plan)
    shared, layout = start(plan), shared_layout(model, "shared")
    frozen = sum(p.numel() for stage in model.encoder.by_stage()[:3] for p in stage)
    assert layout.size - layout.moving == frozen > 0
    shared[layout.moving :] += 0.125  # what came, and not what the site could build itself
    update = site.train(plan, 1, shared)
    assert update.delta.shape == (layout.moving,)
    assert np.abs(update.delta).max() > 0
    site.finish(plan, 1, layout.moved(shared, update.delta))
    kept = read_arrays(site.final_model(plan))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert np.allclose(kept[name], parameter.detach().numpy() + 0.125)


def test_evidence_is_counted_by_finding(folder: Path) -> None:
    site, plan = Site.open(folder), small_plan()
    table = site.data.table
    training = table[table["split"] == "train"]
    evidence = site.evidence(plan)
    for name in ("Mass", "Edema", "Hernia"):
        positives = int((training[name] == 1).sum()) + 0.5
        negatives = int((training[name] == 0).sum()) + 0.5
        assert evidence[name] == pytest.approx(1 / (1 / positives + 1 / negatives))
    assert evidence["lungs"] == int((training["mask_row"] >= 0).sum())


def test_a_private_plans_evidence_is_what_the_site_declares(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    """Not one count of labels: they would be told without noise."""
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    site = Site.open(write_folder(tmp_path / "ward", cache, nominal_units=40))
    evidence = site.evidence(private_plan())
    assert set(evidence) == {*FINDINGS, "lungs"}
    assert set(evidence.values()) == {40.0}


def test_sites_share_one_copy_of_the_pixels(folder: Path) -> None:
    first, second = Site.open(folder), Site.open(folder)
    assert first.data.images is second.data.images
    assert first.data.images is not first.data.masks
