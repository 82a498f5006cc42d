"""The Flower ClientApp: a courier between Flower's messages and the site's answers."""

from pathlib import Path
from typing import cast

import torch  # noqa: F401  Flower converts arrays with torch only if the app's module has it
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.answer import answer, site_folder
from common.errors import ConsiliumError
from common.home import demo_folder
from common.wire import Parcel, Scalar

app = ClientApp()


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
        node = context.node_config
        asked = str(context.run_config["sites"])
        sites = Path(asked) if asked else demo_folder(int(node["num-partitions"])) / "sites"
        folder = site_folder(sites, int(node["partition-id"]))
        parcel = answer(action, _to_parcel(message.content), folder)
    except ConsiliumError as error:
        parcel = Parcel({}, {"error": error.code}, {})
    except Exception:
        parcel = Parcel({}, {"error": "internal"}, {})
    return Message(_to_records(parcel), reply_to=message)


def _to_parcel(content: RecordDict) -> Parcel:
    arrays = {name: value.numpy() for name, value in content.array_records["arrays"].items()}
    config = cast(dict[str, Scalar], dict(content.config_records["config"]))
    return Parcel(arrays, config, cast(dict[str, float], dict(content.metric_records["metrics"])))


def _to_records(parcel: Parcel) -> RecordDict:
    arrays = ArrayRecord({name: Array(value) for name, value in parcel.arrays.items()})
    metrics = MetricRecord(dict(parcel.metrics))
    config = ConfigRecord(dict(parcel.config))
    return RecordDict({"arrays": arrays, "config": config, "metrics": metrics})
