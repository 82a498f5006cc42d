"""From archive to site folders, baselines and tests, without a federation."""

import io
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from client.data.batches import load_site_data
from client.data.cache import open_cache
from client.settings import open_site_folder
from client.site import Site, pick_device
from common.checkpoint import read_arrays, write_arrays
from common.errors import CacheError, ConsiliumError, DataError, InputError, PartitionError
from common.findings import FINDINGS
from common.model import build_model
from common.parameters import flatten, shared_layout
from common.plan import Plan
from simulations.experiment import baselines
from simulations.experiment.baselines import (
    baseline_folder,
    train_alone,
    train_baselines,
    write_baselines,
)
from simulations.experiment.prepare import (
    MASK_HOSPITAL,
    Prepared,
    load_prepared,
    prepare,
    write_site,
)
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import small_plan

SIMULATION = {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}, "mask_test": 3}


def plan_of(**more: object) -> Plan:
    return small_plan(**{"simulation": SIMULATION, "federation": {"rounds": 2}} | more)


def mask_set(folder: Path, count: int, prefix: str = "m") -> Path:
    """A folder with images/ and masks/, as a hospital that only outlines lungs has it."""
    generator = np.random.default_rng(1)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (32, 32), dtype=np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 6:14] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{prefix}{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{prefix}{number}.png")
    return folder


def run_prepare(
    plan: Plan, run: Path, data: Path | None, masks: Path | None = None
) -> tuple[Prepared, str]:
    run.mkdir(exist_ok=True)
    output = io.StringIO()
    prepared = prepare(plan, run, data, masks, False, Console(file=output, width=120))
    return prepared, output.getvalue()


def test_hospitals_share_a_cache_and_no_patient(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    prepared, printed = run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12))
    assert prepared.sites == ("site-1", "site-2")
    assert "global test" in printed
    cache = open_cache(prepared.cache_folder)
    patient = cache.index.set_index("image")["patient"]
    seen = {name: set(patient[Site.open(prepared.folder(name)).data.table["image"]])
            for name in prepared.sites}  # fmt: skip
    test = set(patient[prepared.findings_test()["image"]])
    assert not seen["site-1"] & seen["site-2"]
    assert not (seen["site-1"] | seen["site-2"]) & test
    assert load_prepared(tmp_path / "run") == prepared
    assert len(prepared.lungs_test()) == 0


def test_a_mask_set_becomes_a_hospital_of_its_own(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    masks = mask_set(tmp_path / "lungs", 13)
    prepared, _ = run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12), masks)
    assert prepared.sites == (MASK_HOSPITAL, "site-1", "site-2")
    own = open_site_folder(prepared.folder(MASK_HOSPITAL))
    assert own.settings.annotates == ()
    held_back = set(prepared.lungs_test()["image"])
    assert len(held_back) == 3
    assert len(own.rows()) == 10
    assert not held_back & set(own.rows()["image"])
    assert (own.rows()["split"] == "val").sum() == 2
    site = Site.open(prepared.folder(MASK_HOSPITAL))
    assert site.covers == ("lungs",)
    assert not site.data.known.any()


def test_masks_of_the_archives_own_images_stay_with_their_hospital(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    prepared, _ = run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12, masks=True))
    assert MASK_HOSPITAL not in prepared.sites
    assert set(prepared.lungs_test()["image"]) == set(prepared.findings_test()["image"])
    assert "lungs" in Site.open(prepared.folder("site-1")).covers


def test_without_data_a_phantom_is_made(tmp_path: Path) -> None:
    simulation = SIMULATION | {"phantom_images": 60, "partition": {"scheme": "hospitals"}}
    prepared, printed = run_prepare(plan_of(simulation=simulation), tmp_path / "run", None)
    assert prepared.synthetic
    assert "making a phantom archive of 60 radiographs" in printed
    assert len(prepared.sites) == 2
    assert len(prepared.lungs_test()) > 0


def test_an_interrupted_preparation_starts_its_sites_again(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    archive = nih_archive(patients=12)
    first, _ = run_prepare(plan_of(), tmp_path / "run", archive)
    (tmp_path / "run" / "prepared.json").unlink()  # as if killed before the last line
    (first.folder("site-1") / "site.yaml").unlink()
    assert load_prepared(tmp_path / "run") is None
    again, _ = run_prepare(plan_of(), tmp_path / "run", archive)
    assert again == first
    Site.open(again.folder("site-1"))


def test_too_few_masks_to_hold_some_back(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    masks = mask_set(tmp_path / "lungs", 4)
    with pytest.raises(PartitionError, match=r"'simulation.mask_test': found 3 of 4 images"):
        run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12), masks)


