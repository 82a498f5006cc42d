"""How a site answers the server: one parcel in, one parcel out, whatever happens.

Only error codes cross the border. The text of an error, with its paths and values, goes to
the site's own log. Knows nothing of Flower.
"""

import re
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from client.border.deadline import Due, afterwards, end, in_time
from client.border.gate import NotChargedError
from client.border.guard import check_leaving, check_metrics
from client.notes import log
from client.settings import SITE_FILE
from client.site import Site
from common.checkpoint import array_sha256, read_arrays, write_arrays
from common.errors import (
    ConsiliumError,
    FailedError,
    InputError,
    LayoutError,
    Problem,
    RefusedError,
)
from common.model import build_model
from common.parameters import Flat, Layout, shared_layout
from common.plan import Plan, plan_from_json
from common.update import Broadcast, Update
from common.wire import Parcel, Scalar, pack_update, unpack_broadcast

Handler = Callable[[Site, Parcel, Due], Parcel]

# A process keeps its sites: model, cache and device stay warm. Beside each, its site.yaml as read.
_sites: dict[Path, tuple[bytes, Site]] = {}


class BaseMissingError(ConsiliumError):
    """The server did not send the base parameters, and this site does not hold them."""

    code = "base-missing"


def answer(action: str, parcel: Parcel, folder: Path) -> Parcel:
    """Do what the server asks ("hello", "train" or "finish") with the site in `folder`.

    Never raises: an error becomes its code, and its text goes to reports/site.log. Once a private
    question is admitted, by policy, ledger and public words alone, its answer leaves at the
    policy's deadline, and whatever goes wrong has the one code `failed`.
    """
    name, policy, due = folder.name, None, Due()
    try:
        site = open_once(folder)
        name, policy = site.name, site.policy
        return _HANDLERS[action](site, parcel, due)
    except RefusedError as error:
        log(folder / "reports", f"{action}: {error.code}: {error}")
        tells = policy is not None and policy.disclose_spend
        return _refusal(name, error.code, error.fits if tells else None)
    except BaseMissingError as error:
        return _refusal(name, error.code)
    except ConsiliumError as error:
        log(folder / "reports", f"{action}: {error.code}: {error}")
        return _refusal(name, error.code)
    except Exception:
        log(folder / "reports", f"{action}: internal error\n{traceback.format_exc()}")
        return _refusal(name, "internal")
    finally:
        due.wait()


def open_once(folder: Path) -> Site:
    """The site of a folder, opened on first use in this process, and again when it changed.

    A policy that the hospital has just made stricter must hold for the very next message.
    """
    file = folder / SITE_FILE
    written = file.read_bytes() if file.exists() else b""
    if folder not in _sites or _sites[folder][0] != written:
        _sites[folder] = (written, Site.open(folder))
    site = _sites[folder][1]
    site.look_again()
    return site


def forget(folder: Path) -> None:
    """Let go of an opened site and its model, in a process that goes on to other sites.

    Waits for what the site still does for itself.
    """
    opened = _sites.pop(folder, None)
    if opened is not None:
        end(opened[1].folder.state)


def site_folder(sites: Path, partition: int) -> Path:
    """The folder of the simulated site with this number: they count in order of their names.

    Raises InputError when there are fewer.
    """
    folders = sorted(path.parent for path in sites.glob("*/site.yaml"))
    if partition >= len(folders):
        found, allowed = f"{len(folders)} site folders", f"at least {partition + 1}"
        raise InputError(Problem(str(sites), "", found, allowed, "Ask for fewer sites."))
    return folders[partition]


def _hello(site: Site, parcel: Parcel, due: Due) -> Parcel:
    file = _base_file(site, str(parcel.config["base_sha256"]))
    return Parcel({}, {"site": site.name, "holds_base": file.exists()}, {})


def _train(site: Site, parcel: Parcel, due: Due) -> Parcel:
    question, plan, shared = _received(site, parcel)
    needs = site.gate.admit("train", plan, question.round)
    if needs is None:
        _keep_base(site, question)
        return _leaving(site, plan, question, site.train(plan, question.round, shared))
    due.at(site.policy.deadline)

    def work() -> Parcel:
        _keep_base(site, question)
        update = site.update(needs, plan, question.round, shared, due.until)
        return _leaving(site, plan, question, update)

    local = partial(site.note_scores, plan, question.round, due.until)
    return _alike(lambda: in_time(site.folder.state, due.until, work, local))


def _leaving(site: Site, plan: Plan, question: Broadcast, update: Update) -> Parcel:
    """An update as it leaves, checked and recorded."""
    layout = _layout(question.plan_json)
    check_leaving(update, plan, question.round, site.folder.settings, layout)
    leaving = pack_update(update, plan.federation.wire)
    site.gate.sent("train", plan, question.round, leaving)
    return leaving


