"""The exception tree: messages, codes and exit codes."""

import pickle

import pytest

from common import errors
from common.errors import (
    SITE_CODES,
    ConsiliumError,
    InputError,
    Problem,
    StepRejectedError,
    UpdateRejectedError,
)


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


def below(kind: type[ConsiliumError]) -> list[type[ConsiliumError]]:
    return [kind, *(deep for child in kind.__subclasses__() for deep in below(child))]


OURS = [kind for kind in below(ConsiliumError) if kind.__module__ == "common.errors"]


@pytest.mark.parametrize("kind", OURS)
def test_an_error_survives_pickling(kind: type[ConsiliumError]) -> None:
    """As it has to on its way out of a process pool."""
    problems = [Problem("a", str(row), "b", "c", "D.") for row in range(30)]
    error: ConsiliumError
    if issubclass(kind, InputError):
        error = kind(problems)
    elif issubclass(kind, UpdateRejectedError):
        error = kind("ward", "norm", "12.0 > 3.0")
    elif issubclass(kind, StepRejectedError):
        error = kind("too-long", "12.0 > 3.0")
    else:
        error = kind("the loss is nan")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.code, vars(back)) == (str(error), error.code, vars(error))


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in OURS if kind is not UpdateRejectedError]
    assert len(set(codes)) == len(codes)
    rejected = UpdateRejectedError("ward", "norm", "12.0 > 3.0")
    assert str(rejected) == "update of site 'ward' rejected: norm: 12.0 > 3.0"


def test_what_a_site_may_say_is_a_code_that_the_server_knows() -> None:
    from client import answer  # noqa: F401  with all that it can raise
    from server.app import TRANSPORT_ERRORS

    servers = {ConsiliumError, errors.NotEnoughSitesError, errors.RoundFailedError}
    servers |= {StepRejectedError, UpdateRejectedError}
    codes = {
        kind.code
        for kind in below(ConsiliumError)
        if kind.__module__ == "common.errors" or kind.__module__.startswith("client.")
        if kind not in servers
    }
    assert codes <= SITE_CODES
    assert set(TRANSPORT_ERRORS.values()) <= SITE_CODES
    assert set(errors.REFUSALS) <= SITE_CODES
