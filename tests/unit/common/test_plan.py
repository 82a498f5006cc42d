"""Plans: read, refused with every mistake at once, and named by one hash."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import PlanError
from common.plan import Plan, load_plan, plan_from_json

PLANS = Path(__file__).resolve().parents[3] / "simulations" / "plans"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_that_we_ship_are_valid(file: Path) -> None:
    plan = load_plan(file)
    assert plan.name == file.stem
    assert plan_from_json(plan.to_json()) == plan


def test_canonical_json_names_a_plan(tmp_path: Path) -> None:
    first = load_plan(write(tmp_path, "name: a\nseed: 3\nfederation: {rounds: 4, min_sites: 2}\n"))
    second = load_plan(write(tmp_path, "federation: {min_sites: 2, rounds: 4}\nseed: 3\nname: a\n"))
    other = load_plan(write(tmp_path, "name: a\nseed: 4\n"))
    assert first.sha256 == second.sha256 != other.sha256
    assert len(first.sha256) == 64
    assert json.loads(first.to_json())["federation"]["rounds"] == 4


def test_a_plan_cannot_be_changed() -> None:
    plan = Plan(name="a")
    with pytest.raises(ValidationError):
        plan.seed = 3  # type: ignore[misc]


def test_three_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\nrouns: 3\nfederation: {rounds: 0, wire: fp16}\n")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    assert len(caught.value.problems) == 3
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "key 'rouns': found an unknown key; allowed: one of name, seed" in text
    assert "key 'federation.rounds': found 0; allowed: greater than or equal to 1" in text
    assert "key 'federation.wire': found \"fp16\"; allowed: 'bf16' or 'fp32'" in text
    assert all(line.startswith(str(file)) for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\n", "key 'name': found nothing; allowed: a value (it is required)"),
        ("name: a\nseed: '1'\n", "key 'seed': found \"1\"; allowed: a valid integer"),
        ("name: a b\n", "key 'name'"),
        ("name: a\nfederation: {wirr: 1}\n", "one of rounds, min_sites, round_timeout"),
        ("name: a\ntraining: {local_steps: 1, local_epochs: 1.0}\n", "give exactly one of"),
        ("name: a\ntraining: {batch_size: 4}\n", "give exactly one of local_epochs"),
        ("name: a\ntasks: {findings: false, lungs: false}\n", "at least one of findings and lungs"),
        (
            "name: a\nfederation: {strategy: {name: fedavg, proximal_mu: 0.1}}\n",
            "proximal_mu > 0 goes with fedprox",
        ),
        (
            "name: a\nsimulation: {partition: {findings_per_site: [9, 3]}}\n",
            "findings_per_site must be [low, high] within 1..14",
        ),
        (
            "name: a\nsimulation: {partition: {val_fraction: 0.5, test_fraction: 0.6}}\n",
            "must leave patients for training",
        ),
        ("- 1\n- 2\n", "found a list; allowed: a mapping of plan keys"),
        ("a: [1\n", "found text that is not YAML"),
        ("name: a\nmodel: {pretrained: " + "x" * 100 + ", image_size: 100}\n", "multiple of 32"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(write(tmp_path, text))
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nothing\.yaml: found No such file"):
        load_plan(tmp_path / "nothing.yaml")


def test_a_bad_plan_on_the_wire_is_refused() -> None:
    with pytest.raises(PlanError, match="plan: key 'seed'"):
        plan_from_json('{"name": "a", "seed": -1}')


def test_a_plan_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: a\r\nseed: 2\r\n")
    assert load_plan(file).seed == 2


def test_a_weight_file_is_named_relative_to_its_plan(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, "name: a\nmodel: {pretrained: weights/x.pth}\n"))
    assert plan.model.pretrained == str(tmp_path / "weights" / "x.pth")
    assert load_plan(write(tmp_path, "name: a\n")).model.pretrained == "none"


def test_a_bridge_needs_both_tasks(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\nmodel: {bridge: all-stages}\ntasks: {lungs: false}\n")
    with pytest.raises(PlanError, match=r"model\.bridge joins both tasks"):
        load_plan(file)


def test_fixmatch_needs_validation_images(tmp_path: Path) -> None:
    text = (
        "name: a\nsemi_supervision: {mode: fixmatch}\n"
        "simulation: {partition: {val_fraction: 0.0}}\n"
    )
    with pytest.raises(PlanError, match=r"val_fraction must be above 0"):
        load_plan(write(tmp_path, text))
    assert load_plan(write(tmp_path, "name: a\nsemi_supervision: {mode: fixmatch}\n"))


def test_the_ramp_must_end_in_time(tmp_path: Path) -> None:
    text = "name: a\nsemi_supervision: {start: 0.6, ramp: 0.5}\n"
    with pytest.raises(PlanError, match=r"start \+ ramp of at most 1"):
        load_plan(write(tmp_path, text))


def test_semi_supervision_is_off_unless_asked_for() -> None:
    assert Plan(name="a").semi_supervision.mode == "off"
    assert Plan(name="a").model.bridge == "off"


def test_changing_one_range_of_a_view_keeps_the_others() -> None:
    text = '{"name": "a", "semi_supervision": {"strong": {"blur": 0.02}}}'
    strong = plan_from_json(text).semi_supervision.strong
    default = Plan(name="a").semi_supervision.strong
    assert strong.blur == 0.02
    assert strong.model_copy(update={"blur": default.blur}) == default


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-05", "0.00001", "1e-05"])
def test_a_small_number_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"name: small\nprivacy: {{delta: {text}}}\n")
    assert load_plan(file).privacy.delta == 1e-5


def test_a_section_given_twice_is_refused(tmp_path: Path) -> None:
    text = "name: a\nprivacy: {mode: dp-sgd, epsilon: 1.0}\nseed: 1\nprivacy:\n  mode: off\n"
    with pytest.raises(PlanError, match="key 'privacy': found a value in line 2 and in line 4"):
        load_plan(write(tmp_path, text))


def test_off_is_a_word_and_yes_is_not_true(tmp_path: Path) -> None:
    assert load_plan(write(tmp_path, "name: a\nprivacy: {mode: off}\n")).privacy.mode == "off"
    with pytest.raises(PlanError, match="'deterministic': found \"yes\"; allowed: true or false"):
        load_plan(write(tmp_path, "name: a\ndeterministic: yes\n"))


def test_a_plan_as_json_is_read_as_it_was(tmp_path: Path) -> None:
    plan = Plan(name="again")
    (tmp_path / "plan.yaml").write_text(plan.to_json())
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_what_only_looks_like_a_number_stays_a_name(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("name: 1e5x\n")
    assert load_plan(file).name == "1e5x"
