"""Who is who: nodes of the transport, and the sites that speak through them."""

import re
from collections.abc import Collection

from common.errors import UpdateRejectedError
from server.transport import Reply

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CODE = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Roster:
    """Names of nodes as learnt from their answers, and who holds the base parameters."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self.holders: set[int] = set()

    def name(self, node: int) -> str:
        """The site's name, or "node-ID" before it has said one."""
        return self._names.get(node, f"node-{node}")

    def learn(self, reply: Reply) -> None:
        """Keep the name of a reply's site; the first one that a node gives counts."""
        config = {} if reply.parcel is None else reply.parcel.config
        name = config.get("site")
        if isinstance(name, str) and _NAME.fullmatch(name) and name not in self._names.values():
            self._names.setdefault(reply.node, name)

    def check_author(self, node: int, site: str) -> None:
        """Raise UpdateRejectedError (schema) when a node speaks in another site's name.

        Two nodes that share one site folder are found out here too: the site would count twice.
        """
        if self.name(node) != site:
            raise UpdateRejectedError(
                self.name(node), "schema", f"node {node} sent an update in the name of {site!r}"
            )

    def absent(self, connected: Collection[int]) -> list[int]:
        """Nodes that have answered before and are not connected now."""
        return [node for node in self._names if node not in connected]


def clean_code(code: str) -> str:
    """An error code as it may be printed: a site may send anything."""
    return code if _CODE.fullmatch(code) else "unknown-error"
