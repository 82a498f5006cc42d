"""Every scheme deals out patients: properties that hold for all, then each scheme's own."""

from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.tables.lists import read_list
from client.data.tables.table import read_table
from common.errors import PartitionError
from common.findings import FINDINGS
from common.simulated import PartitionPlan
from simulations.partition import Partition, partition
from simulations.partition.patients import describe_patients, rarest_finding
from simulations.partition.schemes import fit_sizes
from tests.unit.simulations.partition.partition_tables import hand_table, make_table

SPECS = {
    "iid": PartitionPlan(scheme="iid"),
    "iid, sizes": PartitionPlan(scheme="iid", quantity_ratio=4.0),
    "case-mix": PartitionPlan(),
    "case-mix, rural": PartitionPlan(case_mix=("rural", "outpatient", "icu")),
    "case-mix, twice": PartitionPlan(case_mix=("ward", "icu", "ward"), quantity_ratio=2.0),
    "dirichlet": PartitionPlan(scheme="dirichlet", alpha=2.0, val_fraction=0.0),
    "dirichlet, sizes": PartitionPlan(scheme="dirichlet", alpha=1.0, quantity_ratio=3.0),
    "hospitals": PartitionPlan(scheme="hospitals", quantity_ratio=2.0),
    "partial labels": PartitionPlan(
        scheme="iid", findings_per_site=(2, 6), label_fraction=(1.0, 0.3, 0.0)
    ),
}


def cut(table: pd.DataFrame, spec: PartitionPlan, seed: int = 0) -> Partition:
    """Three hospitals, with a list of hospitals at hand for the scheme that needs one."""
    hospitals = ["north", "south", "west"]
    groups = {patient: hospitals[int(patient) % 3] for patient in table["patient"]}
    return partition(table, spec, 3, seed, groups)


def places(parts: Partition) -> dict[str, set[str]]:
    """Place -> patients."""
    frames = {**parts.sites, "(test)": parts.test, "(left out)": parts.left_out}
    return {name: set(frame["patient"]) for name, frame in frames.items()}


def same(one: Partition, other: Partition) -> bool:
    frames = zip(
        [*one.sites.values(), one.test, one.left_out],
        [*other.sites.values(), other.test, other.left_out],
        strict=True,
    )
    return one.annotates == other.annotates and all(a.equals(b) for a, b in frames)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(SPECS)),
    patients=st.integers(180, 320),
    seed=st.integers(0, 2**63 - 1),
    official=st.booleans(),
)
def test_every_patient_is_in_one_place_and_every_image_somewhere(
    name: str, patients: int, seed: int, official: bool
) -> None:
    table = make_table(patients, seed % 1000, official, unlabelled=0.1)
    try:
        parts = cut(table, SPECS[name], seed)
    except PartitionError:  # a draw that leaves a hospital empty is refused, not served
        assert "dirichlet" in name or "rural" in name
        return
    homes = places(parts)
    assert sum(len(members) for members in homes.values()) == table["patient"].nunique()
    assert set().union(*homes.values()) == set(table["patient"])
    dealt = [*parts.sites.values(), parts.test, parts.left_out]
    images = pd.concat([frame["image"] for frame in dealt])
    assert sorted(images) == sorted(table["image"])
    assert len(parts.test) > 0
    if official:
        assert set(parts.test["image"]) == set(table.loc[table["split"] == "test", "image"])
    for frame in parts.sites.values():
        assert frame.columns.tolist() == ["image", "patient", "split", "labelled"]
        splits = {split: set(rows["patient"]) for split, rows in frame.groupby("split")}
        assert splits["train"]
        assert ("val" in splits) == (SPECS[name].val_fraction > 0)
        assert not splits["train"] & splits.get("val", set())
        known = table.set_index("image")["labelled"].loc[frame["image"]].to_numpy()
        assert not (frame["labelled"].to_numpy() & ~known).any()
    assert set().union(*parts.annotates.values()) == set(FINDINGS)
    assert set(parts.test["site"]) <= {*parts.sites, ""}


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 50))
def test_the_seed_decides_and_the_row_order_does_not(name: str, seed: int) -> None:
    table = make_table()
    try:
        parts = cut(table, SPECS[name], seed)
    except PartitionError:
        return
    shuffled = table.sample(frac=1.0, random_state=seed, ignore_index=True)
    assert same(parts, cut(shuffled, SPECS[name], seed))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_another_seed_gives_other_hospitals(name: str) -> None:
    table = make_table()
    assert not same(cut(table, SPECS[name], 1), cut(table, SPECS[name], 2))


