"""Hospitals with few labels or none take part, and the others lose nothing by it."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from client.data.batches import Rows
from client.learning.evaluate import true_findings
from client.settings import open_site_folder
from client.site import pick_device
from common.metrics import auroc, macro
from common.plan import Plan
from simulations.experiment.prepare import Prepared, prepare
from simulations.study.cells import Cell, Outcome, SiteRows, TestSet, load_test, run_cells

SEEDS = (1, 2, 3, 4, 5)
VOTE = 0.1
# How far the macro AUROC may fall in the mean of the seeds: three standard errors. Over nine seeds
# the difference had a standard deviation of 0.012 with the 5 % hospital, and of 0.0012 (about a
# mean of -0.0024) with the silent one alone. With a whole vote for every image the falls are
# 0.044, 0.012 and 0.048 (docs/results.md has the values), so that a broken vote is noticed.
LOST = {"few": 0.016, "none": 0.006, "both": 0.016}


def plan(seed: int = 1, vote: float = VOTE) -> Plan:
    return Plan.model_validate(
        {
            "name": "unlabelled-sites",
            "seed": seed,
            "heads": "shared",
            "model": {"backbone": "tiny", "image_size": 64, "decoder_width": 8},
            "tasks": {"lungs": False},
            "training": {
                "local_steps": 16,
                "batch_size": 16,
                "learning_rate": 0.002,
                "head_learning_rate": 0.01,
            },
            "semi_supervision": {"mode": "mean-teacher", "vote": vote},
            "federation": {"rounds": 16, "min_sites": 2},
            "simulation": {
                "sites": 4,
                "phantom_images": 1000,
                "partition": {"scheme": "hospitals", "label_fraction": (1.0, 1.0, 0.05, 0.0)},
            },
        },
        strict=False,
    )


def sites(prepared: Prepared, names: tuple[str, ...]) -> dict[str, SiteRows]:
    return {name: SiteRows(open_site_folder(prepared.folder(name)).rows()) for name in names}


def labelled_share(prepared: Prepared, name: str) -> float:
    rows = open_site_folder(prepared.folder(name)).rows()
    return float(rows.loc[rows["split"] == "train", "labelled"].mean())


def macro_auroc(outcome: Outcome, test: TestSet, rows: Rows, truth: np.ndarray) -> float:
    logits = outcome.logits[test.name][rows]
    value = macro(auroc(truth[:, i], logits[:, i]) for i in range(truth.shape[1]))
    assert value is not None
    return value


def compare(folder: Path, vote: float = VOTE) -> dict[str, list[float]]:
    """Macro AUROC of the council on all hospitals' test patients, per seed."""
    quiet = Console(quiet=True)
    prepared = prepare(plan(), folder, None, None, False, quiet)
    shares = {name: labelled_share(prepared, name) for name in prepared.sites}
    whole, few, none = (
        tuple(name for name, share in shares.items() if low < share <= high)
        for low, high in ((0.5, 1.0), (0.0, 0.1), (-1.0, 0.0))
    )
    assert (len(whole), len(few), len(none)) == (2, 1, 1), shares
    test = TestSet("findings", prepared.cache_folder, prepared.findings_test())
    arms = {"base": whole, "few": whole + few, "none": whole + none, "both": whole + few + none}
    cells = [
        Cell(f"{arm}-{seed}", plan(seed, vote), sites(prepared, names))
        for arm, names in arms.items()
        for seed in SEEDS
    ]
    done, failed = run_cells(cells, [test], prepared.cache_folder, folder, 2, quiet)
    assert not failed
    data = load_test(test, pick_device("cpu"))
    rows = np.arange(len(data.table))
    truth = true_findings(data, rows)
    return {
        arm: [macro_auroc(done[f"{arm}-{seed}"], test, rows, truth) for seed in SEEDS]
        for arm in arms
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sites_with_few_or_no_labels_do_not_hurt(tmp_path: Path) -> None:
    """Two labelled hospitals, and with them one with 5 % of its labels, one with none, or both."""
    result = compare(tmp_path / "study")
    for arm, lost in LOST.items():
        assert np.mean(result[arm]) >= np.mean(result["base"]) - lost, result


if __name__ == "__main__":  # python -m tests.e2e.test_unlabelled_sites DIR [VOTE]
    import sys

    print(compare(Path(sys.argv[1]), *map(float, sys.argv[2:3])))
