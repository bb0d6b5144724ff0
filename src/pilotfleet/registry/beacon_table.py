"""The beacon's core: which node was last seen where (beacon.md).

Nothing here is proven: a datagram names the node it likes, and the tunnels
above authenticate. So the table only promises bounds: on its size, on the age
of its entries, and on how much one source can make it send.

Nodes are kept in the order in which they were last seen, so the ones that
expire are always at the front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.beacon import (
    Discover,
    MessageType,
    Notify,
    PunchCommand,
    PunchRequest,
    Reflection,
    Sync,
    decode_message,
)
from pilotfleet.registry.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = ["BeaconConfig", "BeaconCounters", "BeaconTable"]

# From the specification.
NODE_LIFETIME_S: Final = 600.0
SWEEP_INTERVAL_S: Final = 60.0
GOSSIP_INTERVAL_S: Final = 10.0
GOSSIP_LIFETIME_S: Final = 90.0

# Ours.
NOTIFY_INTERVAL_S: Final = 0.5
"""At most one notify per node in this time; what comes between waits."""
MAX_PEERS: Final = 64
MAX_GOSSIP_NODES: Final = 16_000
"""Nodes named in one sync: more do not fit into a datagram."""

_RELAY_HEADER: Final = struct.Struct("!BII")
_NOTIFY: Final = Notify().encode()


@dataclass(frozen=True, slots=True)
class BeaconConfig:
    """Limits of a beacon. The defaults suit fleets behind one address."""

    max_nodes: int = 500_000
    punches_per_second: float = 5_000
    """All together. The public beacon allows 10."""
    punches_per_second_per_ip: float = 1_000
    """The public beacon allows 1, too few for a host with many agents."""
    relayed_per_second: float = 50_000
    """Per source IP and port. The public beacon allows 4,000."""
    hold_s: float = 0.0
    """How long a discover cannot move a node that was just moved. The public
    beacon holds for 30 s: slows down theft and also a restarted daemon."""
    beacon_id: int = 0
    """0: alone."""
    peers: tuple[Endpoint, ...] = ()
    """Other beacons, which are told of our nodes and relay to theirs."""


@dataclass(slots=True)
class BeaconCounters:
    """What the beacon has done since its start."""

    discovers: int = 0
    punches: int = 0
    relayed: int = 0
    notifies: int = 0
    unknown: int = 0
    """Relays and punches to nodes that are not known."""
    malformed: int = 0
    limited: int = 0
    """Dropped because of a rate or a full table."""


def _find_nothing(node: int) -> Endpoint | None:
    return None


def _everybody(node: int) -> bool:
    return True


class _Node:
    __slots__ = ("endpoint", "extended", "moved", "seen")

    def __init__(self, endpoint: Endpoint, now: float) -> None:
        self.endpoint = endpoint
        self.extended = False
        self.moved = now
        self.seen = now


@dataclass(slots=True)
class _Gossip:
    heard: float
    nodes: frozenset[int] = field(default_factory=frozenset)


class BeaconTable:
    """Answers datagrams. Performs no I/O."""

    def __init__(
        self,
        config: BeaconConfig | None = None,
        *,
        now: float,
        find: Callable[[int], Endpoint | None] = _find_nothing,
        is_registered: Callable[[int], bool] = _everybody,
    ) -> None:
        """Start empty.

        Args:
            config: Limits and peers.
            now: The time.
            find: Asked about a node that is wanted but was not heard yet. After
                a restart it saves relayed tunnels a minute of silence.
            is_registered: Says which nodes are not just invented. One half of the
                table is for them alone, or one host could fill it with numbers
                and no new node would be reached for as long as it likes.
        """
        self._config = config = config or BeaconConfig()
        self._find_elsewhere = find
        self._is_registered = is_registered
        self._nodes: dict[int, _Node] = {}
        self._out: list[tuple[bytes, Endpoint]] = []
        self._punches = RateLimit(config.punches_per_second, max_keys=1)
        self._punches_per_ip = RateLimit(config.punches_per_second_per_ip)
        self._relays = RateLimit(config.relayed_per_second)
        self._gossip: dict[Endpoint, _Gossip] = {}
        self._notified: dict[int, float] = {}
        self._notify_due: dict[int, float] = {}
        self._next_sweep = now + SWEEP_INTERVAL_S
        self._next_gossip = now
        self.counters = BeaconCounters()

    def __len__(self) -> int:
        return len(self._nodes)

    def endpoint_of(self, node: int) -> Endpoint | None:
        """Return where the node was last seen."""
        entry = self._nodes.get(node)
        return entry.endpoint if entry is not None else None

    # Receiving

    def receive_datagram(self, data: bytes, source: Endpoint, now: float) -> None:
        """Take one datagram; answers are in ``datagrams_to_send``."""
        # Relayed packets are nearly all of the traffic.
        if data and data[0] == MessageType.RELAY:
            self._receive_relay(data, source, now)
            return
        try:
            message = decode_message(data)
        except DecodeError:
            self.counters.malformed += 1
            return
        match message:
            case Discover():
                self._receive_discover(message, source, now)
            case PunchRequest():
                self._receive_punch(message, source, now)
            case Sync():
                self._receive_sync(message, source, now)
            case _:
                # Messages from beacon to node make no sense here.
                self.counters.malformed += 1

    def _receive_discover(
        self, message: Discover, source: Endpoint, now: float
    ) -> None:
        self.counters.discovers += 1
        # Node 0 asks before it is registered; answer, but keep nothing.
        if message.node:
            node = self._nodes.get(message.node)
            held = node is not None and now - node.moved < self._config.hold_s
            node = self._touch(message.node, source, now, may_move=not held)
            if node is not None and message.extended:
                node.extended = True
        self._out.append((Reflection(source).encode(), source))

    def _receive_punch(
        self, message: PunchRequest, source: Endpoint, now: float
    ) -> None:
        allowed = self._punches_per_ip.allow(source[0], now)
        if not (allowed and self._punches.allow(None, now)):
            self.counters.limited += 1
            return
        requester = self._touch(message.requester, source, now, may_move=True)
        target = self._find(message.target, now)
        if requester is None or target is None:
            self.counters.unknown += 1
            return
        self.counters.punches += 1
        self._out += [
            (PunchCommand(target.endpoint).encode(), requester.endpoint),
            (PunchCommand(requester.endpoint).encode(), target.endpoint),
        ]

    def _receive_relay(self, data: bytes, source: Endpoint, now: float) -> None:
        if len(data) < _RELAY_HEADER.size:
            self.counters.malformed += 1
            return
        if not self._relays.allow(source, now):
            self.counters.limited += 1
            return
        _, _, destination = _RELAY_HEADER.unpack_from(data)
        node = self._nodes.get(destination)
        if node is None:
            # There is no hop count: what a peer beacon sent is never sent on.
            other = None if source in self._gossip else self._beacon_of(destination)
            if other is not None:
                self.counters.relayed += 1
                self._out.append((data, other))
                return
            node = self._find(destination, now)
        if node is None:
            self.counters.unknown += 1
            return
        self.counters.relayed += 1
        self._out.append((_delivery(data, extended=node.extended), node.endpoint))

    def _receive_sync(self, message: Sync, source: Endpoint, now: float) -> None:
        # Without this anybody could draw the traffic of any node to himself.
        if source not in self._config.peers:
            self.counters.malformed += 1
            return
        self._gossip[source] = _Gossip(now, frozenset(message.nodes))

    # Sending

    def notify(self, node: int, now: float) -> None:
        """Tell a node that the registry holds a handshake for it."""
        last = self._notified.get(node)
        if last is not None and now - last < NOTIFY_INTERVAL_S:
            self._notify_due.setdefault(node, last + NOTIFY_INTERVAL_S)
            return
        entry = self._find(node, now)
        if entry is None:
            return
        self._notified.pop(node, None)
        self._notified[node] = now
        self.counters.notifies += 1
        self._out.append((_NOTIFY, entry.endpoint))

    def datagrams_to_send(self) -> list[tuple[bytes, Endpoint]]:
        """Return and forget what there is to send, in order."""
        out, self._out = self._out, []
        return out

    # Timers

    def next_timer(self) -> float:
        """Return when ``handle_timer`` wants to be called."""
        deadline = self._next_sweep
        if self._config.peers:
            deadline = min(deadline, self._next_gossip)
        if self._notify_due:
            deadline = min(deadline, next(iter(self._notify_due.values())))
        return deadline

    def handle_timer(self, now: float) -> None:
        """Forget what is old, send what is due."""
        self._send_due_notifies(now)
        if self._config.peers and now >= self._next_gossip:
            self._next_gossip = now + GOSSIP_INTERVAL_S
            self._send_gossip()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL_S
            self._sweep(now)

    def _send_due_notifies(self, now: float) -> None:
        due = [node for node, when in self._notify_due.items() if when <= now]
        for node in due:
            del self._notify_due[node]
            self._notified.pop(node, None)
            self.notify(node, now)

    def _send_gossip(self) -> None:
        nodes = tuple(self._nodes)[-MAX_GOSSIP_NODES:]
        data = Sync(self._config.beacon_id, nodes).encode()
        self._out += [(data, peer) for peer in self._config.peers[:MAX_PEERS]]

    def _sweep(self, now: float) -> None:
        for node in _expired_nodes(self._nodes, now):
            del self._nodes[node]
        self._notified = {
            node: when
            for node, when in self._notified.items()
            if now - when < NOTIFY_INTERVAL_S
        }
        self._gossip = {
            peer: gossip
            for peer, gossip in self._gossip.items()
            if now - gossip.heard <= GOSSIP_LIFETIME_S
        }

    # Private

    def _find(self, node: int, now: float) -> _Node | None:
        entry = self._nodes.get(node)
        if entry is not None:
            return entry
        endpoint = self._find_elsewhere(node)
        if endpoint is None:
            return None
        return self._touch(node, endpoint, now, may_move=False)

    def _touch(
        self, node: int, source: Endpoint, now: float, *, may_move: bool
    ) -> _Node | None:
        """Note that the node was seen at ``source``."""
        entry = self._nodes.pop(node, None)
        if entry is None:
            if not node or not self._has_room(node):
                self.counters.limited += 1
                return None
            entry = _Node(source, now)
        elif may_move and entry.endpoint != source:
            entry.endpoint = source
            entry.moved = now
        entry.seen = now
        self._nodes[node] = entry
        return entry

    def _has_room(self, node: int) -> bool:
        count, limit = len(self._nodes), self._config.max_nodes
        return count < limit // 2 or (count < limit and self._is_registered(node))

    def _beacon_of(self, node: int) -> Endpoint | None:
        for peer, gossip in self._gossip.items():
            if node in gossip.nodes:
                return peer
        return None


def _delivery(relay: bytes, *, extended: bool) -> bytes:
    """Turn 0x05 into 0x06, or 0x09 for a node that wants its ID named."""
    if extended:
        return b"\x09" + relay[1:]
    return b"\x06" + relay[1:5] + relay[9:]


def _expired_nodes(nodes: dict[int, _Node], now: float) -> list[int]:
    expired: list[int] = []
    for node, entry in nodes.items():
        if now - entry.seen <= NODE_LIFETIME_S:
            break
        expired.append(node)
    return expired
