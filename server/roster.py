"""Who is who: nodes of the transport, and the sites that speak through them."""

import re
from collections.abc import Collection, Mapping

from common.errors import SITE_CODES, UpdateRejectedError
from common.wire import shown
from server.transport import Reply

# No name of an unnamed node, and nothing that could be a way through folders.
_NAME = re.compile(r"(?!node-)[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class Roster:
    """Which node is which site, and who holds the base parameters.

    A node says its name with its first answer that is no error, and keeps it. Once a round is
    finished (`confirm`), the name is the node's for the run, and another node that says it is left
    out. Before that nobody can tell who of two is right: both are left out.

    A resumed run knows the names of before. They hold once one of those nodes is met again: the
    transport then gives the numbers that it gave before. A simulation that is started anew has
    other numbers; there names are bound anew, when a round is finished without any node of before.
    """

    def __init__(
        self,
        known: Mapping[int, str] | None = None,
        listed: Collection[str] | None = None,
        earlier: Mapping[int, str] | None = None,
    ) -> None:
        """known: names of nodes that are certain already, by node.

        listed: the only names that a node may say; None: any. earlier: names that were bound before
        the run was resumed, by node.
        """
        self._known, before = dict(known or {}), dict(earlier or {})
        certain = set(self._known.values())
        self._earlier = {node: name for node, name in before.items() if name not in certain}
        self._listed = None if listed is None else frozenset(listed)
        self._said: dict[int, str] = {}
        self.holders: set[int] = set()

    @property
    def bound(self) -> dict[int, str]:
        """The names that are bound, by node: what a resumed run has to know."""
        return self._known | self._earlier

    def meet(self, nodes: Collection[int]) -> None:
        """Learn which nodes are connected. One of before makes all names of before hold again."""
        if not self._earlier.keys().isdisjoint(nodes):
            self._known, self._earlier = self._earlier | self._known, {}

    def name(self, node: int) -> str:
        """The site's name, or "node-ID" while the node has none."""
        return self._bound(node) or f"node-{node}"

    def _bound(self, node: int) -> str | None:
        if node in self._known:
            return self._known[node]
        return self._said.get(node) if self.trouble(node) is None else None

    def learn(self, reply: Reply) -> None:
        """Keep the name that a node says first. An error names nobody."""
        if reply.error or reply.parcel is None or reply.node in self._known:
            return
        name = reply.parcel.config.get("site")
        if isinstance(name, str) and _NAME.fullmatch(name):
            self._said.setdefault(reply.node, name)

    def trouble(self, node: int) -> str | None:
        """Why a node can't have the name that it said; None: it can, or has said none."""
        if node in self._known or node not in self._said:
            return None
        said = self._said[node]
        if self._listed is not None and said not in self._listed:
            return f"says that it is {said!r}, which is not on the list of sites"
        if said in self._known.values():
            return f"says that it is {said!r}, which is another node's name"
        if sum(name == said for name in self._said.values()) > 1:
            return f"says that it is {said!r}, as another node does"
        return None

    def confirm(self) -> None:
        """Bind every name that nobody disputes to its node. Names of before are then past."""
        self._earlier = {}
        self._known |= {
            node: name for node, name in self._said.items() if self.trouble(node) is None
        }

    def check_author(self, node: int, site: object) -> None:
        """Raise UpdateRejectedError when a node has no name ("name") or speaks in another's."""
        trouble = self.trouble(node)
        if trouble is not None:
            raise UpdateRejectedError(self.name(node), "name", trouble)
        if site != self._bound(node):
            detail = f"node {node} sent an answer in the name of {shown(site)}"
            raise UpdateRejectedError(self.name(node), "schema", detail)

    def absent(self, connected: Collection[int]) -> list[int]:
        """Nodes that have answered before and are not connected now."""
        return [node for node in self._known | self._said if node not in connected]


def clean_code(code: str) -> str:
    """An error code as it may be printed: a site may send anything."""
    return code if code in SITE_CODES else "unknown-error"
