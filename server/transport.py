"""The door between the round loop and whatever carries its messages.

The loop knows nodes, parcels and replies; Flower is one implementation (server/app.py), a
test in one process is another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from common.wire import Parcel

HELLO, TRAIN, FINISH = "query.hello", "train", "query.finish"
BASE_MISSING = "base-missing"  # a site's answer when it needs the base parameters


@dataclass(frozen=True, eq=False)
class Reply:
    """One node's answer: a parcel, or the code of an error (from the site or the transport)."""

    node: int
    parcel: Parcel | None
    error: str = ""


class Transport(Protocol):
    """How the loop reaches the sites."""

    def nodes(self) -> list[int]:
        """The nodes that are connected now."""
        ...

    def ask(self, action: str, parcels: Mapping[int, Parcel], timeout: float) -> Iterator[Reply]:
        """Send each node its parcel and yield replies as they come.

        Ends when every node has answered or `timeout` seconds have passed. A node that does
        not answer yields nothing: the caller counts who is missing.
        """
        ...
