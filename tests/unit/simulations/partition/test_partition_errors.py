"""Each request that cannot be met gives one clear error."""

import time
from pathlib import Path

import pytest

from client.data.tables import read_table
from common.errors import PartitionError
from common.simulated import PartitionPlan
from simulations.partition import partition, read_groups
from tests.unit.simulations.partition.partition_tables import hand_table, make_table

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


def groups_error(folder: Path, text: str) -> list[str]:
    path = folder / "hospitals.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PartitionError) as caught:
        read_groups(path)
    assert all(problem.file == str(path) for problem in caught.value.problems)
    return [f"{p.at}: {p.found}; {p.allowed}. {p.next_step}" for p in caught.value.problems]


def test_patients_of_hospitals_are_spelled_as_in_the_table(tmp_path: Path) -> None:
    """The same person in the label table and in hospitals.csv, whatever program wrote them."""
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position"
    )
    spellings = ["00000001", "1", "1.0", " 1 ", "anon-7f", "Mu\u0308ller"]
    groups, table = tmp_path / "hospitals.csv", tmp_path / "table.csv"
    rows = [f"{n}.png,,0,{text},,," for n, text in enumerate(spellings)]
    table.write_text("\n".join([header, *rows]), encoding="utf-8")
    groups.write_text(
        "Patient ID,Hospital\n1.0,a\n01,a\nanon-7f,b\nM\u00fcller,b\n", encoding="utf-8"
    )
    assert read_groups(groups) == {"1": "a", "anon-7f": "b", "M\u00fcller": "b"}
    assert set(read_table(table)["patient"]) == set(read_groups(groups))


def test_read_groups_tells_every_bad_row(tmp_path: Path) -> None:
    found = groups_error(
        tmp_path, "Patient ID,Hospital\n1,north\n\n01.0,south\n,north\n3,a/b\n4,\n,south\n"
    )
    assert found[0].startswith("row 5, column 'Patient ID': ''; a number such as 12")
    assert found[1].startswith("row 8, column 'Patient ID': ''")
    assert found[2].startswith("row 6: the hospital 'a/b' (in this row); 1 to 64 of A-Z, a-z")
    assert found[3].startswith("row 7: no hospital (in this row)")
    assert found[4].startswith("row 4: patient 1 in north and in south; one hospital a patient")
    assert len(found) == 5


def test_a_hospital_that_cannot_be_a_folder_is_told_once(tmp_path: Path) -> None:
    rows = "".join(f"{n},{name}\n" for n, name in enumerate(["Nord", "St Mary's", "Köln", "Köln"]))
    found = groups_error(tmp_path, "Patient ID,Hospital\n" + rows)
    assert [text.partition(";")[0] for text in found] == [
        'row 3: the hospital "St Mary\'s" (in this row)',
        "row 4: the hospital 'Köln' (in 2 rows)",
    ]


def test_hospitals_that_only_case_tells_apart(tmp_path: Path) -> None:
    found = groups_error(tmp_path, "Patient ID,Hospital\n1,Nord\n2,west\n3,nord\n4,NORD\n")
    assert [text.partition(".")[0] for text in found] == [
        "row 4: the hospital 'nord' (in this row) beside 'Nord'; "
        "names that differ in more than case",
        "row 5: the hospital 'NORD' (in this row) beside 'Nord'; "
        "names that differ in more than case",
    ]


def test_patients_of_hospitals_in_two_spellings(tmp_path: Path) -> None:
    found = groups_error(tmp_path, "Patient ID,Hospital\nA1,north\n1.5,north\na1,south\n")
    assert found[0].startswith("row 3, column 'Patient ID': '1.5'; a number such as 12")
    assert found[1].startswith("row 4, column 'Patient ID': 'a1', but 'A1' in row 2; one spelling")


def test_many_hospitals_are_read_quickly(tmp_path: Path) -> None:
    """Swapped columns: every row is another hospital, and none may be compared with all."""
    path = tmp_path / "hospitals.csv"
    path.write_text("Patient ID,Hospital\n" + "".join(f"{n},h-{n}\n" for n in range(30_000)))
    start = time.process_time()
    assert len(read_groups(path)) == 30_000
    assert time.process_time() - start < 4.0


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"Patient,Hospital\n1,north\n", "header: found the columns Patient, Hospital; allowed: "),
        (b"Patient ID,Hospital,Hospital\n1,north,a\n", "Hospital, Hospital; allowed: the columns"),
        (b"Patient ID;Hospital\n1;north\n", "row 1: found cells separated by ';'"),
        (b"1,north\n2,south\n", "row 1: found no header, but '1,north'"),
        (b"Patient ID,Hospital\n", "found 0 rows, a header alone"),
        (b'Patient ID,Hospital\n1,north\n"2,north\n3,south\n', "row 3: found a quote that opens"),
        (b"", "found an empty file"),
        (
            b"Patient ID,Hospital\n\xff\xfe,north\n",
            "row 2: found the byte 0xff, which is not UTF-8",
        ),
        (None, "No such file"),
    ],
)
def test_read_groups_refuses_other_files(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "hospitals.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PartitionError) as caught:
        read_groups(path)
    assert len(caught.value.problems) == 1
    assert found in str(caught.value)


def test_a_column_that_nobody_asked_for_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "hospitals.csv"
    path.write_text(",Hospital,Note,Patient ID\n0,north,x,1\n1,south,,2\n")
    assert read_groups(path) == {"1": "north", "2": "south"}
