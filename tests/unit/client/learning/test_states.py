"""What a site keeps between rounds: read or refused with one message, and never without end."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from client.learning.resident import Resident
from client.learning.states import States, tidy
from common.checkpoint import write_arrays
from common.errors import InputError
from tests.unit.client.private_world import private_plan

PLAN = private_plan()


def test_only_the_last_plans_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of older ones, what the site made for its own use, if anything was charged for them."""
    monkeypatch.setattr("client.learning.states.PLANS_KEPT", 2)
    hashes = [f"{number:064x}"[::-1] for number in range(1, 6)]
    for age, sha256 in enumerate(hashes):
        folder = tmp_path / sha256[:16]
        folder.mkdir()
        for name in ("round-00001", "sent-00001", "final", "serving"):
            (folder / f"{name}.safetensors").touch()
        os.utime(folder, (1000 + age, 1000 + age))
    (tmp_path / "base-1.safetensors").touch()
    tidy(tmp_path, {hashes[1], hashes[4]})
    kept = {
        path.name: sorted(file.name.split(".")[0] for file in path.iterdir())
        for path in tmp_path.iterdir()
        if path.is_dir()
    }
    everything = ["final", "round-00001", "sent-00001", "serving"]
    assert kept == {
        hashes[1][:16]: ["final", "serving"],
        hashes[3][:16]: everything,
        hashes[4][:16]: everything,
    }
    assert (tmp_path / "base-1.safetensors").exists()


def test_states_that_are_no_states_are_refused_with_the_way_out(tmp_path: Path) -> None:
    states, resident = States(tmp_path, PLAN), Resident(PLAN, torch.device("cpu"))
    odd = {"head/findings.linear.bias": np.ones(3)}
    write_arrays(states.folder / "round-00001.safetensors", odd)
    with pytest.raises(InputError, match=r"round-00001.*heads and optimizer.*delete it"):
        states.restore(resident, None, before=2)
    for arrays in ({"delta": np.ones(3)}, {"received": np.ones(1), "entry_sha256": np.ones(1)}):
        write_arrays(states.folder / "sent-00001.safetensors", arrays)
        with pytest.raises(InputError, match=r"sent-00001.*charged, again"):
            states.sent(1, "0" * 64)
