"""The exception tree: messages, codes and exit codes."""

import pytest

from common import errors
from common.errors import ConsiliumError, InputError, Problem, UpdateRejectedError


def test_a_problem_says_where_what_allowed_and_next() -> None:
    problem = Problem("a.csv", "row 3, column 'Age'", "'x'", "0..120", "Mend the row.")
    assert str(problem) == "a.csv: row 3, column 'Age': found 'x'; allowed: 0..120. Mend the row."
    assert str(Problem("a", "", "b", "c", "D.")) == "a: found b; allowed: c. D."


def test_many_problems_are_cut_short() -> None:
    error = InputError(Problem("a", str(i), "b", "c", "D.") for i in range(50))
    assert len(error.problems) == 50
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("... and 30 more of this kind")


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        ("ConsiliumError", 1),
        ("RoundFailedError", 1),
        ("InputError", 2),
        ("PlanError", 2),
        ("DataError", 2),
        ("RefusedError", 3),
        ("NotEnoughSitesError", 4),
    ],
)
def test_exit_codes(kind: str, exit_code: int) -> None:
    assert getattr(errors, kind).exit_code == exit_code


def test_every_error_has_a_code_of_its_own() -> None:
    def below(kind: type[ConsiliumError]) -> list[type[ConsiliumError]]:
        return [kind, *(deep for child in kind.__subclasses__() for deep in below(child))]

    ours = [kind for kind in below(ConsiliumError) if kind.__module__ == "common.errors"]
    codes = [kind.code for kind in ours if kind is not UpdateRejectedError]
    assert len(set(codes)) == len(codes)
    rejected = UpdateRejectedError("ward", "norm", "12.0 > 3.0")
    assert str(rejected) == "update of site 'ward' rejected: norm: 12.0 > 3.0"
