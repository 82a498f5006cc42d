"""Predictions of one site and of the council."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.batches import SiteData, load_site_data
from client.learning.evaluate import Heads, predict, score, true_findings
from client.settings import open_site_folder
from common.findings import FINDINGS
from common.heads import FindingsHead, LungsHead
from common.metrics import auroc, dice, macro
from common.model import build_model
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_cache, small_plan, write_folder

MASS, EDEMA = FINDINGS.index("Mass"), FINDINGS.index("Edema")


@pytest.fixture
def data(tmp_path: Path, nih_archive: ArchiveFactory) -> SiteData:
    cache = small_cache(nih_archive(patients=9, masks=True), tmp_path / "cache")
    folder = open_site_folder(write_folder(tmp_path / "ward", cache))
    return load_site_data(folder, cache, torch.device("cpu"))


def test_the_council_is_the_mean_of_those_who_annotate(data: SiteData) -> None:
    model = build_model(small_plan())
    rows = data.rows("train")
    heads = []
    for annotates in (("Mass", "Edema"), ("Mass",), ()):
        torch.manual_seed(len(heads))
        lungs = LungsHead(model.encoder.channels, 8) if annotates else None
        heads.append(Heads(FindingsHead(model.encoder.channels[-1]), lungs, annotates))
    own, council = predict(model, heads, data, rows)
    assert np.allclose(council.logits[:, MASS], (own[0].logits + own[1].logits)[:, MASS] / 2)
    assert np.allclose(council.logits[:, EDEMA], own[0].logits[:, EDEMA])
    silent = [i for i in range(14) if i not in (MASS, EDEMA)]
    assert np.isnan(council.logits[:, silent]).all()
    assert np.isnan(own[2].logits).all()
    assert len(own[2].dice) == 0
    assert len(council.dice) == len(council.iou) == len(rows)
    assert (council.dice >= council.iou).all()


def test_the_council_weighs_evidence(data: SiteData) -> None:
    """Finding by finding: a ward of 17 patients must not have the say of an ICU of 161."""
    model, rows = build_model(small_plan()), data.rows("train")
    heads = []
    for seed, evidence in enumerate(({"Mass": 3.0, "lungs": 0.0}, {"Edema": 0.25, "lungs": 2.0})):
        torch.manual_seed(seed)
        findings = FindingsHead(model.encoder.channels[-1])
        lungs = LungsHead(model.encoder.channels, 8)
        heads.append(Heads(findings, lungs, ("Mass", "Edema"), evidence=evidence))
    (first, second), council = predict(model, heads, data, rows)
    mass = (3.0 * first.logits[:, MASS] + 1.0 * second.logits[:, MASS]) / 4.0
    edema = (1.0 * first.logits[:, EDEMA] + 0.25 * second.logits[:, EDEMA]) / 1.25
    assert np.allclose(council.logits[:, MASS], mass, atol=1e-6)
    assert np.allclose(council.logits[:, EDEMA], edema, atol=1e-6)
    assert (council.dice == second.dice).all()  # the other has seen no mask


def test_lungs_are_scored_against_the_mask(data: SiteData) -> None:
    model = build_model(small_plan())
    rows = data.rows("val")
    [own], _ = predict(model, [Heads(None, model.lungs, ())], data, rows)
    batch = data.batch(rows)
    model.eval()
    with torch.no_grad():
        predicted = model(batch.images).lungs.sigmoid() > 0.5
    expected = dice(batch.masks.squeeze(1).numpy() > 0.5, predicted.squeeze(1).numpy())
    assert np.allclose(own.dice, expected)


def test_scores_leave_out_what_is_undefined(data: SiteData) -> None:
    model = build_model(small_plan())
    heads = Heads(model.findings, None, FINDINGS)
    rows = data.rows("train")
    [own], _ = predict(model, [heads], data, rows)
    truth = true_findings(data, rows)
    metrics = score(own, truth, "val").metrics
    defined = [auroc(truth[:, i], own.logits[:, i]) for i in range(14)]
    assert None in defined
    assert metrics == {"val_macro_auroc": macro(defined)}
    [nothing], _ = predict(model, [heads], data, rows[:0])
    assert score(nothing, truth[:0], "val").metrics == {}


def test_truth_is_minus_one_where_nobody_looked(data: SiteData) -> None:
    rows = np.arange(len(data.table))
    truth = true_findings(data, rows)
    assert ((truth == -1) == ~data.known).all()
    assert ((truth == 1) == (data.known & (data.targets == 1))).all()


def test_probabilities_are_the_sigmoid(data: SiteData) -> None:
    model = build_model(small_plan())
    [own], _ = predict(model, [Heads(model.findings, None, ("Mass",))], data, data.rows("val"))
    expected = torch.from_numpy(own.logits[:, MASS]).sigmoid().numpy()
    assert np.allclose(own.probabilities[:, MASS], expected)
