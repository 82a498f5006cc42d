"""What is refused before training, and what is only remarked, on hospitals made by hand."""

import json
from typing import Any

import pandas as pd
import pytest

from client.privacy.accounting import Charge, epsilon
from common.errors import InputError, NotEnoughSitesError, PartitionError, RefusedError
from common.findings import FINDINGS
from common.plan import Plan, plan_from_json
from simulations.experiment.hospitals import Hospital, hospital
from simulations.experiment.prospects import (
    data_remarks,
    left_out_remarks,
    plan_remarks,
    refuse_hopeless,
)

ALL = tuple(FINDINGS)
UNKNOWN = None  # an image without labels


def plan_of(**more: Any) -> Plan:
    value: dict[str, Any] = {
        "name": "test",
        "model": {"backbone": "tiny", "image_size": 32},
        "federation": {"rounds": 4, "min_sites": 2},
    }
    return plan_from_json(json.dumps(value | more))


def private(epsilon: float = 8.0, batch: int = 4, **more: Any) -> Plan:
    training = {"local_steps": 3, "batch_size": batch, "max_gradient_norm": None}
    privacy = {"mode": "dp-sgd", "unit": "patient", "epsilon": epsilon, "delta": 1e-5}
    federation = {"rounds": 4, "min_sites": 2, "weighting": "equal"}
    values = {"training": training, "privacy": privacy, "federation": federation}
    return plan_of(**(values | more))


def made(
    plan: Plan,
    name: str,
    images: list[tuple[str, ...] | None],
    masks: int = 0,
    annotates: tuple[str, ...] = ALL,
    number: int = 0,
) -> Hospital:
    """A hospital whose training images, one a patient, have these findings; the first have masks.

    It also validates on one image with every finding and a mask, which must never count.
    """
    rows = []
    for place, found in enumerate([*images, ALL]):
        split = "val" if place == len(images) else "train"
        labels = {f: -1 if found is None else int(f in found) for f in FINDINGS}
        rows.append(
            {
                "image": f"{name}{place}.png",
                "patient": f"{name}{place}",
                "split": split,
                "labelled": found is not None,
                "outlined": place < masks or split == "val",
                **labels,
            }
        )
    return hospital(plan, name, annotates, number, pd.DataFrame(rows))


HEALTHY: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("first", "masks", "tasks", "fine"),
    [
        ([HEALTHY, ("Mass",)], 0, {}, True),
        ([UNKNOWN, UNKNOWN], 0, {}, False),
        ([UNKNOWN, UNKNOWN], 1, {}, True),
        ([UNKNOWN, UNKNOWN], 1, {"lungs": False}, False),
        ([("Mass",)], 0, {"findings": False}, False),
        ([("Mass",)], 1, {"findings": False}, True),
    ],
)
def test_a_hospital_with_nothing_to_train_on(
    first: list[tuple[str, ...] | None], masks: int, tasks: dict[str, bool], fine: bool
) -> None:
    plan = plan_of(tasks=tasks)
    sites = [made(plan, "a", first, masks), made(plan, "b", [("Edema",)], 1)]
    if fine:
        refuse_hopeless(plan, sites)
        return
    with pytest.raises(PartitionError, match=r"found 1 of 2 hospitals with nothing .*: a; allowed"):
        refuse_hopeless(plan, sites)
    # Where two others can train, it is said and stops nothing.
    third = [*sites, made(plan, "c", [("Hernia",)], 1)]
    refuse_hopeless(plan, third)
    assert plan_remarks(plan, third) == [
        "1 hospital with nothing to train on, left out of the rounds: a"
    ]


def test_labels_of_findings_that_nobody_annotates_are_none() -> None:
    plan = plan_of()
    sites = [made(plan, "a", [HEALTHY], annotates=()), made(plan, "b", [HEALTHY])]
    with pytest.raises(PartitionError, match="1 of 2 hospitals"):
        refuse_hopeless(plan, sites)


