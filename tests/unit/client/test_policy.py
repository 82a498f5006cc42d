"""What a hospital allows: every refusal with its code, and which metrics may leave."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from client.policy import Policy, check_noise, check_plan, permitted
from client.privacy.accounting import epsilon
from client.privacy.budget import asked, declared_units
from client.settings import SiteSettings, open_site_folder
from common.errors import DataError, PlanError, RefusedError
from common.plan import Plan, plan_from_json

PRIVATE: dict[str, Any] = {
    "name": "p",
    "training": {"local_steps": 5, "batch_size": 20, "max_gradient_norm": None},
    "federation": {"rounds": 4, "weighting": "declared"},
    "privacy": {"mode": "dp-sgd", "noise_multiplier": 1.0},
}
CAPPED = Policy(epsilon=8.0)
SCORES = {"val_macro_auroc": 0.81234, "val_dice": 0.95678, "train_loss": 0.3}


def plan(**privacy: Any) -> Plan:
    value = PRIVATE | {"privacy": PRIVATE["privacy"] | privacy}
    return plan_from_json(json.dumps(value))


def settings(**more: Any) -> SiteSettings:
    return SiteSettings.model_validate({"name": "ward", "cache": "c"} | more)


def test_a_site_without_a_policy_refuses_every_plan() -> None:
    with pytest.raises(RefusedError, match=r"privacy\.mode: found off") as caught:
        check_plan(Policy(), Plan(name="p"))
    assert (caught.value.code, caught.value.exit_code) == ("non-private", 3)
    with pytest.raises(RefusedError, match=r"policy\.epsilon in site\.yaml") as caught:
        check_plan(Policy(), plan())
    assert caught.value.code == "no-budget"


@pytest.mark.parametrize(
    ("policy", "privacy", "code"),
    [
        (Policy(epsilon=8.0), {"unit": "image"}, "unit"),
        (Policy(epsilon=8.0, unit="image"), {}, "unit"),
        (Policy(epsilon=8.0, delta=1e-6), {}, "delta"),
        (Policy(epsilon=8.0, max_clipping_norm=0.5), {}, "clip-ceiling"),
    ],
)
def test_what_the_policy_forbids_is_refused_with_its_code(
    policy: Policy, privacy: dict[str, Any], code: str
) -> None:
    with pytest.raises(RefusedError, match=r"this site allows .* in site\.yaml") as caught:
        check_plan(policy, plan(**privacy))
    assert caught.value.code == code
    assert pickle.loads(pickle.dumps(caught.value)).code == code


@pytest.mark.parametrize(
    ("ceiling", "asked_for", "words"),
    [
        ({"max_rounds": 3}, {}, r"federation\.rounds: found 4; this site allows at most 3"),
        ({"max_steps": 4}, {}, "the steps of a round: found 5; this site allows at most 4"),
        ({"max_plan_steps": 19}, {}, "the steps of all rounds: found 20; .* at most 19"),
        (
            {"max_epochs": 1.5},
            {"training": {"local_epochs": 2.0, "max_gradient_norm": None}},
            r"training\.local_epochs: found 2; this site allows at most 1\.5 \(policy\.max_epochs",
        ),
        (
            {"max_batch_size": 19},
            {},
            r"training\.batch_size: found 20; this site allows at most 19",
        ),
        (
            {"max_batch_size": 20},
            {"semi_supervision": {"mode": "mean-teacher", "batch_size": 21}},
            r"semi_supervision\.batch_size: found 21",
        ),
        ({"max_images_per_unit": 3}, {}, r"privacy\.images_per_unit: found 4"),
        ({"max_views": 1}, {"privacy": PRIVATE["privacy"] | {"views": 2}}, r"views: found 2"),
        ({"max_image_size": 96}, {}, r"model\.image_size: found 128; this site allows at most 96"),
        ({"max_decoder_width": 31}, {}, r"model\.decoder_width: found 32"),
        ({"backbones": ("tiny",)}, {}, r"model\.backbone: found resnet18; .* one of tiny"),
        (
            {"max_head_epochs": 2},
            {
                "training": PRIVATE["training"] | {"head_epochs": 3},
                "privacy": {"mode": "off"},
            },
            r"training\.head_epochs: found 3",
        ),
    ],
)
def test_what_costs_too_much_is_refused_by_key(
    ceiling: dict[str, Any], asked_for: dict[str, Any], words: str
) -> None:
    asks = plan_from_json(json.dumps(PRIVATE | asked_for))
    allows = {"epsilon": 8.0, "non_private": "allow"}
    check_plan(Policy.model_validate(allows), asks)
    with pytest.raises(RefusedError, match=words) as caught:
        check_plan(Policy.model_validate(allows | ceiling), asks)
    assert caught.value.code == "ceiling"


def test_steps_from_epochs_have_a_ceiling_before_any_noise_is_solved() -> None:
    training = {"local_epochs": 1.0, "batch_size": 1, "max_gradient_norm": None}
    value = PRIVATE | {"training": training, "privacy": {"mode": "dp-sgd", "epsilon": 1.0}}
    with pytest.raises(RefusedError, match=r"steps of a round: found 20000; .* at most 10000") as e:
        asked(plan_from_json(json.dumps(value)), settings(nominal_units=20_000))
    assert e.value.code == "ceiling"


def test_a_policys_numbers_are_finite_and_have_limits() -> None:
    for key in Policy.model_fields:
        if key.startswith(("max_", "min_", "metrics_noise", "epsilon", "delta", "deadline")):
            for number in (math.inf, math.nan, 1e12, -1.0):
                with pytest.raises(ValidationError):
                    Policy.model_validate({key: number})


def test_too_little_noise_is_refused() -> None:
    check_noise(Policy(min_noise_multiplier=1.0), 1.0)
    with pytest.raises(RefusedError, match=r"found 0\.9; this site allows at least 1") as caught:
        check_noise(Policy(min_noise_multiplier=1.0), 0.9)
    assert caught.value.code == "noise-floor"


def test_what_is_allowed_passes() -> None:
    check_plan(CAPPED, plan())
    check_plan(Policy(non_private="allow"), Plan(name="p"))


@pytest.mark.parametrize(
    ("metrics", "leaves"),
    [
        ("none", {}),
        ("noised", {}),
        ("coarse", {"val_macro_auroc": 0.81, "val_dice": 0.96}),
        ("full", SCORES),
    ],
)
def test_which_metrics_leave_is_the_policys_word(metrics: str, leaves: dict[str, float]) -> None:
    policy = Policy.model_validate({"metrics": metrics})
    assert permitted(policy, Plan(name="p"), SCORES) == leaves
    assert permitted(policy, plan(), SCORES) == {}  # never un-noised from a private plan


def test_a_plan_asks_for_public_numbers_only() -> None:
    ask = asked(plan(), settings(nominal_units=100))
    assert (ask.sampling_rate, ask.steps_per_round, ask.rounds) == (0.2, 5, 4)
    assert ask.charge().steps == 5
    assert ask.charge(4).steps == 20
    assert asked(plan(), settings(nominal_units=3)).sampling_rate == 1.0


def test_epochs_are_counted_in_declared_units() -> None:
    value = PRIVATE | {"training": PRIVATE["training"] | {"local_steps": None, "local_epochs": 1.5}}
    ask = asked(plan_from_json(json.dumps(value)), settings(nominal_units=100))
    assert ask.steps_per_round == math.ceil(1.5 / 0.2)


def test_epsilon_sets_the_noise_for_the_whole_plan() -> None:
    ask = asked(plan(noise_multiplier=None, epsilon=4.0), settings(nominal_units=100))
    spent = epsilon([ask.charge(4)], 1e-5)
    assert 3.9 < spent <= 4.0


def test_a_site_that_has_not_said_how_large_it_is_is_told_so() -> None:
    with pytest.raises(RefusedError, match=r"nominal_units is missing.*patients") as caught:
        asked(plan(), settings())
    assert caught.value.code == "no-nominal-units"
    with pytest.raises(RefusedError, match="nominal_units"):
        declared_units(settings(), plan())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"privacy": {"mode": "dp-sgd"}}, "exactly one of privacy.epsilon"),
        (
            {"privacy": {"mode": "dp-sgd", "epsilon": 1.0, "noise_multiplier": 1.0}},
            "exactly one of privacy.epsilon",
        ),
        ({"federation": {"weighting": "labelled"}}, "federation.weighting"),
        ({"federation": {"weighting": "size"}}, "federation.weighting"),
        ({"semi_supervision": {"mode": "fixmatch"}}, "fixmatch"),
        ({"evaluation": {"encoder": "best"}}, "evaluation.encoder"),
        ({"deterministic": True}, "deterministic"),
        ({"training": PRIVATE["training"] | {"max_gradient_norm": 1.0}}, "max_gradient_norm"),
        ({"training": PRIVATE["training"] | {"lungs_batch_size": 2}}, "lungs_batch_size"),
        ({"training": PRIVATE["training"] | {"compile": True}}, "training.compile"),
        ({"training": PRIVATE["training"] | {"head_epochs": 2}}, "serving_head_epochs"),
    ],
)
def test_a_plan_that_would_void_its_promise_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_from_json(json.dumps(PRIVATE | more))


def test_all_broken_promises_are_named_at_once() -> None:
    broken = PRIVATE | {"deterministic": True, "evaluation": {"encoder": "best"}}
    with pytest.raises(PlanError, match=r"evaluation\.encoder.*deterministic"):
        plan_from_json(json.dumps(broken))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"epsilon": -1}, "policy.epsilon"),
        ({"epsylon": 1}, "policy.epsylon"),
        ({"metrics": "some"}, "policy.metrics"),
        ({"unit": "study"}, "policy.unit"),
    ],
)
def test_a_wrong_policy_names_its_key(policy: dict[str, Any], words: str, tmp_path: Path) -> None:
    text = yaml.safe_dump({"name": "ward", "cache": "c", "policy": policy})
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        open_site_folder(tmp_path)
