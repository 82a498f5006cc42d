"""What travels: 16-bit deltas, and a server that believes nothing."""

import json
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejectedError
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
    ],
)
def test_a_malformed_update_is_rejected_by_name(parcel: Parcel, detail: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        unpack_update(parcel)
    assert caught.value.site == "ward"
    assert caught.value.code == "schema"
    assert detail in caught.value.detail


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
