"""A ClientApp whose sites may misbehave, as the file `fault` in a site folder says.

It is shipped in place of client/app.py and changes the site's answer after the site's own
guard has seen it: what a broken or hostile site could send.
"""

import os

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from client.app import courier, own_folder

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return courier("hello", message, context)


@app.query("finish")
def finish(message: Message, context: Context) -> Message:
    return courier("finish", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    folder = own_folder(context.node_config, os.environ)
    reply = courier("train", message, context)
    file = folder / "fault"
    fault = file.read_text() if file.exists() else ""
    if fault == "raise":
        raise RuntimeError(f"text with a path, {folder}")
    if fault in ("nan", "layout"):
        delta = reply.content.array_records["arrays"]["delta"].numpy().copy()
        if fault == "nan":
            delta[7] = 0x7FC0  # a NaN in bfloat16
        else:
            delta = delta[:100]
        reply.content["arrays"] = ArrayRecord({"delta": Array(np.ascontiguousarray(delta))})
    return reply
