"""Every number of a plan has a finite range, every text and list a greatest length."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from common.errors import InputError, PlanError
from common.plan import MAX_WIRE_BYTES, Plan, load_plan, plan_from_json
from common.section import Section
from common.yaml_file import MAX_BYTES, MAX_NODES, read_mapping

PRIVATE: dict[str, Any] = {
    "name": "p",
    "training": {"local_steps": 5, "max_gradient_norm": None},
    "federation": {"rounds": 4, "weighting": "declared"},
    "privacy": {"mode": "dp-sgd", "noise_multiplier": 1.0},
}


def between(limits: tuple[Any, ...]) -> bool:
    """Whether there is a finite lower and a finite upper limit among them."""
    low = [m.ge if isinstance(m, Ge) else m.gt for m in limits if isinstance(m, Ge | Gt)]
    high = [m.le if isinstance(m, Le) else m.lt for m in limits if isinstance(m, Le | Lt)]
    return bool(low and high) and all(math.isfinite(value) for value in (*low, *high))


def unlimited(key: str, annotation: Any, limits: tuple[Any, ...]) -> Iterator[str]:
    """The keys below this one whose values have no limit."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        flat = [m for x in inner[1:] for m in (getattr(x, "metadata", None) or [x])]
        yield from unlimited(key, inner[0], (*limits, *flat))
    elif origin in (Union, UnionType):
        for part in inner:
            yield from unlimited(key, part, limits)
    elif origin is tuple:
        if Ellipsis in inner and not any(isinstance(m, MaxLen) for m in limits):
            yield f"{key}: a list"
        for part in inner:
            if part is not Ellipsis:
                yield from unlimited(f"{key}[]", part, ())
    elif annotation in (int, float):
        yield from [] if between(limits) else [f"{key}: a number"]
    elif annotation is str:
        pattern = any("{1,64}$" in str(getattr(m, "pattern", "")) for m in limits)
        short = pattern or any(isinstance(m, MaxLen) for m in limits)
        yield from [] if short else [f"{key}: a text"]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from of_section(annotation, f"{key}.")
    elif origin is not Literal and annotation not in (bool, NoneType):
        yield f"{key}: a kind that this test does not know"


