"""Which node is which site."""

import pytest

from common.errors import UpdateRejectedError
from common.wire import Parcel
from server.roster import Roster
from server.transport import Reply


def says(node: int, name: object, error: str = "") -> Reply:
    return Reply(node, Parcel({}, {"site": name}, {}), error)  # type: ignore[dict-item]


def test_a_node_keeps_the_name_that_it_says_first() -> None:
    roster = Roster()
    assert roster.name(7) == "node-7"
    roster.learn(says(7, "ward"))
    roster.learn(says(7, "icu"))
    assert roster.name(7) == "ward"
    roster.check_author(7, "ward")
    with pytest.raises(UpdateRejectedError, match="node 7 sent an answer in the name of 'icu'"):
        roster.check_author(7, "icu")


def test_an_error_names_nobody() -> None:
    roster = Roster()
    roster.learn(says(66, "ward", "bad-cache"))
    roster.learn(Reply(66, None, "node-unavailable"))
    roster.learn(says(1, "ward"))
    assert (roster.name(66), roster.name(1)) == ("node-66", "ward")
    with pytest.raises(UpdateRejectedError, match="in the name of 'ward'"):
        roster.check_author(66, "ward")


def test_of_two_that_say_one_name_neither_has_it() -> None:
    roster = Roster()
    roster.learn(says(66, "ward"))
    roster.learn(says(1, "ward"))
    roster.learn(says(2, "icu"))
    for node in (66, 1):
        assert roster.name(node) == f"node-{node}"
        with pytest.raises(UpdateRejectedError) as caught:
            roster.check_author(node, "ward")
        assert (caught.value.site, caught.value.code) == (f"node-{node}", "name")
    roster.confirm()
    assert (roster.name(1), roster.name(2)) == ("node-1", "icu")


def test_a_confirmed_name_is_kept_against_others() -> None:
    roster = Roster()
    roster.learn(says(1, "ward"))
    roster.confirm()
    roster.learn(says(66, "ward"))
    assert (roster.name(1), roster.name(66)) == ("ward", "node-66")
    assert roster.trouble(66) == "says that it is 'ward', which is another node's name"
    assert roster.trouble(1) is None
    assert sorted(roster.absent([1])) == [66]


def test_what_is_known_of_a_node_counts_more_than_its_word() -> None:
    roster = Roster(known={1: "ward"})
    roster.learn(says(66, "ward"))
    roster.learn(says(1, "icu"))
    assert (roster.name(1), roster.name(66)) == ("ward", "node-66")
    roster.check_author(1, "ward")
    with pytest.raises(UpdateRejectedError, match="another node's name"):
        roster.check_author(66, "ward")


def test_only_names_on_the_list_may_be_said() -> None:
    roster = Roster(listed=["ward"])
    roster.learn(says(1, "ward"))
    roster.learn(says(66, "intruder"))
    assert (roster.name(1), roster.name(66)) == ("ward", "node-66")
    assert roster.trouble(66) == "says that it is 'intruder', which is not on the list of sites"


@pytest.mark.parametrize("name", ["node-66", "..", ".hidden", "a/b", "a\n", "", "é", "x" * 65, 7])
def test_what_can_be_no_name(name: object) -> None:
    roster = Roster()
    roster.learn(says(66, name))
    assert roster.name(66) == "node-66"
    with pytest.raises(UpdateRejectedError) as caught:
        roster.check_author(66, name)
    assert caught.value.code == "schema"
    assert caught.value.detail.isprintable()


def test_names_of_before_a_resume_hold_once_one_of_those_nodes_is_met() -> None:
    roster = Roster(earlier={1: "ward", 2: "icu"})
    assert roster.name(1) == "node-1"
    roster.learn(says(66, "ward"))  # comes first, and nobody of before is there yet
    assert roster.name(66) == "ward"
    roster.meet([66])
    roster.meet([66, 2])
    assert roster.trouble(66) == "says that it is 'ward', which is another node's name"
    assert [roster.name(node) for node in (1, 2, 66)] == ["ward", "icu", "node-66"]
    roster.confirm()
    assert roster.bound == {1: "ward", 2: "icu"}
    assert roster.absent([2, 66]) == [1]


def test_where_all_nodes_have_new_numbers_names_are_bound_anew() -> None:
    roster = Roster(earlier={1: "ward", 2: "icu"})
    for node, name in ((11, "ward"), (12, "icu")):
        roster.meet([11, 12])
        roster.learn(says(node, name))
        assert roster.name(node) == name
    assert roster.bound == {1: "ward", 2: "icu"}  # until a round is finished
    roster.confirm()
    roster.meet([1])
    assert roster.bound == {11: "ward", 12: "icu"}


def test_what_is_certain_counts_more_than_what_was_before() -> None:
    roster = Roster(known={7: "ward"}, earlier={1: "ward", 2: "icu"})
    roster.meet([2])
    assert [roster.name(node) for node in (1, 2, 7)] == ["node-1", "icu", "ward"]