def _finish(site: Site, parcel: Parcel, due: Due) -> Parcel:
    question, plan, shared = _received(site, parcel)
    number = question.round
    if site.gate.admit("finish", plan, number) is None:
        _keep_base(site, question)
        return _told(site, plan, number, site.finish(plan, number, shared).metrics)
    due.at(site.policy.deadline)
    place, local = site.folder.state, partial(site.settle, plan, number, shared, due.until)
    if site.policy.metrics != "noised":
        # A constant, whatever the site is busy with: nothing is worked out for it.
        leaving = _alike(lambda: _told(site, plan, number, {}))
        afterwards(place, due.until, local)
        return leaving

    def work() -> Parcel:
        return _told(site, plan, number, site.told(plan, number, shared))

    return _alike(lambda: in_time(place, due.until, work, local))


def _told(site: Site, plan: Plan, number: int, metrics: dict[str, float]) -> Parcel:
    """The answer to a finish as it leaves, checked and recorded."""
    check_metrics(metrics, plan)
    leaving = Parcel({}, {"site": site.name}, metrics)
    site.gate.sent("finish", plan, number, leaving)
    return leaving


_HANDLERS: dict[str, Handler] = {"hello": _hello, "train": _train, "finish": _finish}


def _alike(work: Callable[[], Parcel]) -> Parcel:
    """What the work gives. Raises FailedError for whatever goes wrong in it: one code for all.

    Only that the ledger would not pay keeps its code: no pixel had a say in it.
    """
    try:
        return work()
    except NotChargedError:
        raise
    except ConsiliumError as error:  # its own words say what to do
        raise FailedError(f"{error.code}: {error}") from None
    except Exception as error:
        raise FailedError("".join(traceback.format_exception(error))) from None


def _received(site: Site, parcel: Parcel) -> tuple[Broadcast, Plan, Flat]:
    """The broadcast, its plan, and the shared parameters (P,) float32: base + delta.

    Nothing is written, for nothing is admitted yet. Raises LayoutError for parameters that are
    not the plan's, by the plan alone.
    """
    broadcast = unpack_broadcast(parcel)
    base, plan = _base(site, broadcast), plan_from_json(broadcast.plan_json)
    layout = _layout(broadcast.plan_json)
    if base.shape != (layout.size,) or broadcast.delta.shape != (layout.moving,):
        found = f"{base.shape} and {broadcast.delta.shape} numbers"
        allowed = f"({layout.size},) and ({layout.moving},), the layout of the plan's model"
        raise LayoutError(Problem("broadcast", "base, delta", found, allowed, "Send again."))
    return broadcast, plan, layout.moved(base, broadcast.delta)


def _base(site: Site, broadcast: Broadcast) -> Flat:
    """The base parameters: those sent along, or those kept before."""
    file = _base_file(site, broadcast.base_sha256)
    if broadcast.base is not None:
        if array_sha256(broadcast.base) != broadcast.base_sha256:
            raise InputError(
                Problem("broadcast", "base", "other bytes", "those of its SHA-256", "Send again.")
            )
        return broadcast.base
    if not file.exists():
        raise BaseMissingError("the base parameters are not here")
    base = read_arrays(file)["shared"]
    if array_sha256(base) != broadcast.base_sha256:
        file.unlink()
        raise BaseMissingError("the base parameters on disk are damaged")
    return base


def _keep_base(site: Site, broadcast: Broadcast) -> None:
    """Keep the base parameters that came along, in the place of those before."""
    if broadcast.base is None:
        return
    file = _base_file(site, broadcast.base_sha256)
    write_arrays(file, {"shared": broadcast.base})
    for other in file.parent.glob("base-*.safetensors"):
        if other != file:
            other.unlink(missing_ok=True)


def _base_file(site: Site, sha256: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # it becomes a file name
        raise InputError(Problem("broadcast", "base_sha256", sha256, "64 hex digits", "Mend it."))
    return site.folder.state / f"base-{sha256}.safetensors"


@lru_cache(maxsize=4)
def _layout(plan_json: str) -> Layout:
    """The layout that the plan's model has, whatever weights it starts from."""
    plan = plan_from_json(plan_json)
    return shared_layout(build_model(plan, pretrained=False), plan.heads)


def _refusal(site: str, code: str, fits: int | None = None) -> Parcel:
    """fits: training steps that the budget still allows, if the site tells."""
    more: dict[str, Scalar] = {} if fits is None else {"fits": fits}
    return Parcel({}, {"site": site, "error": code, **more}, {})
