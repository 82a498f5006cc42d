"""Who has come: the greeting at the start of a run, and who is connected later."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import NotEnoughSitesError
from common.wire import Parcel
from server.roster import Roster, clean_code
from server.transport import HELLO, Reply, Transport

POLL_SECONDS = 0.2  # between two looks at who is connected


@dataclass(frozen=True)
class Needed:
    """How many sites a run needs, and how many seconds it waits for them."""

    sites: int
    timeout: float


def gather(
    transport: Transport,
    roster: Roster,
    needed: Needed,
    base_sha256: str,
    say: Callable[[str], None],
) -> None:
    """Greet the nodes until enough have answered; say who arrived.

    roster: learns who they are, and who holds the base of that hash. A node whose name is
    disputed does not count. Raises NotEnoughSitesError when too few have come in time.
    """
    deadline = time.monotonic() + needed.timeout
    greeted: set[int] = set()
    arrived: set[int] = set()
    hello = Parcel({}, {"base_sha256": base_sha256}, {})
    while True:
        new = [node for node in transport.nodes() if node not in greeted]
        left = deadline - time.monotonic()
        if new and left > 0:
            greeted.update(new)
            roster.meet(new)
            for reply in transport.ask(HELLO, dict.fromkeys(new, hello), left):
                if reply.node in new and reply.node not in arrived:
                    arrived.add(reply.node)
                    say(_greet(roster, reply))
        elif sum(roster.trouble(node) is None for node in arrived) >= needed.sites:
            return
        elif left <= 0:
            came = ", ".join(roster.name(node) for node in sorted(arrived)) or "none"
            raise NotEnoughSitesError(
                f"the plan needs {needed.sites} sites; within {needed.timeout:g} s came "
                f"{len(arrived)}: {came}. Start the other sites, or lower federation.min_sites."
            )
        else:
            time.sleep(POLL_SECONDS)


def _greet(roster: Roster, reply: Reply) -> str:
    roster.learn(reply)
    config = {} if reply.parcel is None else reply.parcel.config
    if config.get("holds_base") is True:
        roster.holders.add(reply.node)
    line = f"site {roster.name(reply.node)} arrived"
    if reply.error:
        line += f", but says {clean_code(reply.error)}"
    if (disputed := roster.trouble(reply.node)) is not None:
        line += f", but {disputed}"
    return line


def wait_for_nodes(transport: Transport, needed: Needed) -> list[int]:
    """The connected nodes in order, after waiting a bounded time until they are enough.

    Raises NotEnoughSitesError.
    """
    deadline = time.monotonic() + needed.timeout
    while len(nodes := transport.nodes()) < needed.sites:
        if time.monotonic() > deadline:
            raise NotEnoughSitesError(
                f"{len(nodes)} sites are connected, the plan needs {needed.sites}; waited "
                f"{needed.timeout:g} s. Bring the others back, then resume."
            )
        time.sleep(POLL_SECONDS)
    return sorted(nodes)
