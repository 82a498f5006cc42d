"""A whole federation inside one process, for a study of many.

The same parcels, guard, firewall, round loop and strategy as a deployed federation; only the
wire is missing, so that a cell costs its training and not Flower's processes.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from client.answer import answer, forget
from common.checkpoint import read_object
from common.model import build_model
from common.parameters import flatten, shared_layout
from common.plan import Plan
from common.wire import Parcel
from server.rounds import Federation
from server.run_folder import STATE, RunFolder, begun
from server.transport import Reply

START_SECONDS = 1.0  # everybody is here, or will never be


class InProcessTransport:
    """Carries parcels to site folders by a function call (server/transport.py)."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = dict(enumerate(folders))

    def nodes(self) -> list[int]:
        """All sites are always connected."""
        return list(self._folders)

    def ask(self, action: str, parcels: Mapping[int, Parcel], timeout: float) -> Iterator[Reply]:
        """One site after the other; a local call that hangs cannot be given up."""
        for node, parcel in parcels.items():
            reply = answer(action.removeprefix("query."), parcel, self._folders[node])
            yield Reply(node, reply, str(reply.config.get("error", "")))


def train_together(plan: Plan, folders: Sequence[Path], run: Path) -> None:
    """Federate the site folders until the run folder says completed; goes on where it stopped.

    Raises NotEnoughSitesError or RoundFailedError as a deployed federation does.
    """
    if begun(run) and read_object(run / STATE, status=str)["status"] == "completed":
        return
    logging.getLogger("flwr").setLevel(logging.WARNING)  # a line for every round of every cell
    model = build_model(plan)
    layout = shared_layout(model, plan.heads)
    if begun(run):
        folder = RunFolder.resume(run, plan, layout)
    else:
        folder = RunFolder.create(run, plan, layout, flatten(model, layout))
    transport = InProcessTransport(folders)
    try:
        Federation(plan, layout, folder, transport, lambda line: None, START_SECONDS).run()
    finally:
        folder.close()
        for each in folders:
            forget(each)