def test_case_mix_follows_views_and_age() -> None:
    views = {"1": "PP", "2": "P?", "3": "PPA", "4": "PA", "5": "PAA", "6": "AA", "7": "P", "8": "A"}
    views |= {"9": "P", "10": "AP", "11": "A"}
    ages = {"7": 17.0, "8": 3.0, "9": float("nan"), "10": 18.0}
    spec = PartitionPlan(
        case_mix=("outpatient", "ward", "icu", "paediatric"), val_fraction=0.0, test_fraction=0.01
    )
    homes = places(partition(hand_table(views, ages), spec, 4, seed=0))
    tested = homes["(test)"]
    assert len(tested) == 4  # one of each hospital
    assert homes["outpatient"] | tested >= {"1", "2", "9"}
    assert homes["ward"] | tested >= {"3", "4", "10"}
    assert homes["icu"] | tested >= {"5", "6", "11"}
    assert homes["paediatric"] | tested >= {"7", "8"}
    assert not homes["(left out)"]


def test_children_go_by_their_views_without_a_paediatric_hospital() -> None:
    table = hand_table({str(n): "PP" for n in range(6)}, {str(n): 5.0 for n in range(6)})
    parts = partition(table, PartitionPlan(case_mix=("outpatient",)), 1, seed=0)
    assert len(parts.sites["outpatient"]) + len(parts.test) == len(table)


def test_the_age_at_the_first_image_makes_a_child() -> None:
    table = hand_table({"1": "PP", "2": "PP"})
    table["age"] = np.array([np.nan, 17.5, 18.0, 12.0], dtype="float32")
    ages = describe_patients(table)["age"]
    assert ages.to_dict() == {"1": 17.5, "2": 18.0}


def test_a_kind_that_no_hospital_takes_is_left_out_and_told() -> None:
    table = make_table()
    parts = partition(table, PartitionPlan(), 2, seed=0)
    assert list(parts.sites) == ["outpatient", "ward"]
    assert set(parts.left_out["reason"]) == {"no hospital of the plan takes this kind of patient"}
    icu = describe_patients(table)["ap_share"] > 0.5
    assert icu[parts.left_out["patient"].unique()].all()
    assert (parts.test["site"] == "").any()  # the official test keeps its ICU patients


def test_a_repeated_kind_is_split_evenly() -> None:
    table = make_table(600)
    spec = PartitionPlan(case_mix=("outpatient", "ward", "outpatient", "icu"))
    sites = partition(table, spec, 4, seed=0).sites
    assert list(sites) == ["outpatient-1", "ward", "outpatient-2", "icu"]
    assert abs(len(sites["outpatient-1"]) - len(sites["outpatient-2"])) <= 5


def test_quantity_ratio_sets_the_sizes() -> None:
    table = make_table(3000, official_test=False)
    for scheme in ("iid", "dirichlet"):
        spec = PartitionPlan(scheme=scheme, quantity_ratio=8.0, alpha=1.0)
        sizes = [len(frame) for frame in partition(table, spec, 5, seed=3).sites.values()]
        assert max(sizes) / min(sizes) == pytest.approx(8.0, rel=0.1)
    parts = partition(table, PartitionPlan(quantity_ratio=8.0), 3, seed=3)
    sizes = [len(frame) for frame in parts.sites.values()]
    assert max(sizes) / min(sizes) == pytest.approx(8.0, rel=0.1)
    assert set(parts.left_out["reason"]) == {"left out to reach quantity_ratio"}


def test_a_ratio_of_one_and_a_single_site_are_equal_sizes() -> None:
    table = make_table()
    spec = PartitionPlan(scheme="iid", quantity_ratio=1.0)
    sizes = [len(frame) for frame in partition(table, spec, 3, seed=0).sites.values()]
    assert max(sizes) - min(sizes) <= 5
    assert list(partition(table, spec, 1, seed=0).sites) == ["site-1"]