def test_a_teacher_lets_a_hospital_without_labels_in_after_the_ramp() -> None:
    semi = {"mode": "mean-teacher"}
    shared = plan_of(semi_supervision=semi, heads="shared")
    sites = [made(shared, n, found) for n, found in (("a", [UNKNOWN]), ("b", [("Mass",)]))]
    with pytest.raises(PartitionError, match="1 of 2"):  # in the first rounds there is no teacher
        refuse_hopeless(shared, sites)
    assert plan_remarks(shared, sites) == [
        "1 hospital with nothing to train on but a teacher's word, left out of the rounds until "
        "semi_supervision's ramp has ended: a"
    ]
    at_once = plan_of(semi_supervision=semi | {"start": 0.0, "ramp": 0.0}, heads="shared")
    refuse_hopeless(at_once, sites)
    local = plan_of(semi_supervision=semi)  # its own head can teach it nothing
    assert "left out of the rounds: a" in plan_remarks(local, sites)[0]


def test_a_private_plan_goes_by_what_is_declared() -> None:
    plan = private()
    refuse_hopeless(plan, [made(plan, "a", [UNKNOWN] * 9), made(plan, "b", [("Mass",)] * 9)])
    nothing = made(plan, "a", [("Mass",)] * 9, annotates=())
    with pytest.raises(PartitionError, match="1 of 2"):
        refuse_hopeless(plan, [nothing, made(plan, "b", [("Mass",)] * 9)])


def test_where_nobody_has_a_label_neither_teacher_nor_noise_makes_up_for_it() -> None:
    semi = {"mode": "mean-teacher", "start": 0.0, "ramp": 0.0}
    for plan in (private(), plan_of(semi_supervision=semi, heads="shared")):
        with pytest.raises(PartitionError, match="2 of 2 hospitals with nothing to train on: a, b"):
            refuse_hopeless(plan, [made(plan, name, [UNKNOWN] * 9) for name in "ab"])


def test_fewer_hospitals_than_the_plan_needs() -> None:
    with pytest.raises(NotEnoughSitesError, match=r"needs 2 sites .* has 1"):
        refuse_hopeless(plan_of(), [made(plan_of(), "a", [("Mass",)])])


@pytest.mark.parametrize("value", [1e-9, 1e-4])
def test_an_epsilon_that_no_noise_reaches_is_said_once(value: float) -> None:
    plan = private(epsilon=value)
    sites = [made(plan, name, [HEALTHY] * 20) for name in "ab"]
    with pytest.raises(InputError) as caught:
        refuse_hopeless(plan, sites)
    [problem] = caught.value.problems
    assert problem.at == "key 'privacy.epsilon'"
    assert "12 steps at a sampling rate of 0.2" in problem.found
    refuse_hopeless(private(), sites)


def test_a_given_noise_is_within_reach_whatever_it_costs() -> None:
    privacy = {"mode": "dp-sgd", "noise_multiplier": 0.1}
    plan = private(privacy=privacy)
    refuse_hopeless(plan, [made(plan, name, [HEALTHY] * 20) for name in "ab"])


def test_caps_that_end_before_the_plan() -> None:
    """12 steps at rate 4 / 20; a cap for just 6 of them is one for 2 rounds of 3 steps."""
    half = epsilon([Charge(2.0, 0.2, 6)], 1e-5) * 1.001

    def sites(*caps: float) -> tuple[Plan, list[Hospital]]:
        simulation = {"sites": len(caps), "lifetime_epsilon": caps}
        plan = private(simulation=simulation, privacy={"mode": "dp-sgd", "noise_multiplier": 2.0})
        names = zip("abc", range(len(caps)), strict=False)
        return plan, [made(plan, name, [HEALTHY] * 20, number=place) for name, place in names]

    refuse_hopeless(*sites(80.0, half, 90.0))
    with pytest.raises(
        RefusedError, match=r"pays for 2 of 4 rounds at 2 hosp.*: b \(2\)"
    ) as caught:
        refuse_hopeless(*sites(80.0, half))
    assert (caught.value.code, caught.value.exit_code) == ("budget-spent", 3)


