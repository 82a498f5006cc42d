"""Each request that cannot be met gives one clear error."""

from pathlib import Path

import pytest

from common.errors import PartitionError
from common.sections import PartitionPlan
from simulations.partition import partition, read_groups
from tests.unit.simulations.partition_tables import hand_table, make_table

PA_ONLY = {str(number): "PP" for number in range(20)}


def refusal(table: object, spec: PartitionPlan, sites: int, **more: object) -> PartitionError:
    with pytest.raises(PartitionError) as caught:
        partition(table, spec, sites, 0, **more)  # type: ignore[arg-type]
    assert all(problem.next_step.endswith(".") for problem in caught.value.problems)
    return caught.value


def test_more_sites_than_patients() -> None:
    error = refusal(hand_table({"1": "P", "2": "P"}), PartitionPlan(scheme="iid"), 3)
    assert str(error) == (
        "partition: key 'simulation.sites': found 3; allowed: at most 2, the patients to deal. "
        "Ask for fewer sites, or use a larger archive."
    )


def test_a_kind_without_patients() -> None:
    error = refusal(hand_table(PA_ONLY), PartitionPlan(quantity_ratio=2.0), 3)
    assert len(error.problems) == 2
    assert "key 'simulation.partition.case_mix'" in str(error)
    assert (
        "0 patients left for the hospital 'icu' (more than half of the images AP), "
        "the test set aside" in str(error)
    )


def test_more_sites_than_kinds() -> None:
    error = refusal(make_table(), PartitionPlan(), 6)
    assert "found 6; allowed: at most 5 without case_mix (outpatient, ward, icu" in str(error)


def test_case_mix_of_another_length() -> None:
    error = refusal(make_table(), PartitionPlan(case_mix=("ward", "icu")), 3)
    assert "case_mix': found 2 kinds; allowed: 3, one a site" in str(error)


def test_all_mistakes_at_once() -> None:
    spec = PartitionPlan(
        scheme="iid", label_fraction=(1.0,), findings_per_site=(1, 4), test_fraction=0.0
    )
    error = refusal(hand_table({"1": "P"}), spec, 2)
    keys = [problem.at.removeprefix("key 'simulation.").rstrip("'") for problem in error.problems]
    assert keys == [
        "sites",
        "partition.test_fraction",
        "partition.label_fraction",
        "partition.findings_per_site",
    ]


def test_label_fraction_with_another_number_of_entries() -> None:
    error = refusal(make_table(), PartitionPlan(scheme="iid", label_fraction=(1.0, 0.5)), 3)
    assert "label_fraction': found 2 numbers; allowed: 3, one a site" in str(error)


def test_findings_that_nobody_would_annotate() -> None:
    error = refusal(make_table(), PartitionPlan(scheme="iid", findings_per_site=(2, 4)), 3)
    assert "found [2, 4], so that 3 sites annotate at most 12 findings" in str(error)
    assert "allowed: an upper number of at least 5, to cover all 14" in str(error)


def test_no_test_patients() -> None:
    spec = PartitionPlan(scheme="iid", test_fraction=0.0)
    error = refusal(make_table(official_test=False), spec, 2)
    assert "test_fraction': found 0.0: no test patients" in str(error)
    assert partition(make_table(), spec, 2, 0).test["patient"].nunique() > 0  # the official list


def test_a_site_without_a_patient_to_train_on() -> None:
    table = hand_table({"1": "P", "2": "P", "3": "P"})
    table["split"] = ["train_val", "train_val", "test"]
    error = refusal(table, PartitionPlan(scheme="iid"), 2)
    assert "found 1 patients left for the hospital 'site-1'" in str(error)
    assert "allowed: at least 2, one to train and one to validate" in str(error)
    parts = partition(table, PartitionPlan(scheme="iid", val_fraction=0.0), 2, 0)
    assert [len(frame) for frame in parts.sites.values()] == [1, 1]