def test_a_mask_hospital_with_one_image_per_patient_is_cut_as_ever(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    """Published numbers depend on this order."""
    masks = mask_set(tmp_path / "lungs", 13)
    plan = plan_of()
    prepared, _ = run_prepare(plan, tmp_path / "run", nih_archive(patients=12), masks)
    images = pd.Series([f"m{number}.png" for number in range(13)]).sort_values()
    shuffled = list(images.iloc[np.random.default_rng(plan.seed).permutation(13)])
    assert list(prepared.lungs_test()["image"]) == shuffled[:3]
    rows = open_site_folder(prepared.folder(MASK_HOSPITAL)).rows()
    assert list(rows["image"]) == shuffled[3:]
    assert list(rows["split"]) == ["val"] * 2 + ["train"] * 8


def test_masks_are_shared_by_patient_and_not_with_the_findings_test(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    """The masks' archive has two images a patient; two of them are in the findings test."""
    archive = nih_archive(patients=12)
    masks = nih_archive("other", patients=10, masks=True, layout="images", lists=False)
    table = masks / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("\n0", "\nm0"))
    for file in [*(masks / "images").iterdir(), *(masks / "masks").iterdir()]:
        file.rename(file.with_name("m" + file.name))
    prepared, printed = run_prepare(plan_of(), tmp_path / "run", archive, masks)
    assert "left out 4 masks of patients in the findings test" in printed
    patient = open_cache(prepared.cache_folder).index.set_index("image")["patient"]
    rows = open_site_folder(prepared.folder(MASK_HOSPITAL)).rows()
    groups = [rows.loc[rows["split"] == split, "image"] for split in ("train", "val")]
    groups.append(prepared.lungs_test()["image"])
    train, val, test = (set(patient[group]) for group in groups)
    assert not train & (val | test)
    assert not val & test
    assert not (train | val | test) & set(prepared.findings_test()["patient"])
    assert [len(group) for group in groups] == [10, 2, 4]


def test_remarks_of_tables_and_pixels_are_kept(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    """One image cut short and one black: the first is left out, the second is told."""
    archive, run = nih_archive(patients=12), tmp_path / "run"
    victim = next(archive.rglob("00000003_000.png"))
    victim.write_bytes(victim.read_bytes()[:200])
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(next(archive.rglob("00000004_000.png")))
    with pytest.raises(DataError, match="00000003_000"):
        run_prepare(plan_of(), run, archive)
    assert load_prepared(run) is None
    output = io.StringIO()
    console = Console(file=output, width=120)
    prepared = prepare(plan_of(), run, archive, None, True, console)
    told = "\n".join(prepared.remarks)
    assert "1 left out by --skip-bad, unreadable image: 00000003_000.png (" in told
    assert "00000004_000.png" in told
    assert "nothing teaches the lungs head" in told
    assert load_prepared(run) == prepared
    assert told.splitlines()[0] not in output.getvalue()  # printed by the command, at its end


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("{}", "key 'sites'"),
        ('{"sites": "a", "data": "b", "synthetic": true, "remarks": []}', "key 'sites'"),
        ("[1]", "what was prepared"),
        ("", "JSON"),
    ],
)
def test_a_damaged_record_of_what_was_prepared(tmp_path: Path, damaged: str, message: str) -> None:
    (tmp_path / "prepared.json").write_text(damaged)
    with pytest.raises(InputError, match=message) as caught:
        load_prepared(tmp_path)
    assert "prepared.json" in str(caught.value)


def test_what_cannot_be_cut_is_refused_before_decoding(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    plan = plan_of(simulation=SIMULATION | {"sites": 50})
    with pytest.raises(PartitionError):
        run_prepare(plan, tmp_path / "run", nih_archive(patients=12))
    assert not (tmp_path / "run" / "cache").exists()


def test_a_finished_cache_of_other_data_is_refused(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12))
    with pytest.raises(CacheError, match="a cache of another table"):
        run_prepare(plan_of(), tmp_path / "run", nih_archive("second", patients=15))


def test_a_site_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a writable file"):
        write_site(tmp_path / "file" / "site", {"name": "a"}, pd.DataFrame({"image": ["b"]}))