def test_fit_sizes_keeps_rows_and_reaches_columns() -> None:
    draws = np.random.default_rng(0).dirichlet([0.3] * 3, size=6)
    images, sizes = np.array([10.0, 50, 200, 5, 30, 5]), np.array([0.1, 0.3, 0.6])
    fitted = fit_sizes(draws, images, sizes)
    assert fitted.sum(axis=1) == pytest.approx(1.0)
    assert images @ fitted / images.sum() == pytest.approx(sizes, rel=2e-3)


def test_small_alpha_skews_and_large_alpha_does_not() -> None:
    table = make_table(3000)

    def spread(alpha: float) -> float:
        sites = partition(table, PartitionPlan(scheme="dirichlet", alpha=alpha), 3, seed=0).sites
        present = table.set_index("image")["Hernia"]
        return float(np.ptp([(present[rows["image"]] == 1).mean() for rows in sites.values()]))

    assert spread(0.2) > 3 * spread(1000.0)


def test_the_rarest_finding_of_a_patient() -> None:
    table = hand_table({"1": "PP", "2": "P", "3": "P", "4": "PP", "5": "P"})
    table.loc[[0, 2, 4], "Effusion"] = 1
    table.loc[1, "Hernia"] = 1
    table.loc[6, "labelled"] = False
    rarest = rarest_finding(table, describe_patients(table))
    assert rarest.tolist() == ["Hernia", "Effusion", "No Finding", "Effusion", "unlabelled"]


def test_partial_labels_stay_within_the_numbers() -> None:
    for seed in range(8):
        annotates = partition(
            make_table(), PartitionPlan(scheme="iid", findings_per_site=(1, 5)), 3, seed
        ).annotates
        assert all(1 <= len(findings) <= 5 for findings in annotates.values())
        assert set().union(*annotates.values()) == set(FINDINGS)


def test_label_fraction_counts_training_patients() -> None:
    spec = PartitionPlan(scheme="iid", label_fraction=(1.0, 0.25, 0.0))
    table = make_table(600, unlabelled=0.1)
    known = table.set_index("image")["labelled"]
    for frame, fraction in zip(
        partition(table, spec, 3, 0).sites.values(), (1, 0.25, 0), strict=True
    ):
        holds = known[frame["image"]].to_numpy()
        train = (frame["split"] == "train").to_numpy()
        holders = frame.loc[train & holds, "patient"].nunique()
        kept = frame.loc[train & frame["labelled"], "patient"].nunique()
        assert kept == pytest.approx(fraction * holders, abs=0.51)
        assert (frame["labelled"].to_numpy() == holds)[~train].all()
        whole = frame[train & holds].groupby("patient")["labelled"].nunique()
        assert (whole == 1).all()


def test_hospitals_keeps_the_given_ones() -> None:
    table = make_table()
    parts = cut(table, PartitionPlan(scheme="hospitals"))
    assert list(parts.sites) == ["north", "south", "west"]
    assert all(int(patient) % 3 == 1 for patient in parts.sites["south"]["patient"])
    own = parts.test["patient"].astype(int) % 3
    assert (parts.test["site"] == own.map({0: "north", 1: "south", 2: "west"})).all()


@pytest.fixture(scope="module")
def nih(shared_dir: Path) -> pd.DataFrame:
    folder = shared_dir / "nih_metadata"
    table = read_table(folder / "Data_Entry_2017_v2020.csv.gz")
    official = table["image"].isin(read_list(folder / "test_list.txt"))
    return table.assign(split=np.where(official, "test", "train_val"))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_real_table_takes_less_than_ten_seconds(nih: pd.DataFrame, name: str) -> None:
    start = process_time()  # the work is single-threaded; a busy machine must not fail the test
    parts = cut(nih, SPECS[name])
    assert process_time() - start < 10.0
    homes = places(parts)
    assert sum(len(members) for members in homes.values()) == 30_805
    assert len(parts.test) == 25_596


def test_the_real_table_gives_the_known_groups(nih: pd.DataFrame) -> None:
    """Sizes of the patient groups of the official train_val list, counted independently."""
    sites = partition(nih, PartitionPlan(), 3, seed=0).sites
    counts = {name: (rows["patient"].nunique(), len(rows)) for name, rows in sites.items()}
    assert counts == {
        "outpatient": (20_136, 31_797),
        "ward": (3_970, 27_103),
        "icu": (3_902, 27_624),
    }
    rural = partition(nih, PartitionPlan(), 5, seed=0).sites["rural"]
    assert 1_900 <= len(rural) <= 2_000
