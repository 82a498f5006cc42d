"""The demo's promise: hospitals that learn together beat hospitals alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = REPOSITORY / "simulations" / "plans" / "demo.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_shows_that_learning_together_helps(tmp_path: Path) -> None:
    """On test patients whom no hospital has, with an interval that stays above zero."""
    code = "from simulations.__main__ import main; main()"
    words = ["run", str(PLAN), "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    gain = summary["comparisons"]["council_vs_local_mean"]
    assert gain["low"] > 0
    assert summary["federated"]["council"]["macro_auroc"] > 0.7
    assert summary["lungs"]["dice"] > 0.94
    assert summary["pooled"]["macro_auroc"] > summary["local_mean"]["macro_auroc"]
