from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from client.border.guard import check_leaving, check_metrics
from client.settings import SiteSettings
from common.errors import RefusedError
from common.parameters import Layout
from common.plan import Plan
from common.update import SCHEMA, Update

PLAN = Plan(name="p")
WARD = SiteSettings(name="ward", cache=Path("c"), nominal_units=3, annotates=("Effusion",))
LAYOUT = Layout(("encoder.a",), ((4,),))
GOOD = Update(
    schema=SCHEMA,
    plan_sha256=PLAN.sha256,
    round=2,
    site="ward",
    layout_sha256=LAYOUT.sha256,
    delta=np.zeros(4, np.float32),
    weight=3.0,
    covers=("Effusion", "lungs"),
    metrics={"val_macro_auroc": 0.7, "train_loss": 0.1, "val_auroc_Pleural_Thickening": 0.5},
    seconds=1.0,
)


@dataclass(frozen=True, eq=False)
class Talkative(Update):
    patients: tuple[str, ...] = ("Doe",)


def leave(update: Update) -> None:
    check_leaving(update, PLAN, 2, WARD, LAYOUT)


def test_good_update_may_leave() -> None:
    leave(GOOD)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan_sha256": "x"}, "another plan, round or site"),
        ({"round": 1}, "another plan, round or site"),
        ({"site": "icu"}, "another plan, round or site"),
        ({"layout_sha256": "x"}, "another layout"),
        ({"delta": np.zeros(5, np.float32)}, "another layout"),
        ({"delta": np.zeros(4)}, "not finite float32"),
        ({"delta": np.array([0, 0, 0, np.nan], np.float32)}, "not finite float32"),
        ({"delta": np.array([0, 0, 0, np.inf], np.float32)}, "not finite float32"),
        ({"weight": 0.0}, "weight 0.0"),
        ({"weight": float("inf")}, "weight inf"),
        ({"seconds": float("nan")}, "training time"),
        ({"covers": ("Jane Doe",)}, "no finding"),
        ({"metrics": {"patient_1": 1.0}}, "metric 'patient_1' may not leave"),
        ({"metrics": {"val_ /home/x": 1.0}}, "may not leave"),
        ({"metrics": {"val_dice": float("nan")}}, "not a finite number"),
        ({"metrics": {"val_dice": "Jane Doe"}}, "not a finite number"),
    ],
)
def test_bad_update_may_not_leave(change: dict[str, object], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        leave(replace(GOOD, **change))


def test_another_kind_of_update_may_not_leave() -> None:
    with pytest.raises(RefusedError, match="a Talkative may not leave"):
        leave(Talkative(**vars(GOOD)))


def test_smuggled_field_may_not_leave() -> None:
    update = replace(GOOD)
    vars(update)["patients"] = ["Doe"]
    with pytest.raises(RefusedError, match="field 'patients' may not leave"):
        leave(update)


def test_no_metrics_are_fine() -> None:
    check_metrics({}, PLAN)


PRIVATE = Plan.model_validate(
    {
        "name": "p",
        "training": {"local_steps": 1, "max_gradient_norm": None},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": 1.0},
        "federation": {"weighting": "equal"},
    }
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metrics": {"train_loss": 0.1}}, "train_loss of a private plan is not noised"),
        ({"metrics": {"val_dice": 0.9}}, "val_dice of a private plan is not noised"),
        ({"seconds": 3.5}, "how long private training took"),
        ({"spent": {"patients": 731}}, "not what may be told"),
        ({"weight": 731.0}, "a weight that the site has not declared"),
        ({"covers": ("Effusion",)}, "what the site's rows are annotated for"),
    ],
)
def test_a_private_update_tells_nothing_un_noised(change: dict[str, object], reason: str) -> None:
    good = replace(GOOD, plan_sha256=PRIVATE.sha256, metrics={"val_noised_loss": 0.3}, seconds=0.0)
    check_leaving(good, PRIVATE, 2, WARD, LAYOUT)
    with pytest.raises(RefusedError, match=reason):
        check_leaving(replace(good, **change), PRIVATE, 2, WARD, LAYOUT)