def test_a_test_that_leaves_nobody_to_train_on() -> None:
    table = hand_table({"1": "P", "2": "P"})
    error = refusal(table, PartitionPlan(scheme="iid", val_fraction=0.0), 2)
    assert "found 0 patients left for the hospital 'site-2', the test set aside" in str(error)
    assert "allowed: at least 1. " in str(error)


@pytest.mark.parametrize("scheme", ["iid", "case-mix"])
def test_a_quantity_ratio_that_empties_a_site(scheme: str) -> None:
    spec = PartitionPlan(scheme=scheme, quantity_ratio=1e6)  # type: ignore[arg-type]
    error = refusal(make_table(), spec, 3)
    assert "quantity_ratio': found 0 patients left for the hospital" in str(error)
    assert "Lower quantity_ratio" in str(error)


def test_an_alpha_that_empties_a_site() -> None:
    error = refusal(make_table(), PartitionPlan(scheme="dirichlet", alpha=1e-3), 20)
    assert "partition.alpha': found" in str(error)
    assert "Raise alpha" in str(error)


def test_a_patient_on_both_sides_of_the_official_list() -> None:
    table = hand_table({"1": "PP", "2": "PP", "3": "PP"})
    table["split"] = ["train_val", "test"] + ["train_val"] * 4
    error = refusal(table, PartitionPlan(scheme="iid"), 1)
    assert "1 patients inside and outside the test list (1 is one)" in str(error)


def test_hospitals_without_a_list() -> None:
    error = refusal(make_table(), PartitionPlan(scheme="hospitals"), 2)
    assert "scheme': found hospitals, without a list of them" in str(error)


def test_hospitals_with_a_patient_missing() -> None:
    table = hand_table(PA_ONLY)
    error = refusal(table, PartitionPlan(scheme="hospitals"), 1, groups={"0": "north"})
    assert "found 19 patients without a hospital (1, 10, 11, 12, 13, ...)" in str(error)


def test_another_number_of_hospitals() -> None:
    table = hand_table(PA_ONLY)
    groups = {patient: "north" if patient < "15" else "south" for patient in PA_ONLY}
    error = refusal(table, PartitionPlan(scheme="hospitals"), 3, groups=groups)
    assert "found 3; allowed: 2, the hospitals of the archive: north, south" in str(error)
    assert "Set sites to 2." in str(error)


def test_a_hospital_that_is_no_folder_name() -> None:
    groups = dict.fromkeys(PA_ONLY, "../north")
    error = refusal(hand_table(PA_ONLY), PartitionPlan(scheme="hospitals"), 1, groups=groups)
    assert "found the hospital '../north'; allowed: a folder name" in str(error)


def test_read_groups(tmp_path: Path) -> None:
    path = tmp_path / "hospitals.csv"
    text = "\ufeffPatient ID,Hospital\r\n00000012,north\r\n2, south \r\nA07,south\r\n2,south\r\n"
    path.write_text(text, encoding="utf-8")
    assert read_groups(path) == {"12": "north", "2": "south", "A07": "south"}


def test_read_groups_tells_every_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "hospitals.csv"
    path.write_text("Patient ID,Hospital\n1,north\n1,south\n,north\n3,a/b\n")
    with pytest.raises(PartitionError) as caught:
        read_groups(path)
    assert [problem.at for problem in caught.value.problems] == ["row 3", "row 4", "row 5"]
    assert "row 3: found patient 1 in north and in south" in str(caught.value)
    assert "row 4: found no patient" in str(caught.value)
    assert "row 5: found the hospital 'a/b'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"Patient,Hospital\n1,north\n", "header: found the columns Patient, Hospital"),
        (b"", "No columns to parse from file"),
        (b"Patient ID,Hospital\n\xff\xfe,north\n", "codec can't decode"),
        (None, "No such file"),
    ],
)
def test_read_groups_refuses_other_files(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "hospitals.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PartitionError) as caught:
        read_groups(path)
    assert found in str(caught.value)
