"""What the daemons of a fleet carry, by their reports."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.figures import Traffic
from pilotfleet.fleet.monitor.view.intake import believed_interval
from pilotfleet.protocol.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.fleet.monitor.view.intake import NodeReport, NodeRow

__all__ = ["NodeEntry", "SavedHost", "SavedNode", "TrafficBook"]

MISSED: Final = 5
"""Reports after which a daemon is taken for gone."""
GRACE_S: Final = 1.0
MAX_HOSTS: Final = 20_000
MAX_NODES: Final = 100_000
MAX_PEERS: Final = 32
MAX_VERSIONS: Final = 20
MAX_SUM: Final = (1 << 63) - 1
OTHER: Final = "other"
UNKNOWN: Final = "unknown"


class NodeEntry:
    """What its daemon says of an agent."""

    __slots__ = ("host", "node_id", "peers", "received", "sent", "tunnels")

    def __init__(self, host: str) -> None:
        self.host = host
        self.node_id = 0
        self.tunnels = 0
        self.sent = 0
        self.received = 0
        self.peers: array[int] = array("I")
        """Node numbers."""


class _Host:
    """A daemon."""

    __slots__ = (
        *("agents", "interval_s", "is_here", "rate", "rated", "received", "sent"),
        *("last_seen", "tunnels", "version"),
    )

    def __init__(self) -> None:
        self.version = ""
        self.agents = 0
        self.tunnels = 0
        self.sent = self.received = 0
        self.rate = (0, 0)
        """Bytes a second, sent and received: whole numbers, whose sum stays exact."""
        self.rated = (0.0, 0, 0)
        """When the rate was taken, and the bytes of then."""
        self.interval_s = 10.0
        self.last_seen = 0.0
        self.is_here = False


class SavedHost(msgspec.Struct, frozen=True, array_like=True):
    """A daemon as it is kept over a restart."""

    host: str
    version: str
    agents: int
    tunnels: int
    sent: int
    received: int
    rate: tuple[int, int]
    rated: tuple[float, int, int]
    interval_s: float
    last_seen: float
    is_here: bool


class SavedNode(msgspec.Struct, frozen=True, array_like=True):
    """What its daemon said of an agent, as it is kept over a restart."""

    agent: str
    host: str
    node_id: int
    tunnels: int
    sent: int
    received: int


class TrafficBook:
    """Adds up the reports of all daemons."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        """Who was heard last is last."""
        self._nodes: dict[str, NodeEntry] = {}
        self._tunnels = 0
        self._rate = [0, 0]
        self._versions: dict[str, int] = {}
        self.sent = self.received = 0
        """Ever: a daemon that starts again counts from nothing, this does not."""

    def take(self, report: NodeReport, *, at: float) -> bool:
        """Take a report; tell whether there was room for it."""
        host = self._hosts.pop(report.host, None)
        if host is None:
            if not self._has_room():
                return False
            host = _Host()
            host.rated = (at, report.totals.bytes_sent, report.totals.bytes_received)
        self._hosts[report.host] = host
        self._discount(host)
        self._fill(host, report, at)
        self._count(host)
        for row in report.agents:
            self._take_row(report.host, row)
        return True

    def advance(self, now: float) -> None:
        """Take those out of the sums that reported for too long no more."""
        for host in self._hosts.values():
            silence_s = now - host.last_seen
            if host.is_here and silence_s > MISSED * host.interval_s + GRACE_S:
                self._discount(host)

    def node(self, agent: str) -> NodeEntry | None:
        """Return what its daemon said of an agent."""
        return self._nodes.get(agent)

    def nodes(self) -> Iterable[tuple[str, NodeEntry]]:
        """Return what is known of all."""
        return self._nodes.items()

    def version(self, agent: str) -> str:
        """Return the version of an agent's daemon; empty if it is not known."""
        node = self._nodes.get(agent)
        host = self._hosts.get(node.host) if node is not None else None
        return host.version if host is not None else ""

    def figures(self) -> Traffic:
        """Return the sums."""
        return Traffic(
            tunnels=self._tunnels,
            bytes_sent=self.sent,
            bytes_received=self.received,
            sent_per_s=float(self._rate[0]),
            received_per_s=float(self._rate[1]),
        )

    def versions(self) -> dict[str, int]:
        """Return agents by version: the 20 that most have, and the others."""
        found = self._versions
        ranked = sorted(found, key=lambda version: (-found[version], version))
        versions = {version: found[version] for version in ranked[:MAX_VERSIONS]}
        if rest := sum(found[version] for version in ranked[MAX_VERSIONS:]):
            versions[OTHER] = versions.get(OTHER, 0) + rest
        return versions

    def save(self) -> tuple[int, int, list[SavedHost], list[SavedNode]]:
        """Return it as it is kept over a restart."""
        hosts = [
            SavedHost(
                *(name, host.version, host.agents, host.tunnels, host.sent),
                *(host.received, host.rate, host.rated, host.interval_s),
                *(host.last_seen, host.is_here),
            )
            for name, host in self._hosts.items()
        ]
        nodes = [
            SavedNode(
                *(agent, node.host, node.node_id, node.tunnels, node.sent),
                node.received,
            )
            for agent, node in self._nodes.items()
        ]
        return self.sent, self.received, hosts, nodes

    @classmethod
    def load(
        cls,
        saved: tuple[int, int, list[SavedHost], list[SavedNode]],
        *,
        at: float,
    ) -> TrafficBook:
        """Return what was saved; nothing was heard after ``at``."""
        book = cls()
        book.sent, book.received, hosts, nodes = saved
        for row in hosts[:MAX_HOSTS]:
            host = book._hosts[row.host] = _Host()
            host.version, host.agents, host.tunnels = (
                row.version,
                row.agents,
                row.tunnels,
            )
            host.sent, host.received, host.rate = row.sent, row.received, row.rate
            host.rated = (min(row.rated[0], at), *row.rated[1:])
            host.interval_s, host.last_seen = row.interval_s, min(row.last_seen, at)
            if row.is_here:
                book._count(host)
        for saved_node in nodes[:MAX_NODES]:
            node = book._nodes[saved_node.agent] = NodeEntry(saved_node.host)
            node.node_id, node.tunnels = saved_node.node_id, saved_node.tunnels
            node.sent, node.received = saved_node.sent, saved_node.received
        return book

    # Private

    def _has_room(self) -> bool:
        if len(self._hosts) < MAX_HOSTS:
            return True
        oldest = next(iter(self._hosts))
        if self._hosts[oldest].is_here:
            return False
        del self._hosts[oldest]
        return True

    def _fill(self, host: _Host, report: NodeReport, at: float) -> None:
        totals = report.totals
        # Less than before: the daemon was started again.
        self.sent = min(MAX_SUM, self.sent + _gain(host.sent, totals.bytes_sent))
        gained = _gain(host.received, totals.bytes_received)
        self.received = min(MAX_SUM, self.received + gained)
        host.version = report.version or UNKNOWN
        host.agents, host.tunnels = totals.agents, totals.tunnels
        host.sent, host.received = totals.bytes_sent, totals.bytes_received
        interval_s = believed_interval(report.interval_s)
        host.interval_s, host.last_seen = interval_s, max(host.last_seen, at)
        rated_at, sent, received = host.rated
        # A long report comes as several events, which tell the same totals.
        if (span_s := at - rated_at) >= interval_s / 2:
            host.rate = (
                int(_gain(sent, host.sent) / span_s),
                int(_gain(received, host.received) / span_s),
            )
            host.rated = (at, host.sent, host.received)

    def _take_row(self, host: str, row: NodeRow) -> None:
        node = self._nodes.get(row.agent)
        if node is None:
            if len(self._nodes) >= MAX_NODES:
                del self._nodes[next(iter(self._nodes))]
            node = self._nodes[row.agent] = NodeEntry(host)
        node.host, node.node_id, node.tunnels = host, row.node_id, row.tunnels
        node.sent, node.received = row.bytes_sent, row.bytes_received
        node.peers = array("I", _nodes_of(row.peers))

    def _count(self, host: _Host) -> None:
        host.is_here = True
        self._tunnels += host.tunnels
        self._rate[0] += host.rate[0]
        self._rate[1] += host.rate[1]
        if host.agents:
            self._versions[host.version] = (
                self._versions.get(host.version, 0) + host.agents
            )

    def _discount(self, host: _Host) -> None:
        if not host.is_here:
            return
        host.is_here = False
        self._tunnels -= host.tunnels
        self._rate[0] -= host.rate[0]
        self._rate[1] -= host.rate[1]
        if host.agents:
            self._versions[host.version] -= host.agents
            if not self._versions[host.version]:
                del self._versions[host.version]


def _gain(before: int, now: int) -> int:
    return now - before if now >= before else now


def _nodes_of(peers: Iterable[str]) -> list[int]:
    """Return the node numbers of peers that are told by their addresses."""
    nodes: list[int] = []
    for peer in peers:
        if len(nodes) == MAX_PEERS:
            break
        try:
            nodes.append(Address.parse(peer).node)
        except DecodeError:
            continue
    return nodes
