"""Learning from unannotated rows: what may be followed, when, and with what vote."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.batches import SiteData, load_site_data, supervised_streams
from client.learning.optimizer import make_optimizer
from client.learning.train import NothingToLearnError, train_round
from client.learning.unlabelled import followed, open_unlabelled, strength, unlabelled_rows
from client.settings import open_site_folder
from client.site import Site
from common.model import MultitaskModel, build_model
from common.parameters import flatten, shared_layout
from common.plan import Plan
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_cache, small_plan, write_folder

MEAN_TEACHER = {"mode": "mean-teacher", "batch_size": 3, "start": 0.0, "ramp": 0.5}


def semi_plan(heads: str = "local", **semi: object) -> Plan:
    return small_plan(heads=heads, semi_supervision=MEAN_TEACHER | semi)


@pytest.fixture
def data(tmp_path: Path, nih_archive: ArchiveFactory) -> SiteData:
    """Twelve patients, all labelled and outlined; tests take some of that away."""
    cache = small_cache(nih_archive(patients=12, masks=True), tmp_path / "cache")
    folder = open_site_folder(write_folder(tmp_path / "ward", cache))
    return load_site_data(folder, cache, torch.device("cpu"))


def without_labels(data: SiteData, keep: int = 0) -> SiteData:
    """Only the first `keep` training rows keep labels and masks."""
    lost = data.rows("train")[keep:]
    known, mask_row = data.known.copy(), data.mask_row.copy()
    known[lost], mask_row[lost] = False, -1
    return replace(data, known=known, mask_row=mask_row)


def train(data: SiteData, plan: Plan, round_number: int = 3) -> MultitaskModel:
    model = build_model(plan)
    optimizer = make_optimizer(model, plan.training)
    train_round(model, model, optimizer, data, plan, round_number, "ward")
    return model


def test_a_local_head_is_followed_only_on_what_the_site_taught_it(data: SiteData) -> None:
    known = data.known.copy()
    known[:, 3:] = False
    partial = replace(without_labels(data, keep=2), known=known & without_labels(data, 2).known)
    local, shared = followed(partial, semi_plan()), followed(partial, semi_plan("shared"))
    assert local.findings.tolist() == [True] * 3 + [False] * 11
    assert local.lungs
    assert shared.findings.all()
    nothing = followed(without_labels(data), semi_plan())
    assert not nothing.findings.any()
    assert not nothing.lungs
    assert followed(without_labels(data), semi_plan("shared")).lungs


@pytest.mark.parametrize(
    ("semi", "tasks", "findings", "lungs"),
    [
        ({"mode": "off"}, {}, False, False),
        ({"findings_weight": 0.0}, {}, False, True),
        ({"lungs_weight": 0.0}, {}, True, False),
        ({}, {"lungs": False}, True, False),
        ({}, {"findings": False}, False, True),
    ],
)
def test_the_plan_says_what_is_followed(
    data: SiteData, semi: dict[str, object], tasks: dict[str, bool], findings: bool, lungs: bool
) -> None:
    plan = small_plan(semi_supervision=MEAN_TEACHER | semi, tasks=tasks)
    what = followed(data, plan)
    assert what.findings.all() == what.findings.any() == findings
    assert what.lungs == lungs


def test_unlabelled_rows_are_training_rows_that_lack_something(data: SiteData) -> None:
    rows = data.rows("train")
    whole = data.known.all(axis=1) & (data.mask_row >= 0)
    assert unlabelled_rows(data, semi_plan()).tolist() == rows[~whole[rows]].tolist()
    some = without_labels(data, keep=3)
    expected = [row for place, row in enumerate(rows) if place >= 3 or not whole[row]]
    assert unlabelled_rows(some, semi_plan()).tolist() == expected
    assert len(unlabelled_rows(some, small_plan())) == 0
    unmasked = replace(data, mask_row=np.full_like(data.mask_row, -1))
    assert unlabelled_rows(unmasked, semi_plan("shared")).tolist() == rows.tolist()


def test_the_ramp_starts_at_nothing_and_ends_at_one() -> None:
    plan = small_plan(
        semi_supervision=MEAN_TEACHER | {"start": 0.2, "ramp": 0.4}, federation={"rounds": 10}
    )
    assert [strength(plan, t) for t in (0.0, 1.0, 1.99)] == [0.0] * 3
    rising = [strength(plan, t) for t in np.linspace(2.0, 6.0, 20)]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.01
    assert strength(plan, 6.0) == strength(plan, 10.0) == 1.0
    sudden = small_plan(semi_supervision=MEAN_TEACHER | {"ramp": 0.0})
    assert strength(sudden, 0.0) == 1.0


@pytest.mark.parametrize("bridge", ["off", "all-stages"])
@pytest.mark.parametrize("mode", ["mean-teacher", "fixmatch"])
def test_unlabelled_rows_change_what_is_learnt(data: SiteData, mode: str, bridge: str) -> None:
    some = without_labels(data, keep=4)
    model = {"backbone": "tiny", "image_size": 32, "decoder_width": 8, "bridge": bridge}
    sections = MEAN_TEACHER | {"mode": mode, "lungs_confidence": 0.5}
    plan = small_plan(semi_supervision=sections, model=model)
    off = small_plan(model=model)
    with_them, again, without = train(some, plan), train(some, plan), train(some, off)
    flat = [torch.cat([p.flatten() for p in m.parameters()]) for m in (with_them, again, without)]
    assert torch.equal(flat[0], flat[1])  # the same round twice is the same round
    assert not torch.equal(flat[0], flat[2])
    assert torch.isfinite(flat[0]).all()


def test_annotated_batches_are_the_same_with_and_without(data: SiteData) -> None:
    """So that a comparison of plans compares the unlabelled term and nothing else."""
    some = without_labels(data, keep=4)
    plan = semi_plan()
    streams = supervised_streams(some, plan.training, plan.tasks)
    assert [len(stream.units) for stream in streams] == [4]
    before_the_start = semi_plan(start=0.9, ramp=0.1)
    early, off = train(some, before_the_start, 1), train(some, small_plan(), 1)
    assert all(torch.equal(a, b) for a, b in zip(early.parameters(), off.parameters(), strict=True))


def test_a_site_without_labels_waits_and_then_teaches_the_encoder_alone(data: SiteData) -> None:
    nothing, plan = without_labels(data), semi_plan("shared")
    with pytest.raises(NothingToLearnError, match="no training row"):
        train(nothing, plan, round_number=1)  # the ramp has not ended
    fresh, trained = build_model(plan), train(nothing, plan)
    changed = {
        name
        for (name, old), new in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed
    assert all(name.startswith("encoder.") for name in changed)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_with_local_heads_a_site_without_labels_has_no_part(data: SiteData) -> None:
    with pytest.raises(NothingToLearnError):
        train(without_labels(data), semi_plan("local"))


def test_an_unannotated_image_has_a_small_vote(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    cache = small_cache(nih_archive(patients=16), tmp_path / "cache")
    site = Site.open(write_folder(tmp_path / "ward", cache))
    rows = len(site.data.rows("train"))
    labelled = len(without_labels(site.data, 4).labelled("train", small_plan().tasks))
    assert 0 < labelled <= 4 < rows

    def vote(plan: Plan, keep: int) -> float:
        site.data = without_labels(site.data, keep)
        model = build_model(plan)
        shared = flatten(model, shared_layout(model, plan.heads))
        return site.train(plan, plan.federation.rounds, shared).weight

    for share in (0.5, 0.1):
        expected = labelled + round(share * (rows - labelled))
        assert vote(semi_plan("shared", vote=share), keep=4) == expected
    assert vote(small_plan(), keep=4) == labelled
    assert vote(semi_plan("shared", vote=0.0), keep=0) == 1  # Flower's mean needs some weight


def test_fixmatch_without_labelled_validation_follows_no_finding(data: SiteData) -> None:
    """Twenty positives are asked for and there are none: only lungs are left to follow."""
    some = without_labels(data, keep=4)
    model = build_model(semi_plan(mode="fixmatch"))
    lungs_too = open_unlabelled(model, some, semi_plan(mode="fixmatch"), rounds_done=2, seed=1)
    assert lungs_too is not None
    findings_only = semi_plan(mode="fixmatch", lungs_weight=0.0)
    assert open_unlabelled(model, some, findings_only, rounds_done=2, seed=1) is None


def test_a_site_with_nothing_to_follow_does_not_vote_for_standing_still(data: SiteData) -> None:
    """Without labels, masks and thresholds the loss is 0; its step would be weight decay."""
    plan = semi_plan("shared", mode="fixmatch", lungs_weight=0.0)
    with pytest.raises(NothingToLearnError):
        train(without_labels(data), plan)
