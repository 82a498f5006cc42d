"""The Flower ServerApp: settings, Flower's grid as a transport, honest ending."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp

from common.checkpoint import write_json
from common.errors import ConsiliumError, InputError, Problem, escaped
from common.home import ENDING
from common.model import build_model
from common.parameters import flatten, shared_layout
from common.plan import load_plan
from common.wire import Parcel, Scalar, check_parcel
from server.rounds import Federation
from server.run_folder import PROGRESS, STATE, RunFolder, begun, check_run
from server.transport import Reply

app = ServerApp()

_NOTHING = np.zeros(0)  # stands for an array that has not been read
POLL_FIRST, POLL_LAST = 0.1, 0.5  # seconds between two looks for replies
TRANSPORT_ERRORS = {
    value: name.lower().replace("_", "-")
    for name, value in vars(ErrorCode).items()
    if isinstance(value, int)
}


@dataclass(frozen=True)
class Settings:
    """The run configuration of the ServerApp, checked."""

    plan: Path
    run: Path
    resume: bool
    start_timeout: float


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume a federation; on failure record why, then let Flower see the error.

    Raising is what marks Flower's run as failed: a ServerApp that returns is "completed".
    """
    settings = read_settings(context.run_config)
    try:
        _federate(grid, settings)
    except Exception as error:
        _record_failure(settings.run, error)
        raise


def _federate(grid: Grid, settings: Settings) -> None:
    plan = load_plan(settings.plan)
    check_run(settings.run, plan, settings.resume)
    model = build_model(plan)
    layout = shared_layout(model, plan.heads)
    if settings.resume:
        folder = RunFolder.resume(settings.run, plan, layout)
    else:
        folder = RunFolder.create(settings.run, plan, layout, flatten(model, layout))
    progress = settings.run / PROGRESS

    def say(line: str) -> None:
        print(line, flush=True)
        with progress.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    try:
        Federation(plan, layout, folder, FlowerTransport(grid), say, settings.start_timeout).run()
    except Exception as error:
        with suppress(ConsiliumError, OSError):  # a disk that is full must not hide that it is
            folder.fail(*_ending(error))
        raise
    finally:
        folder.close()


def _record_failure(run: Path, error: Exception) -> None:
    """Say why a run ended, beside the run folder, or even in it if it could not begin.

    The state of an earlier run is never overwritten.
    """
    exit_code, reason = _ending(error)
    value = {"schema": 1, "status": "failed", "exit_code": exit_code, "reason": reason}
    if ENDING in os.environ:
        with suppress(ConsiliumError):
            write_json(Path(os.environ[ENDING]), value)
    with suppress(ConsiliumError, OSError):
        if not begun(run):
            write_json(run / STATE, value | {"plan_sha256": None, "round": 0})


