"""Nobody is two patients: spellings become one, or are refused."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.tables.identity import (
    contradictions,
    patient_column,
    patient_id,
    patient_of_name,
)

IDENTIFIERS = st.text(
    alphabet=st.one_of(
        st.sampled_from("aAbBzZ019 -_./ßﬀµÅÄä"), st.characters(categories=["L", "N", "P", "Zs"])
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("1", "1"), ("00000001", "1"), ("0", "0"), ("000", "0"), ("1.0", "1"), ("012.000", "12"),
        (" 7 ", "7"), ("7\n", "7"), ("123456789012345.0", "123456789012345"),
        ("12345678901234567890", "12345678901234567890"), ("anon-7f", "anon-7f"),
        (" P-007 ", "P-007"), ("1A", "1A"), ("1-10-500", "1-10-500"), ("7e1234ab", "7e1234ab"),
        ("11e4", "11e4"), ("1e123456", "1e123456"), ("1.2.840.113619", "1.2.840.113619"),
        ("3_2", "3_2"), ("Müller", "Müller"), ("Mu\u0308ller", "Müller"), ("患者一", "患者一"),
    ],
)  # fmt: skip
def test_a_spelling_that_is_read(text: str, identifier: str) -> None:
    assert patient_id(text) == identifier


@pytest.mark.parametrize(
    "text",
    ["", " ", "1.5", "1.", ".0", "1,0", "1,001", "1.001.234", "1 001", "1\u2009001", "1'001",
     "+1", "-1", "1e5", "1E05", "1.1E+05", "1,1e5", "11e+4", "2E-3", "1e+005", "\u0661", "\uff11",
     "\u0967", "²", "Ⅳ", "A①", "1\xa0", "\xa01", "1\u200b", "A\u200d1", "\ufeff1", "1\u2060",
     "A\xad1", "A\ufe0f", "A\xa0B", "A\u3000B", "A\tB", "A\nB", "A\x001", "\u2800", "x\udce9",
     "nan", "NaN", "NULL", "N/A", "None", "inf", "unknown", "ANONYMOUS", "?", "-", "#1", "'1",
     '="00000001"', "#N/A", "#REF!", "<NA>", "1234567890123456.0"],
)  # fmt: skip
def test_a_spelling_that_is_refused(text: str) -> None:
    assert patient_id(text) is None
    (problem,) = patient_column("f", [7], [text]).problems
    assert (problem.at, problem.found) == ("row 7, column 'Patient ID'", repr(text))
    assert problem.next_step.startswith("Fill it in." if not text.strip() else "Write it out;")


@pytest.mark.parametrize(
    ("stem", "patient"),
    [("00000003_001", "3"), ("00030805_000", "30805"), ("00000000_000", "0"), ("0000003_001", None),
     ("00000003_01", None), ("00000003_001 (1)", None), ("٠٠٠٠٠٠٠٣_٠٠١", None), ("x", None)],
)  # fmt: skip
def test_the_number_in_an_nih_name(stem: str, patient: str | None) -> None:
    assert patient_of_name(stem) == patient


@pytest.mark.parametrize(
    ("first", "second"),
    [("A1", "a1"), ("A1", "A 1"), ("P-1", "P-01"), ("P-1", "P1"), ("P_1", "P-001"), ("x.1", "x#1"),
     ("S1-P01", "S01-P1"), ("straße", "STRASSE"), ("ﬁn", "fin"), ("Ａb", "AB"), ("a  b", "a b"),
     ("7f-0a", "7F-0A"), ("11e4", "110000"), ("'A1", "A1"), ("1-2", "01/2"), ("ılk", "ILK"),
     ("A1", "A01"), ("7f-0a", "07f-0a"), ("#7f", "7f")],
)  # fmt: skip
def test_two_spellings_in_one_column(first: str, second: str) -> None:
    column = patient_column("f", [2, 3, 4, 5], [first, "other-x", second, second])
    (problem,) = column.problems
    assert problem.at == "row 4, column 'Patient ID'"
    assert problem.found == f"{second!r}, but {first!r} in row 2"


def test_a_later_spelling_is_compared_with_all_before() -> None:
    # a01b2 and a1b02 are two hexadecimal identifiers; A1B02 is the second of them again.
    column = patient_column("f", [2, 3, 4], ["a01b2", "a1b02", "A1B02"])
    assert [problem.found for problem in column.problems] == ["'A1B02', but 'a1b02' in row 3"]


@pytest.mark.parametrize(
    "cells",
    [["anon-7f", "anon-7e"], ["AB", "A-B"], ["1-23", "12-3"], ["a01b2", "a1b02"], ["11e4", "12e4"],
     ["3_2", "3_3"], ["anon-a0", "anon-a00", "anon-7f"], ["1.2.840.1", "1.2.840.2"],
     ["P1", "P10"], ["Ä", "A"]],
)  # fmt: skip
def test_two_patients_remain_two(cells: list[str]) -> None:
    column = patient_column("f", list(range(len(cells))), cells)
    assert (column.ids, column.problems, column.remarks) == (cells, [], [])


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["anon-a0", "anon-a00", "anon-7f", "anon-07f"], "'anon-07f', but 'anon-7f' in row 4"),
        (["A1", "A2", "A3", "A4", "A5A", "A01"], "'A01', but 'A1' in row 2"),
        (["A1", "A2", "x7f", "A01"], "'A01', but 'A1' in row 2"),
    ],
)
def test_zeros_within_a_hash_are_no_padding(cells: list[str], found: str) -> None:
    column = patient_column("f", list(range(2, 2 + len(cells))), cells)
    assert [problem.found for problem in column.problems] == [found]


@pytest.mark.parametrize("odd", ["1_0", "11e4", "1-0", "1/0"])
def test_in_a_column_of_numbers_digits_are_numbers(odd: str) -> None:
    column = patient_column("f", [2, 3, 4], ["1", odd, "2"])
    (problem,) = column.problems
    assert (problem.at, problem.found) == ("row 3, column 'Patient ID'", repr(odd))


def test_numbers_and_others_in_one_column_are_remarked() -> None:
    column = patient_column("table.csv", [2, 3, 4], ["1", "1A", "01.0"])
    assert (column.ids, column.problems) == (["1", "1A", "1"], [])
    assert column.remarks == [
        "table.csv: 1 patients are numbers and 1 are not (1A): nobody may be under both",
        "table.csv: 1 patient numbers such as 12.0 read as whole numbers",
    ]


def test_every_refused_cell_has_its_row() -> None:
    column = patient_column("f", [2, 4, 9], ["1,001", "5", "1,001"])
    assert [p.at.partition(",")[0] for p in column.problems] == ["row 2", "row 9"]
    assert column.ids == ["", "5", ""]


def test_a_patient_that_contradicts_the_file_name() -> None:
    stems = ["00000001_000", "00000002_000", "x", "00000003_000"]
    (problem,) = contradictions("f", [2, 3, 4, 6], stems, ["1", "3", "9", "3"])
    assert str(problem) == (
        "f: row 3, column 'Patient ID': found '3' for the image 00000002_000; allowed: '2', the "
        "number in the name. Mend the row, or rename images whose numbers are not the patients'."
    )
    first, *rows = contradictions("f", [2, 3, 4, 6], stems, ["2", "3", "9", "3"])
    assert first.at == "column 'Patient ID'"
    assert first.found.startswith("2 of 4 rows whose patient is not the one of the file name")
    assert [row.at.partition(",")[0] for row in rows] == ["row 2", "row 3"]


def test_a_number_in_the_names_keeps_its_patient() -> None:
    stems = ["00000001_000", "00000001_001", "00000002_000"]
    assert contradictions("f", [2, 3, 4], stems, ["anon-a", "anon-a", "anon-b"]) == []
    (problem,) = contradictions("f", [2, 3, 4], stems, ["anon-a", "anon-b", "anon-b"])
    assert problem.at == "row 3, column 'Patient ID'"
    assert (problem.found, problem.allowed) == (
        "'anon-b' for the image 00000001_001", "'anon-a', as in the rows before"
    )  # fmt: skip


@settings(deadline=None)  # other work on the machine is no fault
@given(st.text(max_size=12))
def test_a_read_spelling_is_final(text: str) -> None:
    identifier = patient_id(text)
    if identifier is not None:
        assert patient_id(identifier) == identifier
        assert identifier.strip() == identifier != ""
        assert unicodedata.is_normalized("NFC", identifier)


@settings(deadline=None)  # other work on the machine is no fault
@given(st.integers(0, 10**14), st.integers(0, 9), st.integers(0, 3))
def test_a_number_is_one_patient_however_it_is_padded(number: int, zeros: int, after: int) -> None:
    text = "0" * zeros + str(number) + ("." + "0" * after if after else "")
    assert patient_id(text) == str(number)


@settings(deadline=None)  # other work on the machine is no fault
@given(
    IDENTIFIERS,
    st.sampled_from(
        [
            str.upper,
            str.lower,
            str.casefold,
            lambda text: f" {text}\t",
            lambda text: text.replace(" ", ""),
            lambda text: text.replace("-", "_"),
            lambda text: re.sub("(?<![0-9])(?=[0-9])", "0", text),
            lambda text: f"{text}\u200b",
            lambda text: unicodedata.normalize("NFD", text),
            lambda text: unicodedata.normalize("NFKC", text),
        ]
    ),
)
def test_another_spelling_is_the_same_patient_or_is_refused(text: str, spell: object) -> None:
    assert callable(spell)
    column = patient_column("f", [2, 3, 4], [text, "somebody-else", spell(text)])
    assert column.ids[0] == column.ids[2] or column.problems
