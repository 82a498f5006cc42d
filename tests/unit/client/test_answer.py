"""The site's answers, with a real site that trains on real images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from client import answer as module
from client.answer import answer, site_folder
from client.data.cache import build_cache
from client.data.nih import open_archive
from common.checkpoint import array_sha256, read_arrays
from common.errors import InputError
from common.model import build_model
from common.parameters import Flat, flatten, shared_layout
from common.plan import Plan
from common.update import Broadcast
from common.wire import Parcel, pack_broadcast, unpack_update
from simulations.experiment.hospitals import OPEN

PLAN = Plan.model_validate(
    {
        "name": "answers",
        "model": {"backbone": "tiny", "image_size": 32, "decoder_width": 8},
        "training": {"local_steps": 1, "batch_size": 4},
    }
)


@pytest.fixture(autouse=True)
def no_open_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sites", {})


@pytest.fixture
def folder(nih_archive, tmp_path: Path) -> Path:
    archive = open_archive(nih_archive(patients=3, images=2))
    cache = build_cache(archive, tmp_path / "cache", 32, workers=1)
    site = tmp_path / "sites" / "ward"
    site.mkdir(parents=True)
    splits = ["train"] * 4 + ["val"] * 2
    rows = {"image": cache.index["image"], "split": splits, "labelled": True}
    pd.DataFrame(rows).to_parquet(site / "rows.parquet")
    (site / "site.yaml").write_text(
        yaml.safe_dump({"name": "ward", "cache": "../../cache", "device": "cpu", **OPEN})
    )
    return site


@pytest.fixture
def base() -> Flat:
    model = build_model(PLAN)
    return flatten(model, shared_layout(model, "local"))


def message(base: Flat, with_base: bool = True, plan: Plan = PLAN) -> Parcel:
    delta = np.zeros_like(base)
    sent = base if with_base else None
    broadcast = Broadcast(plan.to_json(), 1, array_sha256(base), delta, sent)
    return pack_broadcast(broadcast, "bf16")


def test_a_site_says_hello(folder: Path, base: Flat) -> None:
    hello = Parcel({}, {"base_sha256": array_sha256(base)}, {})
    assert answer("hello", hello, folder).config == {"site": "ward", "holds_base": False}
    answer("train", message(base), folder)
    assert answer("hello", hello, folder).config == {"site": "ward", "holds_base": True}


def test_training_answers_with_an_update(folder: Path, base: Flat) -> None:
    update = unpack_update(answer("train", message(base), folder))
    assert (update.site, update.round, update.plan_sha256) == ("ward", 1, PLAN.sha256)
    assert update.delta.shape == base.shape
    assert np.abs(update.delta).max() > 0
    assert "train_loss" in update.metrics


def test_base_is_kept_and_the_same_training_follows_without_it(folder: Path, base: Flat) -> None:
    first = answer("train", message(base), folder)
    second = answer("train", message(base, with_base=False), folder)
    np.testing.assert_array_equal(first.arrays["delta"], second.arrays["delta"])


def test_missing_base_is_asked_for_and_not_logged(folder: Path, base: Flat) -> None:
    reply = answer("train", message(base, with_base=False), folder)
    assert reply.config == {"site": "ward", "error": "base-missing"}
    assert not (folder / "reports" / "site.log").exists()


def test_damaged_base_is_asked_for_again(folder: Path, base: Flat) -> None:
    answer("train", message(base), folder)
    [file] = (folder / "state").glob("base-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    reply = answer("train", message(base, with_base=False), folder)
    assert reply.config["error"] == "base-missing"
    assert not file.exists()


def test_only_the_newest_base_is_kept(folder: Path, base: Flat) -> None:
    answer("train", message(base), folder)
    answer("train", message(base + 1), folder)
    [file] = (folder / "state").glob("base-*.safetensors")
    assert array_sha256(read_arrays(file)["shared"]) == array_sha256(base + 1)


def test_base_that_is_not_what_it_says_is_refused(folder: Path, base: Flat) -> None:
    parcel = message(base)
    lying = replace(parcel, config=parcel.config | {"base_sha256": "0" * 64})
    assert answer("train", lying, folder).config["error"] == "bad-input"


def test_base_name_cannot_leave_the_state_folder(folder: Path, base: Flat) -> None:
    hello = Parcel({}, {"base_sha256": "../../etc/passwd"}, {})
    assert answer("hello", hello, folder).config["error"] == "bad-input"


def test_finish_answers_with_metrics_only(folder: Path, base: Flat) -> None:
    answer("train", message(base), folder)
    reply = answer("finish", message(base, with_base=False), folder)
    assert reply.arrays == {}
    assert reply.config == {"site": "ward"}
    assert all(name.startswith("val_") for name in reply.metrics)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "site.yaml").unlink(), "bad-data"),
        (lambda folder: (folder / "rows.parquet").write_text("no"), "bad-data"),
        (lambda folder: (folder.parents[1] / "cache" / "manifest.json").unlink(), "bad-cache"),
    ],
)
def test_only_the_code_of_an_error_leaves(folder: Path, base: Flat, spoil, code: str) -> None:
    spoil(folder)
    reply = answer("train", message(base), folder)
    assert reply == Parcel({}, {"site": "ward", "error": code}, {})
    log = (folder / "reports" / "site.log").read_text()
    assert f"train: {code}: " in log
    assert str(folder.parents[1]) in log


@pytest.mark.parametrize(
    ("config", "code"),
    [({"plan": "{}"}, "bad-plan"), ({"round": "one"}, "internal"), ({"wire": "fp8"}, "internal")],
)
def test_malformed_broadcast(folder: Path, base: Flat, config, code: str) -> None:
    parcel = message(base)
    reply = answer("train", replace(parcel, config=parcel.config | config), folder)
    assert reply.config == {"site": "ward", "error": code}


def test_unknown_action_is_an_internal_error_with_its_traceback_at_home(folder: Path) -> None:
    reply = answer("delete", Parcel({}, {}, {}), folder)
    assert reply.config == {"site": "ward", "error": "internal"}
    assert "KeyError: 'delete'" in (folder / "reports" / "site.log").read_text()


def test_what_the_guard_refuses_does_not_leave(folder: Path, base: Flat, monkeypatch) -> None:
    site = module.open_once(folder)
    train = site.train
    monkeypatch.setattr(
        site, "train", lambda *args: replace(train(*args), metrics={"patient_name": 1.0})
    )
    reply = answer("train", message(base), folder)
    assert (reply.arrays, reply.metrics) == ({}, {})
    assert reply.config == {"site": "ward", "error": "refused"}


def test_log_that_cannot_be_written_does_not_silence_the_answer(folder: Path) -> None:
    (folder / "reports").write_text("a file where the folder should be")
    assert answer("delete", Parcel({}, {}, {}), folder).config["error"] == "internal"


def test_sites_are_numbered_by_name(tmp_path: Path) -> None:
    for name in ("ward", "icu", "rural"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.yaml").touch()
    (tmp_path / "no-site").mkdir()
    names = [site_folder(tmp_path, number).name for number in range(3)]
    assert names == ["icu", "rural", "ward"]
    with pytest.raises(InputError, match="found 3 site folders; allowed: at least 4"):
        site_folder(tmp_path, 3)
