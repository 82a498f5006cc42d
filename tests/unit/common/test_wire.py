"""What travels: 16-bit deltas, and a server that believes nothing."""

import json
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejectedError
from common.findings import FINDINGS
from common.update import SCHEMA, Broadcast, Spent, Update
from common.wire import (
    Parcel,
    Wire,
    pack,
    pack_broadcast,
    pack_update,
    unpack,
    unpack_broadcast,
    unpack_update,
)

DELTA = np.linspace(-1, 1, 1001, dtype=np.float32)


def make_update(delta: npt.NDArray[np.float32] = DELTA) -> Update:
    return Update(
        schema=SCHEMA,
        plan_sha256="p",
        round=3,
        site="ward",
        layout_sha256="l",
        delta=delta,
        weight=12.0,
        covers=("Mass", "lungs"),
        metrics={"val_macro_auroc": 0.7},
        seconds=1.5,
    )


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_bf16_keeps_eight_bits(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    back = unpack(pack(array, "bf16"), "bf16")
    # 2**-8 relative; below the normal range of float32 the step is absolute.
    assert (np.abs(back - array) <= np.abs(array) * 2**-8 + 1e-38).all()


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    tie_up, tie_down = 1 + 3 * 2**-8, 1 + 2**-8
    back = unpack(pack(np.array([tie_up, tie_down, np.nan, np.inf], np.float32), "bf16"), "bf16")
    assert back[0] == 1 + 4 * 2**-8
    assert back[1] == 1.0
    assert np.isnan(back[2])
    assert np.isinf(back[3])


@pytest.mark.parametrize(("wire", "bytes_each"), [("bf16", 2), ("fp32", 4)])
def test_an_update_survives_the_journey(wire: Wire, bytes_each: int) -> None:
    parcel = pack_update(make_update(), wire)
    assert parcel.bytes == bytes_each * len(DELTA)
    back = unpack_update(parcel)
    assert np.abs(back.delta - DELTA).max() <= (0 if wire == "fp32" else 2**-8)
    assert replace(back, delta=DELTA).__dict__ == make_update().__dict__


def changed(**config: object) -> Parcel:
    parcel = pack_update(make_update(), "bf16")
    return Parcel(parcel.arrays, {**parcel.config, **config}, parcel.metrics)  # type: ignore[arg-type]


def measured(**metrics: object) -> Parcel:
    parcel = pack_update(make_update(), "bf16")
    return Parcel(parcel.arrays, parcel.config, metrics)  # type: ignore[arg-type]


def without(key: str) -> Parcel:
    parcel = pack_update(make_update(), "bf16")
    config = {name: value for name, value in parcel.config.items() if name != key}
    return Parcel(parcel.arrays, config, parcel.metrics)


@pytest.mark.parametrize(
    ("parcel", "detail"),
    [
        (without("weight"), "weight is missing"),
        (changed(weight="much"), "'much' is not a number"),
        (changed(round=True), "True is not a number"),
        (changed(round=float("inf")), "cannot convert float infinity"),
        (changed(schema=float("inf")), "cannot convert float infinity"),
        (changed(weight=10**400), "too large"),
        (changed(covers="Mass"), "covers is not a list"),
        (measured(val_dice=[0.5, 0.6]), "metric val_dice is [0.5, 0.6], not a number"),
        (measured(val_dice=True), "metric val_dice is True"),
        (measured(val_dice=float("nan")), "metric val_dice is nan"),
        (measured(val_dice=-1e308), "metric val_dice is -1e+308, not a number within 1e+06"),
        (measured(patient=1.0), "'patient' is no name of a metric"),
        (changed(wire="fp8"), "does not hold 'fp8' values"),
        (changed(wire="fp32"), "a 1-d int16 array does not hold 'fp32' values"),
        (Parcel({}, pack_update(make_update(), "bf16").config, {}), "delta is missing"),
        (
            Parcel({"delta": [1]}, pack_update(make_update(), "bf16").config, {}),
            "delta is no array",
        ),
        (changed(plan="x" * 65), "plan is 'xxxx"),
        (changed(layout=["x"]), "layout is ['x'], not a text of at most 64 letters"),
        (changed(wire=b"bf16"), "wire is b'bf16', not a text"),
        (changed(weight=[1.0] * 2_000_000), "is not a number"),
        (measured(val_dice=[0.5] * 2_000_000), "metric val_dice is [0.5, 0.5,"),
    ],
)
def test_a_malformed_update_is_rejected_by_name(parcel: Parcel, detail: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        unpack_update(parcel)
    assert caught.value.site == "ward"
    assert caught.value.code == "schema"
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("parcel", "detail"),
    [
        (measured(**{f"val_{number}": 0.0 for number in range(201)}), "201 metrics, at most 200"),
        (changed(**{f"key{number}": 0 for number in range(20)}), "29 values, at most 20"),
        (changed(**{"k" * 81: 0}), "is no name of one of the values"),
        (measured(**{"\x1b[2J" * 30: 0.0}), "is no name of one of the metrics"),
        (changed(site="x" * 10_000), "site is 'xxx"),
        (changed(site=7), "site is 7, not a text"),
        (
            Parcel(dict.fromkeys(("delta", "more"), np.zeros(3)), {}, {}),
            "2 arrays, at most 1",
        ),
    ],
)
def test_an_answer_of_too_many_parts_is_rejected_before_it_is_read(
    parcel: Parcel, detail: str
) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        unpack_update(parcel)
    assert (caught.value.site, caught.value.code) == ("?", "schema")
    assert detail in caught.value.detail
    assert len(caught.value.detail) < 200
    assert caught.value.detail.isprintable()


def test_200_metrics_are_not_too_many() -> None:
    metrics = {f"val_{number}": 0.5 for number in range(200)}
    assert unpack_update(measured(**metrics)).metrics == metrics


@pytest.mark.parametrize(
    ("covers", "detail"),
    [
        (["Edema"] * 2_000_000, "2000000 names, at most 15"),
        (["Edema", "Mass", "Edema"], "a finding is named twice"),
        (["Edema", "Broken Heart"], "unknown finding 'Broken Heart'"),
        (["\x1b[2J"], r"unknown finding '\x1b[2J'"),
        ([["Edema"]], "unknown finding ['Edema']"),
        ([7], "unknown finding 7"),
    ],
)
def test_what_a_site_covers_are_known_findings_each_once(covers: list[str], detail: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        unpack_update(changed(covers=covers))
    assert (caught.value.site, caught.value.code) == ("ward", "coverage")
    assert caught.value.detail == detail


def test_a_site_may_cover_everything() -> None:
    everything = (*FINDINGS, "lungs")
    assert len(everything) == 15
    assert unpack_update(changed(covers=list(everything))).covers == everything


@pytest.mark.parametrize("size", [1000, 1002])
def test_another_size_is_rejected_before_it_is_converted(size: int) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        unpack_update(pack_update(make_update(), "bf16"), size)
    assert (caught.value.code, caught.value.detail) == ("layout", f"1001 parameters, not {size}")
    assert unpack_update(pack_update(make_update(), "bf16"), 1001).delta.shape == (1001,)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**5000),
    st.floats(),
    st.text(max_size=70),
    st.binary(max_size=9),
    st.lists(st.one_of(st.text(max_size=5), st.sampled_from(FINDINGS)), max_size=20),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)