def test_the_same_name_in_both_archives_is_refused(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    masks = mask_set(tmp_path / "lungs", 8, prefix="0000000")
    for part in ("images", "masks"):
        (masks / part / "00000001.png").rename(masks / part / "00000001_000.png")
    with pytest.raises(DataError, match=r"'00000001_000\.png': found 1 names that the archive has"):
        run_prepare(plan_of(), tmp_path / "run", nih_archive(patients=12), masks)


def test_pooled_data_are_annotated_as_each_hospital_does(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    partition = {"scheme": "iid", "val_fraction": 0.2, "findings_per_site": [7, 8]}
    plan = plan_of(simulation=SIMULATION | {"partition": partition})
    prepared, _ = run_prepare(plan, tmp_path / "run", nih_archive(patients=12))
    folders = write_baselines(prepared, plan)
    assert [folder.name for folder in folders] == ["pooled", "site-1", "site-2"]
    cpu = pick_device("cpu")
    cache = open_cache(prepared.cache_folder)
    pooled = load_site_data(open_site_folder(folders[0]), cache, cpu)
    for name in prepared.sites:
        own = load_site_data(open_site_folder(prepared.folder(name)), cache, cpu)
        rows = pooled.table["image"].isin(own.table["image"]).to_numpy()
        assert (pooled.known[rows] == own.known).all()
        annotates = open_site_folder(prepared.folder(name)).settings.annotates
        assert 7 <= len(annotates) <= 8 < len(FINDINGS)


def test_a_hospital_alone_is_a_federation_of_one(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    plan = plan_of()
    prepared, _ = run_prepare(plan, tmp_path / "run", nih_archive(patients=12, masks=True))
    write_baselines(prepared, plan)
    folder = baseline_folder(prepared, "site-1")
    assert train_alone(plan.to_json(), folder, 1) == "site-1"
    model = build_model(plan)
    shared = flatten(model, shared_layout(model, plan.heads))
    by_hand = Site.open(prepared.folder("site-1"))
    for number in (1, 2):
        shared = shared + by_hand.train(plan, number, shared).delta
    alone = read_arrays(folder / "alone.safetensors")
    assert (alone["shared"] == shared).all()
    assert int(alone["round"][0]) == 2
    assert Site.open(folder).final_model(plan).exists()


def test_an_interrupted_baseline_goes_on(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    plan = plan_of()
    prepared, _ = run_prepare(plan, tmp_path / "run", nih_archive(patients=12, masks=True))
    write_baselines(prepared, plan)
    folder = baseline_folder(prepared, "site-1")
    train_alone(plan.to_json(), folder, 1)
    expected = read_arrays(folder / "alone.safetensors")["shared"]
    # Back to the state after round 1, as a kill in round 2 leaves it.
    site = Site.open(folder)
    site.final_model(plan).unlink()
    model = build_model(plan)
    start = flatten(model, shared_layout(model, plan.heads))
    after_first = start + site.train(plan, 1, start).delta
    write_arrays(folder / "alone.safetensors", {"shared": after_first, "round": np.array([1])})
    train_alone(plan.to_json(), folder, 1)
    assert (read_arrays(folder / "alone.safetensors")["shared"] == expected).all()


def test_baselines_run_side_by_side_and_report(
    tmp_path: Path, nih_archive: ArchiveFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(evaluation={"baselines": ["local"]}, federation={"rounds": 1})
    prepared, _ = run_prepare(plan, tmp_path / "run", nih_archive(patients=12))
    done: list[str] = []
    train_baselines(plan, write_baselines(prepared, plan), done.append)
    assert sorted(done) == ["site-1", "site-2"]
    known = json.loads((tmp_path / "run" / "prepared.json").read_text())
    assert known["synthetic"] is False
    assert pd.read_parquet(baseline_folder(prepared, "site-1") / "rows.parquet").shape[0] > 0

    # What is trained is done at once; what lost its model is trained again, and it alone.
    pools: list[int] = []

    def pool(count: int) -> ExitStack:
        pools.append(count)
        raise ConsiliumError("no process")

    monkeypatch.setattr(baselines, "worker_pool", pool)
    done.clear()
    assert train_baselines(plan, write_baselines(prepared, plan), done.append) == {}
    assert (done, pools) == (["site-1", "site-2"], [])
    Site.open(baseline_folder(prepared, "site-2")).final_model(plan).unlink()
    with pytest.raises(ConsiliumError, match="no process"):
        train_baselines(plan, write_baselines(prepared, plan), done.append)
    assert (done[2:], pools) == (["site-1"], [1])
