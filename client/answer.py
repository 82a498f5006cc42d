"""How a site answers the server: one parcel in, one parcel out, whatever happens.

Only error codes cross the border. The text of an error, with its paths and values, goes to
the site's own log. Knows nothing of Flower.
"""

import logging
import re
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from client.guard import check_leaving, check_metrics
from client.settings import SITE_FILE
from client.site import Site
from common.checkpoint import array_sha256, read_arrays, write_arrays
from common.errors import ConsiliumError, InputError, Problem, RefusedError
from common.model import build_model
from common.parameters import Flat, Layout, shared_layout
from common.plan import Plan, plan_from_json
from common.update import Broadcast
from common.wire import Parcel, Scalar, pack_update, unpack_broadcast

Handler = Callable[[Site, Parcel], Parcel]

# A process keeps its sites: model, cache and device stay warm. Beside each, its site.yaml as read.
_sites: dict[Path, tuple[bytes, Site]] = {}


class BaseMissingError(ConsiliumError):
    """The server did not send the base parameters, and this site does not hold them."""

    code = "base-missing"


def answer(action: str, parcel: Parcel, folder: Path) -> Parcel:
    """Do what the server asks ("hello", "train" or "finish") with the site in `folder`.

    Never raises: an error becomes its code, and its text goes to reports/site.log.
    """
    name, started, slot = folder.name, time.monotonic(), None
    try:
        site = open_once(folder)
        name, slot = site.name, site.policy.reply_slot
        return _HANDLERS[action](site, parcel)
    except RefusedError as error:
        _log(folder, f"{action}: {error.code}: {error}")
        return _refusal(name, error.code, error.fits if _discloses(folder) else None)
    except BaseMissingError as error:
        return _refusal(name, error.code)
    except ConsiliumError as error:
        _log(folder, f"{action}: {error.code}: {error}")
        return _refusal(name, error.code)
    except Exception:
        _log(folder, f"{action}: internal error\n{traceback.format_exc()}")
        return _refusal(name, "internal")
    finally:
        if slot is not None and action != "hello":
            # How long the work took tells of the data: every answer leaves at a full slot.
            time.sleep(slot - (time.monotonic() - started) % slot)


def _discloses(folder: Path) -> bool:
    return folder in _sites and _sites[folder][1].policy.disclose_spend


def open_once(folder: Path) -> Site:
    """The site of a folder, opened on first use in this process, and again when it changed.

    A policy that the hospital has just made stricter must hold for the very next message.
    """
    file = folder / SITE_FILE
    written = file.read_bytes() if file.exists() else b""
    if folder not in _sites or _sites[folder][0] != written:
        _sites[folder] = (written, Site.open(folder))
    return _sites[folder][1]


def forget(folder: Path) -> None:
    """Let go of an opened site and its model, in a process that goes on to other sites."""
    _sites.pop(folder, None)


def site_folder(sites: Path, partition: int) -> Path:
    """The folder of the simulated site with this number: they count in order of their names.

    Raises InputError when there are fewer.
    """
    folders = sorted(path.parent for path in sites.glob("*/site.yaml"))
    if partition >= len(folders):
        found, allowed = f"{len(folders)} site folders", f"at least {partition + 1}"
        raise InputError(Problem(str(sites), "", found, allowed, "Ask for fewer sites."))
    return folders[partition]


def _hello(site: Site, parcel: Parcel) -> Parcel:
    file = _base_file(site, str(parcel.config["base_sha256"]))
    return Parcel({}, {"site": site.name, "holds_base": file.exists()}, {})


def _train(site: Site, parcel: Parcel) -> Parcel:
    broadcast, plan, shared = _received(site, parcel)
    update = site.train(plan, broadcast.round, shared)
    check_leaving(update, plan, broadcast.round, site.folder.settings, _layout(broadcast.plan_json))
    leaving = pack_update(update, plan.federation.wire)
    site.gate.sent("train", plan, broadcast.round, leaving)
    return leaving


def _finish(site: Site, parcel: Parcel) -> Parcel:
    broadcast, plan, shared = _received(site, parcel)
    metrics = site.finish(plan, broadcast.round, shared).metrics
    check_metrics(metrics, plan)
    leaving = Parcel({}, {"site": site.name}, metrics)
    site.gate.sent("finish", plan, broadcast.round, leaving)
    return leaving


_HANDLERS: dict[str, Handler] = {"hello": _hello, "train": _train, "finish": _finish}


def _received(site: Site, parcel: Parcel) -> tuple[Broadcast, Plan, Flat]:
    """The broadcast, its plan, and the shared parameters (P,) float32: base + delta."""
    broadcast = unpack_broadcast(parcel)
    base = _base(site, broadcast)
    return broadcast, plan_from_json(broadcast.plan_json), base + broadcast.delta


def _base(site: Site, broadcast: Broadcast) -> Flat:
    """The base parameters: those sent along, which are kept, or those kept before."""
    file = _base_file(site, broadcast.base_sha256)
    if broadcast.base is not None:
        if array_sha256(broadcast.base) != broadcast.base_sha256:
            raise InputError(
                Problem("broadcast", "base", "other bytes", "those of its SHA-256", "Send again.")
            )
        write_arrays(file, {"shared": broadcast.base})
        for other in file.parent.glob("base-*.safetensors"):
            if other != file:
                other.unlink(missing_ok=True)
        return broadcast.base
    if not file.exists():
        raise BaseMissingError("the base parameters are not here")
    base = read_arrays(file)["shared"]
    if array_sha256(base) != broadcast.base_sha256:
        file.unlink()
        raise BaseMissingError("the base parameters on disk are damaged")
    return base


def _base_file(site: Site, sha256: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # it becomes a file name
        raise InputError(Problem("broadcast", "base_sha256", sha256, "64 hex digits", "Mend it."))
    return site.folder.state / f"base-{sha256}.safetensors"


@lru_cache(maxsize=4)
def _layout(plan_json: str) -> Layout:
    """The layout that the plan's model has, whatever weights it starts from."""
    plan = plan_from_json(plan_json)
    bare = plan.model_copy(update={"model": plan.model.model_copy(update={"pretrained": "none"})})
    return shared_layout(build_model(bare), plan.heads)


def _refusal(site: str, code: str, fits: int | None = None) -> Parcel:
    """fits: training steps that the budget still allows, if the site tells."""
    more: dict[str, Scalar] = {} if fits is None else {"fits": fits}
    return Parcel({}, {"site": site, "error": code, **more}, {})


def _log(folder: Path, text: str) -> None:
    """Append to the site's log. A log that can't be written must not silence the answer."""
    try:
        (folder / "reports").mkdir(exist_ok=True)
        handler = logging.FileHandler(folder / "reports" / "site.log", encoding="utf-8")
    except OSError:
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.emit(logging.LogRecord("site", logging.ERROR, "", 0, text, None, None))
    handler.close()
