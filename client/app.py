"""The Flower ClientApp: a courier between Flower's messages and the site's answers.

Which folder is the site's, only its own machine says: the run configuration, which comes from the
coordinator, is not read here.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch  # noqa: F401  Flower converts arrays with torch only if the app's module has it
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.answer import answer, site_folder
from common.errors import ConsiliumError, InputError, Problem
from common.home import SITES, demo_folder
from common.wire import Parcel, Scalar

app = ClientApp()

NODES = "num-partitions"


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which site this is."""
    return courier("hello", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return courier("train", message, context)


@app.query("finish")
def finish(message: Message, context: Context) -> Message:
    """Fit the site's final heads."""
    return courier("finish", message, context)


def courier(action: str, message: Message, context: Context) -> Message:
    """Carry a message to the site and its answer back.

    Never raises and always replies: Flower would send an exception's text to the server, and
    a missing reply freezes the node.
    """
    try:
        folder = own_folder(context.node_config, os.environ)
        parcel = answer(action, _to_parcel(message.content), folder)
    except ConsiliumError as error:
        parcel = Parcel({}, {"error": error.code}, {})
    except Exception:
        parcel = Parcel({}, {"error": "internal"}, {})
    return Message(_to_records(parcel), reply_to=message)


def own_folder(node: Mapping[str, object], environment: Mapping[str, str]) -> Path:
    """The folder of this node's site.

    node: the node's own configuration. Its "site-folder" is the site's folder (deployment); else
    its "partition-id" counts the site folders of a simulation, which lie in the folder that the
    environment variable CONSILIUM_SITES names, or are the demo of plain `flwr run .`.
    Raises InputError when it says neither, or no absolute folder.
    """
    folder, number, nodes = (node.get(key) for key in ("site-folder", "partition-id", NODES))
    if folder is not None:
        if not (isinstance(folder, str) and Path(folder).is_absolute()):
            raise _refused(f"site-folder {folder!r}")
        return Path(folder).resolve()
    sites = environment.get(SITES, "")
    if not _counts(number) or (sites and not Path(sites).is_absolute()):
        raise _refused(f"partition-id {number!r} and {SITES} {sites!r}")
    if not sites:
        if not _counts(nodes):
            raise _refused(f"no {SITES}, and {NODES} {nodes!r}")
        sites = str(demo_folder(int(str(nodes))) / "sites")
    return site_folder(Path(sites).resolve(), int(str(number)))


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refused(found: str) -> InputError:
    allowed = f"site-folder, an absolute path; or partition-id and {SITES} in the environment"
    step = "Give the node its folder: --node-config 'site-folder=\"/abs/site\"'."
    return InputError(Problem("node configuration", "", found, allowed, step))


def _to_parcel(content: RecordDict) -> Parcel:
    arrays = {name: value.numpy() for name, value in content.array_records["arrays"].items()}
    config = cast(dict[str, Scalar], dict(content.config_records["config"]))
    return Parcel(arrays, config, cast(dict[str, float], dict(content.metric_records["metrics"])))


def _to_records(parcel: Parcel) -> RecordDict:
    arrays = ArrayRecord({name: Array(value) for name, value in parcel.arrays.items()})
    metrics = MetricRecord(dict(parcel.metrics))
    config = ConfigRecord(dict(parcel.config))
    return RecordDict({"arrays": arrays, "config": config, "metrics": metrics})