KEYS = st.one_of(
    st.sampled_from([*pack_update(make_update(), "bf16").config, "spent", "error", "fits"]),
    st.text(max_size=90),
)
ARRAYS = st.one_of(
    ODD,
    st.builds(
        np.zeros,
        st.sampled_from([(), (0,), (1001,), (1000,), (1001, 1), (3, 3)]),
        st.sampled_from(["int16", "float32", "float64", "int64", "bool", "S3", "complex64", ">i2"]),
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> Parcel:
    """A good update of which any part may be changed, added or left out."""
    good = pack_update(make_update(), "bf16")
    left_out = draw(st.sets(st.sampled_from(sorted(good.config)), max_size=2))
    config = {key: value for key, value in good.config.items() if key not in left_out}
    config |= draw(st.dictionaries(KEYS, ODD, max_size=3))
    names = st.one_of(st.just("delta"), st.text(max_size=5))
    arrays = good.arrays | draw(st.dictionaries(names, ARRAYS, max_size=1))
    metric = st.one_of(st.just("val_dice"), st.text(max_size=90))
    metrics = good.metrics | draw(st.dictionaries(metric, ODD, max_size=3))
    return Parcel(arrays, config, metrics)


@given(mutated())
def test_whatever_a_site_sends_is_an_update_or_a_rejection(parcel: Parcel) -> None:
    try:
        update = unpack_update(parcel, 1001)
    except UpdateRejectedError:
        return
    assert update.delta.shape == (1001,)
    assert update.delta.dtype == np.float32
    assert set(update.covers) <= {*FINDINGS, "lungs"}
    assert all(abs(value) <= 1e6 for value in update.metrics.values())


def test_a_base_travels_in_full_precision() -> None:
    base = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    broadcast = Broadcast("{}", 2, "sha", DELTA, base)
    back = unpack_broadcast(pack_broadcast(broadcast, "bf16"))
    assert back.base is not None
    assert (back.base == base).all()
    assert (back.plan_json, back.round, back.base_sha256) == ("{}", 2, "sha")
    assert unpack_broadcast(pack_broadcast(replace(broadcast, base=None), "bf16")).base is None


SPENT = Spent("patient", 1.5, 1e-5, 8.0, 1.1, 0.25, 40, 1.0, 17, "a" * 64)


@pytest.mark.parametrize("spent", [SPENT, replace(SPENT, epsilon=None, cap=None)])
def test_what_is_told_of_the_budget_survives_the_journey(spent: Spent) -> None:
    parcel = pack_update(replace(make_update(), spent=spent), "bf16")
    assert unpack_update(parcel).spent == spent


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": -1.0},
        {"epsilon": 1e300},
        {"entries": 1.5},
        {"entries": -1},
        {"unit": "study"},
        {"head": "<script>"},
        {"steps": "40"},
    ],
)
def test_a_strange_word_on_the_budget_is_rejected(change: dict[str, object]) -> None:
    text = json.dumps(asdict(SPENT) | change)
    with pytest.raises(UpdateRejectedError, match="spent"):
        unpack_update(changed(spent=text))


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", 7, "x" * 3000])
def test_what_is_no_word_on_the_budget_is_rejected(text: object) -> None:
    with pytest.raises(UpdateRejectedError, match="spent"):
        unpack_update(changed(spent=text))
