"""Updates and broadcasts as plain arrays and numbers: the form in which they travel.

Flower's ArrayRecord refuses bfloat16, so bf16 goes as raw 16-bit words with the format named
beside them. Nothing here knows Flower: the apps at the edge wrap these three dictionaries
into its records.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError

from common.errors import UpdateRejectedError
from common.parameters import Flat
from common.update import Broadcast, Spent, Update

Wire = Literal["bf16", "fp32"]
Scalar = int | float | str | bool | list[str]

# Losses and scores, as a site's guard lets them out. No real one comes near the limit; beyond
# it, a mean over the sites could overflow.
METRIC_NAME = re.compile(r"(train|val)_[A-Za-z0-9_]{1,60}")
METRIC_LIMIT = 1e6
NOISED = "val_noised_"  # begins the names of metrics that are noised and charged
SPENT_LENGTH = 2000  # characters of what a site tells of its budget


@dataclass(frozen=True)
class Parcel:
    """One message's content: arrays, plain configuration values, and metrics."""

    arrays: dict[str, npt.NDArray[Any]]
    config: dict[str, Scalar]
    metrics: dict[str, float]

    @property
    def bytes(self) -> int:
        """Payload size of the arrays in bytes, without the transport's envelope."""
        return sum(array.nbytes for array in self.arrays.values())


def pack(values: Flat, wire: Wire) -> npt.NDArray[Any]:
    """(P,) float32 to (P,) int16 words of bfloat16 (round to nearest even) or to float32."""
    if wire == "fp32":
        return np.ascontiguousarray(values, dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return tensor.to(torch.bfloat16).view(torch.int16).numpy()


def unpack(words: npt.NDArray[Any], wire: str) -> Flat:
    """The inverse of `pack`, (P,) float32. Raises ValueError when dtype and format disagree."""
    expected = {"bf16": np.int16, "fp32": np.float32}.get(wire)
    if expected is None or words.dtype != expected or words.ndim != 1:
        raise ValueError(f"a {words.ndim}-d {words.dtype} array does not hold {wire!r} values")
    if wire == "fp32":
        return words.astype(np.float32, copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(words))
    return tensor.view(torch.bfloat16).float().numpy()


def pack_update(update: Update, wire: Wire) -> Parcel:
    """An update as a parcel; `unpack_update` is its inverse up to bf16 rounding."""
    config: dict[str, Scalar] = {
        "schema": update.schema,
        "plan": update.plan_sha256,
        "round": update.round,
        "site": update.site,
        "layout": update.layout_sha256,
        "wire": wire,
        "covers": list(update.covers),
        "weight": float(update.weight),
        "seconds": float(update.seconds),
    }
    if update.spent is not None:
        config["spent"] = json.dumps(dataclasses.asdict(update.spent), allow_nan=False)
    metrics = {name: float(value) for name, value in update.metrics.items()}
    return Parcel({"delta": pack(update.delta, wire)}, config, metrics)


def unpack_update(parcel: Parcel) -> Update:
    """Read a parcel that came from a site; the server trusts nothing in it.

    Raises UpdateRejectedError with code "schema" when a part is missing or of a wrong type, or
    a metric is not what `unpack_metrics` takes.
    """
    config = parcel.config
    site = str(config.get("site", "?"))
    try:
        covers = config["covers"]
        if not isinstance(covers, list):
            raise TypeError("covers is not a list")
        return Update(
            schema=int(_number(config["schema"])),
            plan_sha256=str(config["plan"]),
            round=int(_number(config["round"])),
            site=str(config["site"]),
            layout_sha256=str(config["layout"]),
            delta=unpack(parcel.arrays["delta"], str(config["wire"])),
            weight=float(_number(config["weight"])),
            covers=tuple(covers),
            metrics=unpack_metrics(parcel.metrics),
            seconds=float(_number(config["seconds"])),
            spent=_spent(config.get("spent")),
        )
    except KeyError as error:
        raise UpdateRejectedError(site, "schema", f"{error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UpdateRejectedError(site, "schema", str(error)) from None


def _spent(text: object) -> Spent | None:
    """What a site told of its budget. Raises ValueError when it is something else."""
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > SPENT_LENGTH:
        raise ValueError("spent is not a short text")
    try:
        return TypeAdapter(Spent).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"spent: {error.errors(include_url=False)[0]['msg']}") from None


def unpack_metrics(metrics: Mapping[str, object]) -> dict[str, float]:
    """Metrics that came from a site: finite floats of at most METRIC_LIMIT, by allowed names.

    Flower's MetricRecord also carries lists. Raises ValueError for the first that is wrong.
    """
    checked = {}
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a metric")
        # A NaN compares false, too.
        if not (isinstance(value, float) and math.fabs(value) <= METRIC_LIMIT):
            raise ValueError(f"metric {name} is {value!r}, not a number within {METRIC_LIMIT:g}")
        checked[name] = float(value)
    return checked


def pack_broadcast(broadcast: Broadcast, wire: Wire) -> Parcel:
    """A broadcast as a parcel. The base, if it goes along, is always float32."""
    arrays: dict[str, npt.NDArray[Any]] = {"delta": pack(broadcast.delta, wire)}
    if broadcast.base is not None:
        arrays["base"] = pack(broadcast.base, "fp32")
    config: dict[str, Scalar] = {
        "plan": broadcast.plan_json,
        "round": broadcast.round,
        "base_sha256": broadcast.base_sha256,
        "wire": wire,
    }
    return Parcel(arrays, config, {})


def unpack_broadcast(parcel: Parcel) -> Broadcast:
    """Read a parcel that came from the server. Raises KeyError or ValueError if malformed."""
    config, base = parcel.config, parcel.arrays.get("base")
    return Broadcast(
        plan_json=str(config["plan"]),
        round=int(_number(config["round"])),
        base_sha256=str(config["base_sha256"]),
        delta=unpack(parcel.arrays["delta"], str(config["wire"])),
        base=None if base is None else unpack(base, "fp32"),
    )


def _number(value: Scalar) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
