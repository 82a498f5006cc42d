"""The list of mutations fits the code, and every row of the leak list has one that its test kills.

`python -m tests.mutate` shows that they die; here is only what costs nothing to see.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.documents import ROOT
from tests.mutate import Mutation, mutations
from tests.test_documents import defined

MUTATIONS = mutations()  # raises when a text is not in its file exactly once


@dataclass(frozen=True)
class Row:
    """A row of the leak list: what could leak, and its tests as FILE or FILE::NAME."""

    leak: str
    tests: tuple[str, ...]


def rows() -> Iterator[Row]:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    table = text.split("\n## Leaks, one by one\n")[1].split("\n## ")[0]
    for line in re.findall(r"^\| (.*) \|$", table, flags=re.M)[1:]:
        leak, _, tests = line.split(" | ")
        file, named = "", []
        for own, function in re.findall(r"`(test_\w+\.py)?(::test_\w+)?`", tests):
            file = own or file
            named.append(file + function)
        yield Row(leak, tuple(named))


ROWS = list(rows())


def of(row: Row) -> list[Mutation]:
    return [each for each in MUTATIONS if each.row and row.leak.startswith(each.row)]


def test_the_leak_list_is_read() -> None:
    assert len(ROWS) > 15
    assert len({each.name for each in MUTATIONS}) == len(MUTATIONS) > 40


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_changes_something_and_names_tests_that_exist(mutation: Mutation) -> None:
    assert mutation.old != mutation.new
    for test in mutation.tests:
        file, _, function = test.partition("::")
        assert (ROOT / file).exists(), test
        if function:
            assert function.split("[")[0] in defined(ROOT / file), test


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_is_of_one_row_at_most(mutation: Mutation) -> None:
    found = [row.leak for row in ROWS if mutation.row and row.leak.startswith(mutation.row)]
    assert len(found) == (1 if mutation.row else 0)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.leak[:40])
def test_every_test_of_a_row_kills_a_mutation_of_its_claim(row: Row) -> None:
    """And nothing else is said to kill one: then another test would hold the row's claim."""
    kill = {test.split("[")[0].rsplit("/", 1)[-1] for each in of(row) for test in each.tests}
    assert row.tests, "a row without a test is a wish"
    for test in row.tests:
        assert any(each == test or each.startswith(f"{test}::") for each in kill), test
    for each in kill:
        assert any(each == test or each.startswith(f"{test}::") for test in row.tests), each