def of_section(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    if section.model_config.get("allow_inf_nan") is not False:
        yield f"{prefix}: takes inf and nan"
    for name, field in section.model_fields.items():
        yield from unlimited(prefix + name, field.annotation, tuple(field.metadata))


def test_every_value_of_a_plan_has_limits() -> None:
    assert list(of_section(Plan)) == []


def test_the_walk_sees_what_has_none() -> None:
    class Inner(BaseModel):
        width: float = 1.0

    class Loose(Section):
        half: int = Field(1, ge=1)
        endless: float = Field(1.0, ge=0.0, le=math.inf)
        text: str | None = None
        many: tuple[int, ...] = ()
        inner: Inner = Inner()
        known: Literal["a"] = "a"
        good: float = Field(1.0, ge=0.0, lt=2.0)

    assert list(of_section(Loose)) == [
        "half: a number",
        "endless: a number",
        "text: a text",
        "many: a list",
        "many[]: a number",
        "inner.: takes inf and nan",
        "inner.width: a number",
    ]


@pytest.mark.parametrize("word", ["Infinity", "-Infinity", "NaN", "1e999", "1e308", "9" * 400])
@pytest.mark.parametrize(
    "key",
    [
        "tasks.findings_weight",
        "training.weight_decay",
        "training.warmup_rounds",
        "training.local_epochs",
        "federation.strategy.proximal_mu",
        "federation.round_timeout",
        "semi_supervision.lungs_weight",
    ],
)
def test_no_number_without_end_on_the_wire(key: str, word: str) -> None:
    text = word
    for part in reversed(key.split(".")):
        text = f'{{"{part}": {text}}}'
    with pytest.raises(PlanError, match=rf"key '{key}': found"):
        plan_from_json(f'{{"name": "a", {text[1:]}')


def test_private_steps_have_a_limit_for_the_whole_plan() -> None:
    for training, rounds in (({"local_steps": 1000}, 1001), ({"local_epochs": 1000.0}, 1001)):
        value = PRIVATE | {
            "training": training | {"max_gradient_norm": None},
            "federation": {"rounds": rounds, "weighting": "declared"},
        }
        with pytest.raises(
            PlanError, match=r"local_steps .* x federation\.rounds: at most 1,000,0"
        ):
            plan_from_json(json.dumps(value))
        value["federation"]["rounds"] = 1000  # type: ignore[index]
        assert plan_from_json(json.dumps(value)).federation.rounds == 1000


def test_a_plan_on_the_wire_has_a_greatest_length() -> None:
    text = json.dumps({"name": "a"})
    assert plan_from_json(text + " " * (MAX_WIRE_BYTES - len(text))).name == "a"
    with pytest.raises(PlanError, match=r"found a plan of 65,537 bytes; allowed: at most 65,536"):
        plan_from_json(text + " " * (MAX_WIRE_BYTES - len(text) + 1))
    with pytest.raises(PlanError, match="found a plan of"):
        plan_from_json("ü" * (MAX_WIRE_BYTES // 2 + 1))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"a":' * 13_000,
        '{"name": "a", ' + ", ".join(f'"k{n}": 1' for n in range(5_000)) + "}",
        '{"name": "a", "simulation": {"lifetime_epsilon": [' + "0," * 32_000 + "0]}}",
        "\ud800",
        "",
    ],
)
def test_bombs_on_the_wire_are_refused_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(PlanError):
        plan_from_json(text)
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "1," * 120_000 + "1]",
        "a: {" + ",".join(f"k{n}: 1" for n in range(25_000)) + "}",
        "".join(f"k{n}: 1\n" for n in range(25_000)),
        "a: 1\n" * 50_000,
        "- " * 131_000,
        "? " * 131_000,
        "a: [" + "[]," * 80_000 + "]",
        "&a " * 80_000,
        "a: '" + "''" * 130_000 + "'",
        'a: "' + "\\x41" * 65_000 + '"',
        "a: " + "\n" * 260_000,
        "a: |\n" + " b\n" * 80_000,
        "a: " + "9" * 260_000,
        "a: " + "b " * 130_000,
        "a" * 260_000,
        "," * 260_000,
        "{a: " + "b, c: " * 40_000,
    ],
)
def test_no_yaml_file_takes_long(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert file.stat().st_size <= MAX_BYTES
    begun = time.process_time()
    with contextlib.suppress(PlanError):
        read_mapping(file, "test keys")
    assert time.process_time() - begun < 3.0


def test_a_file_of_too_many_values_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\nb: [" + "1," * MAX_NODES + "]\n")
    with pytest.raises(PlanError, match=r"line 2: found more than 10,000 keys and values; allowed"):
        load_plan(file)


NUMBERS = st.one_of(
    st.sampled_from([math.inf, -math.inf, math.nan, 1e308, -0.0, 5e-324, 2**63, -(2**63), 10**400]),
    st.booleans(),
    st.integers(-3, 200_000),
    st.floats(allow_nan=True),
    st.floats(1e-6, 1e4),
    st.none(),
    st.text(max_size=5),
    st.lists(st.floats(0, 2), max_size=3),
)


def leaves(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*prefix, name))
        elif (*prefix, name) != ("name",):
            yield (*prefix, name)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(leaves(Plan))), NUMBERS, max_size=4))
def test_any_numbers_are_a_plan_or_one_error_that_names_its_keys(
    changes: dict[tuple[str, ...], Any],
) -> None:
    value: dict[str, Any] = json.loads(json.dumps(PRIVATE))
    for path, new in changes.items():
        inner = value
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = new
    plan = None
    try:
        plan = plan_from_json(json.dumps(value))
    except InputError as refused:
        named = [problem.at for problem in refused.problems]
    if plan is None:
        assert named
        assert all(at.startswith("key '") for at in named)
        return
    assert plan_from_json(plan.to_json()) == plan
    json.dumps(plan.model_dump(mode="json"), allow_nan=False)
