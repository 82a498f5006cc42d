"""Updates and broadcasts as plain arrays and numbers: the form in which they travel.

Flower's ArrayRecord refuses bfloat16, so bf16 goes as raw 16-bit words with the format named
beside them. Nothing here knows Flower: the apps at the edge wrap these three dictionaries
into its records.
"""

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError

from common.errors import UpdateRejectedError
from common.findings import FINDINGS, LUNGS
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

# What a site's answer may hold: several times what any real one does.
MOST_ARRAYS, MOST_VALUES, MOST_METRICS = 1, 20, 200
KEY_LENGTH = 80  # characters; of the names of arrays, values and metrics
TEXT_LENGTH = 64  # characters; of names and hashes
COVERABLE = (*FINDINGS, LUNGS)


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


def check_parcel(parcel: Parcel) -> None:
    """Raise ValueError when a site's answer has too many parts, or too long names of them.

    Comes before anything else is read: what follows may go through all parts, and print a name.
    """
    for what, part, most in (
        ("arrays", parcel.arrays, MOST_ARRAYS),
        ("values", parcel.config, MOST_VALUES),
        ("metrics", parcel.metrics, MOST_METRICS),
    ):
        if len(part) > most:
            raise ValueError(f"{len(part)} {what}, at most {most}")
        for name in part:
            if not isinstance(name, str) or len(name) > KEY_LENGTH:
                raise ValueError(f"{shown(name)} is no name of one of the {what}")


def shown(value: object) -> str:
    """A value from a site as a message may show it: shortened, without control characters."""
    return reprlib.repr(value)


def unpack_update(parcel: Parcel, size: int | None = None) -> Update:
    """Read a parcel that came from a site; the server trusts nothing in it.

    size: P, how many parameters travel; None: any number. Sizes and types are looked at before
    anything is converted. Raises UpdateRejectedError: "schema" when a part is missing, of a wrong
    type or too large, or a metric is not what `unpack_metrics` takes; "layout" when delta has
    another size; "coverage" when covers are not findings, each once.
    """
    config = parcel.config
    site = "?"
    try:
        check_parcel(parcel)
        site = _text(config, "site")
        return Update(
            schema=int(_number(config["schema"])),
            plan_sha256=_text(config, "plan"),
            round=int(_number(config["round"])),
            site=site,
            layout_sha256=_text(config, "layout"),
            delta=_delta(parcel, site, size),
            weight=float(_number(config["weight"])),
            covers=_covers(config["covers"], site),
            metrics=unpack_metrics(parcel.metrics),
            seconds=float(_number(config["seconds"])),
            spent=_spent(config.get("spent")),
        )
    except KeyError as error:
        raise UpdateRejectedError(site, "schema", f"{error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UpdateRejectedError(site, "schema", str(error)) from None


def _text(config: Mapping[str, Scalar], key: str) -> str:
    """A short text. Raises KeyError when there is none, ValueError when it is something else."""
    value = config[key]
    if not isinstance(value, str) or len(value) > TEXT_LENGTH:
        raise ValueError(f"{key} is {shown(value)}, not a text of at most {TEXT_LENGTH} letters")
    return value


def _delta(parcel: Parcel, site: str, size: int | None) -> Flat:
    words = parcel.arrays["delta"]
    if not isinstance(words, np.ndarray):
        raise TypeError("delta is no array")
    if size is not None and words.size != size:
        raise UpdateRejectedError(site, "layout", f"{words.size} parameters, not {size}")
    return unpack(words, _text(parcel.config, "wire"))


def _covers(names: object, site: str) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise TypeError("covers is not a list")
    detail = ""
    if len(names) > len(COVERABLE):
        detail = f"{len(names)} names, at most {len(COVERABLE)}"
    elif unknown := [name for name in names if name not in COVERABLE]:
        detail = f"unknown finding {shown(unknown[0])}"
    elif len(set(names)) < len(names):
        detail = "a finding is named twice"
    if detail:
        raise UpdateRejectedError(site, "coverage", detail)
    return tuple(names)


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

    Flower's MetricRecord also carries lists. Raises ValueError for the first that is wrong, or
    when there are more than MOST_METRICS.
    """
    if len(metrics) > MOST_METRICS:
        raise ValueError(f"{len(metrics)} metrics, at most {MOST_METRICS}")
    checked = {}
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is no name of a metric")
        # A NaN compares false, too.
        if not (isinstance(value, float) and math.fabs(value) <= METRIC_LIMIT):
            raise ValueError(
                f"metric {name} is {shown(value)}, not a number within {METRIC_LIMIT:g}"
            )
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
        raise TypeError(f"{shown(value)} is not a number")
    return value