def _ending(error: Exception) -> tuple[int, str]:
    """Exit code and reason for state.json."""
    if isinstance(error, ConsiliumError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return 2, f"{escaped(os.fsdecode(error.filename))}: {error.strerror}"
    return 1, f"internal error: {type(error).__name__}: {error}"


def read_settings(config: UserConfig) -> Settings:
    """Check the run configuration, which Flower passes on with any type and value.

    Raises InputError with every mistake in it.
    """
    problems = []
    for key in ("plan", "run"):
        value = config.get(key, "")
        if not isinstance(value, str) or not Path(value).is_absolute():
            problems.append(
                _problem(key, value, "an absolute path (Flower runs the app elsewhere)")
            )
    resume, wait = config.get("resume", 0), config.get("start-timeout", 300)
    if resume not in (0, 1):
        problems.append(_problem("resume", resume, "0 or 1"))
    if isinstance(wait, bool) or not isinstance(wait, int | float) or wait <= 0:
        problems.append(_problem("start-timeout", wait, "seconds > 0"))
    if problems:
        raise InputError(problems)
    # Resolved: `consilium-sim` gives links of its own, and messages shall name the user's paths.
    plan, run = (Path(str(config[key])).resolve() for key in ("plan", "run"))
    return Settings(plan, run, bool(resume), float(wait))


def _problem(key: str, value: object, allowed: str) -> Problem:
    found = "nothing" if value == "" else repr(value)
    next_step = (
        "`consilium-sim run` prepares the sites and gives both of these. By hand: flwr run . "
        '--run-config \'plan="/abs/plan.yaml" run="/abs/new-folder"\', with the folder of the site '
        "folders in the environment variable CONSILIUM_SITES."
    )
    return Problem("run configuration", f"key {key!r}", found, allowed, next_step)


class FlowerTransport:
    """Flower's grid, polled by us: `send_and_receive` would look only every 3 seconds."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """The SuperNodes that are online."""
        return list(self._grid.get_node_ids())

    def ask(self, action: str, parcels: Mapping[int, Parcel], timeout: float) -> Iterator[Reply]:
        """Send, then yield replies as they come, for at most `timeout` seconds.

        The messages live as long: a node that wakes up later must not train for nothing. A reply
        counts for the node that was asked, and only if it comes from it, since Flower does not
        look who answers. It is one at a time that messages are sent and taken in: Flower does not
        always say which of many it could not send, and one site's bytes that it can't read would
        take the others' answers along.
        """
        deadline = time.monotonic() + timeout
        waiting: dict[str, int] = {}
        for node, parcel in parcels.items():
            content = _to_records(parcel)
            message = Message(content=content, dst_node_id=node, message_type=action, ttl=timeout)
            # Flower gives nothing for a message that it could not send: that site is then missing.
            waiting |= {sent: node for sent in self._grid.push_messages([message]) if sent}
        pause = POLL_FIRST
        while waiting:
            for asked, node in list(waiting.items()):
                reply = self._pull(asked, node)
                if reply is not None:
                    del waiting[asked]
                    yield reply
            if not waiting or time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_LAST)

    def _pull(self, asked: str, node: int) -> Reply | None:
        """The reply of the node to the message with the id `asked`, if there is one now."""
        try:
            messages = list(self._grid.pull_messages([asked]))
        except OSError:  # the connection's
            raise
        except Exception:  # whatever Flower's reading of a site's bytes raises
            return Reply(node, None, "malformed-reply")
        for message in messages:
            authors = {node, SUPERLINK_NODE_ID} if message.has_error() else {node}
            metadata = message.metadata
            if metadata.reply_to_message_id == asked and metadata.src_node_id in authors:
                return _to_reply(message, node)
        return None


def _to_records(parcel: Parcel) -> RecordDict:
    arrays = ArrayRecord({name: Array(value) for name, value in parcel.arrays.items()})
    metrics = MetricRecord(dict(parcel.metrics))
    config = ConfigRecord(dict(parcel.config))
    return RecordDict({"arrays": arrays, "config": config, "metrics": metrics})


def _to_reply(message: Message, node: int) -> Reply:
    """A reply, or its error's name: the text of a Flower error may hold paths, so it is left."""
    if message.has_error():
        return Reply(node, None, TRANSPORT_ERRORS.get(message.error.code, "unknown-error"))
    try:
        content = message.content
        parts = content.array_records["arrays"], content.metric_records["metrics"]
        config = cast(dict[str, Scalar], dict(content.config_records["config"]))
        # The number of parts before anything is made of them.
        check_parcel(
            Parcel(dict.fromkeys(parts[0], _NOTHING), config, dict.fromkeys(parts[1], 0.0))
        )
        arrays = {name: _to_array(value) for name, value in parts[0].items()}
        metrics = cast(dict[str, float], dict(parts[1]))
    except Exception:  # whatever a site's bytes raise: they are the site's
        return Reply(node, None, "malformed-reply")
    code = config.get("error", "")
    return Reply(node, Parcel(arrays, config, metrics), code if isinstance(code, str) else "?")


def _to_array(value: Array) -> npt.NDArray[Any]:
    """Flower's array, once its header is seen to promise what it holds.

    numpy would first make room for what the header says, which may be any number.
    """
    stream = BytesIO(value.data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"format {version} of numpy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or prod(shape) * dtype.itemsize != len(value.data) - stream.tell():
        raise ValueError("an array that is not as long as it says")
    return value.numpy()
