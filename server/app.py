"""The Flower ServerApp: settings, Flower's grid as a transport, honest ending."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

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
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from common.checkpoint import write_json
from common.errors import ConsiliumError, InputError, Problem
from common.model import build_model
from common.parameters import flatten, shared_layout
from common.plan import load_plan
from common.wire import Parcel, Scalar
from server.rounds import Federation
from server.run_folder import PROGRESS, STATE, RunFolder, begun, check_run
from server.transport import Reply

app = ServerApp()

POLL_FIRST, POLL_LAST = 0.1, 0.5  # seconds between two looks for replies
_TRANSPORT_ERRORS = {
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
        folder.fail(*_ending(error))
        raise
    finally:
        folder.close()


def _record_failure(run: Path, error: Exception) -> None:
    """Say why a run could not even begin, but never overwrite the state of an earlier run."""
    if not begun(run):
        exit_code, reason = _ending(error)
        value = {"schema": 1, "status": "failed", "exit_code": exit_code, "reason": reason}
        write_json(run / STATE, value | {"plan_sha256": None, "round": 0})


def _ending(error: Exception) -> tuple[int, str]:
    """Exit code and reason for state.json."""
    if isinstance(error, ConsiliumError):
        return error.exit_code, str(error)
    return 1, f"internal error: {type(error).__name__}: {error}"


def read_settings(config: UserConfig) -> Settings:
    """Check the run configuration, which Flower passes on with any type and value.

    Raises InputError with every mistake in it.
    """
    problems = []
    for key in ("plan", "run", "sites"):
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
    return Settings(Path(str(config["plan"])), Path(str(config["run"])), bool(resume), float(wait))


def _problem(key: str, value: object, allowed: str) -> Problem:
    found = "nothing" if value == "" else repr(value)
    next_step = (
        "`consilium-sim run` prepares the sites and gives all of these. By hand: flwr run . "
        '--run-config \'plan="/abs/plan.yaml" run="/abs/new-folder" sites="/abs/sites"\'.'
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

        The messages live as long: a node that wakes up later must not train for nothing.
        """
        deadline = time.monotonic() + timeout
        messages = [
            Message(content=_to_records(parcel), dst_node_id=node, message_type=action, ttl=timeout)
            for node, parcel in parcels.items()
        ]
        # Flower gives None for a message that it could not send: that site is then missing.
        waiting = {sent for sent in self._grid.push_messages(messages) if sent}
        pause = POLL_FIRST
        while waiting:
            replies = list(self._grid.pull_messages(list(waiting)))
            for message in replies:
                waiting.discard(message.metadata.reply_to_message_id)
                yield _to_reply(message)
            if not waiting or time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_LAST)


def _to_records(parcel: Parcel) -> RecordDict:
    arrays = ArrayRecord({name: Array(value) for name, value in parcel.arrays.items()})
    metrics = MetricRecord(dict(parcel.metrics))
    config = ConfigRecord(dict(parcel.config))
    return RecordDict({"arrays": arrays, "config": config, "metrics": metrics})


def _to_reply(message: Message) -> Reply:
    """A reply, or its error's name: the text of a Flower error may hold paths, so it is left."""
    node = message.metadata.src_node_id
    if message.has_error():
        return Reply(node, None, _TRANSPORT_ERRORS.get(message.error.code, "unknown-error"))
    try:
        content = message.content
        arrays = {name: value.numpy() for name, value in content.array_records["arrays"].items()}
        config = cast(dict[str, Scalar], dict(content.config_records["config"]))
        metrics = cast(dict[str, float], dict(content.metric_records["metrics"]))
    except Exception:  # whatever Flower's decoding of a site's bytes raises: they are the site's
        return Reply(node, None, "malformed-reply")
    return Reply(node, Parcel(arrays, config, metrics), str(config.get("error", "")))