def test_batches_as_large_as_a_hospital_or_too_small() -> None:
    plan = private(batch=10)
    sites = [made(plan, n, [HEALTHY] * size) for n, size in (("a", 10), ("b", 11), ("c", 3))]
    assert plan_remarks(plan, sites) == [
        "training.batch_size 10 is no less than the patients of 2 hospitals, so that every step "
        "takes all of them and sampling hides nobody: a (10), c (3)"
    ]
    plan = private(batch=1)
    [remark] = plan_remarks(plan, [made(plan, "a", [HEALTHY] * 10)])
    assert remark.endswith("at 1 hospital: a (35 %)")  # 0.9 ** 10 = 0.349
    plan = private(batch=3)  # (1 - 3/50) ** 50 = 0.045
    assert plan_remarks(plan, [made(plan, "a", [HEALTHY] * 50)]) == []
    assert plan_remarks(plan_of(), [made(plan_of(), "a", [HEALTHY] * 3)]) == []


def test_what_labels_and_masks_lack_is_named() -> None:
    plan = plan_of()
    every = [(finding,) for finding in FINDINGS]
    good = [made(plan, "a", every, 1), made(plan, "b", every)]
    assert data_remarks(plan, good, 5, 5) == []
    assert data_remarks(plan, good, 0, 5) == ["no test image has a label: no AUROC can be measured"]
    assert data_remarks(plan, good, 5, 0) == [
        "no test image has a lung mask: no Dice can be measured"
    ]
    none = [made(plan, "a", every), made(plan, "b", every)]
    assert data_remarks(plan, none, 5, 5) == [
        "no training image has a lung mask: nothing teaches the lungs head"
    ]
    for task in ("findings", "lungs"):
        other = plan_of(tasks={task: False})
        assert (
            data_remarks(other, none if task == "lungs" else good, 5 * (task != "findings"), 5)
            == []
        )


def test_labels_that_teach_little_are_named() -> None:
    plan = plan_of(tasks={"lungs": False})
    every = [(finding,) for finding in FINDINGS if finding not in ("Hernia", "Mass")]
    sites = [
        made(plan, "mixed", [*every, UNKNOWN]),
        made(plan, "ill", [("Edema", "Effusion")] * 2),
        made(plan, "well", [HEALTHY, HEALTHY]),
        made(plan, "one", [HEALTHY]),  # one image says nothing about the next
        made(plan, "silent", [UNKNOWN]),
        made(plan, "masks", [UNKNOWN], 1, annotates=()),
    ]
    assert data_remarks(plan, sites, 1, 0) == [
        "1 hospital without a label on any training image: silent",
        "2 hospitals whose labelled training images all have the same findings: "
        "ill (Effusion|Edema), well (No Finding)",
        "2 of 14 findings without a positive training image, which nothing teaches: Mass, Hernia",
    ]
    assert data_remarks(plan, sites[2:4], 1, 0)[-1] == (
        "no finding has a positive training image: none of them can be learnt"
    )
    assert len(data_remarks(plan, sites[4:], 1, 0)) == 1


def test_what_was_left_out_is_counted_by_kind_and_named() -> None:
    reasons = [
        *((f"n{number}.png", "no image file") for number in range(7)),
        ("b.png", "image: truncated"),
        ("c.png", "image: 0 bytes"),
        ("d.png", "mask: two grey levels: 3, 4"),
    ]
    skipped = pd.DataFrame(reasons, columns=["image", "reason"], dtype="str")
    assert left_out_remarks(skipped) == [
        "7 left out by --skip-bad, no image file: n0.png, n1.png, n2.png, n3.png, n4.png, ...",
        "2 left out by --skip-bad, unreadable image: b.png (truncated), c.png (0 bytes)",
        "1 left out by --skip-bad, unreadable mask: d.png (two grey levels: 3, 4)",
    ]
    assert left_out_remarks(skipped.iloc[:0]) == []
