"""What a simulated hospital says of itself, and what a run's command line changes in a plan."""

from pathlib import Path
from typing import Any

import pytest

from client.policy import Policy, check_plan
from client.settings import SiteSettings
from common.errors import PartitionError, PlanError
from common.plan import Plan, load_plan, plan_from_json
from simulations.experiment.hospitals import OPEN, UNBOUND, rounded, simulated_settings
from simulations.experiment.options import changed
from simulations.experiment.survey import _check_caps

PLANS = Path(__file__).resolve().parents[4] / "simulations" / "plans"


def private(**simulation: Any) -> Plan:
    plan = load_plan(PLANS / "phantom-private.yaml").model_dump(mode="json")
    plan["simulation"] |= simulation
    return Plan.model_validate(plan | {"simulation": plan["simulation"]}, strict=False)


@pytest.mark.parametrize(
    ("count", "said"), [(0, 1), (7, 7), (99, 99), (104, 100), (667, 670), (1234, 1200)]
)
def test_counts_are_said_to_two_digits(count: int, said: int) -> None:
    assert rounded(count) == said


def test_a_simulated_hospital_takes_what_its_plan_asks() -> None:
    plan = private()
    said = simulated_settings(plan, 0, 812, 0)
    settings = SiteSettings.model_validate({"name": "a", "cache": "c"} | said)
    check_plan(settings.policy, plan)
    check_plan(settings.policy, Plan(name="open"))
    assert settings.simulated
    assert (settings.nominal_units, settings.outlines_lungs) == (810, False)
    assert settings.policy.epsilon == UNBOUND
    assert Policy.model_validate(OPEN["policy"]).epsilon is None


def test_each_hospital_has_its_own_cap() -> None:
    plan = private(sites=3, lifetime_epsilon=(1.0, 2.0, 3.0))
    caps = [simulated_settings(plan, n, 10, 1)["policy"]["epsilon"] for n in range(3)]
    assert caps == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("caps", [[1.0], [1.0, 2.0, 0.0]])
def test_caps_that_do_not_fit_are_refused(caps: list[float]) -> None:
    text = f'{{"name": "a", "simulation": {{"sites": 3, "lifetime_epsilon": {caps}}}}}'
    with pytest.raises(PlanError, match="lifetime_epsilon needs a number above 0 for each of 3"):
        plan_from_json(text)


@pytest.mark.parametrize("name", ["phantom-private", "real-sample-private"])
def test_the_plans_can_be_run_without_privacy_to_compare(name: str, tmp_path: Path) -> None:
    plan = load_plan(PLANS / f"{name}.yaml")
    assert plan.privacy.epsilon == 8.0
    other = changed(plan, 2, tmp_path / "w.safetensors", True)
    assert (other.privacy.mode, other.name) == ("off", f"{name}-open")
    assert (other.training.unit, other.simulation.sites) == ("patient", 2)
    assert other.model.pretrained == str(tmp_path / "w.safetensors")
    assert other.training.model_copy(update={"unit": "image"}) == plan.training


def test_a_hospital_of_masks_needs_a_cap_too() -> None:
    plan = private(sites=2, lifetime_epsilon=(1.0, 2.0))
    _check_caps(plan, masks=False)
    with pytest.raises(PartitionError, match="found 2 numbers; allowed: 3"):
        _check_caps(plan, masks=True)
