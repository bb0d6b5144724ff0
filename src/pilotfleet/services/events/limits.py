"""What one node may ask of the brokers of a host.

A node is whoever the tunnel proved it to be, however many connections it opens:
its rate, its connections and the bytes of events that it began and did not finish
are counted together, because a limit for each connection is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Busy
from pilotfleet.protocol.limits import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.services.events.config import BrokerConfig

__all__ = ["LimitConfig", "Peer", "PeerLimits"]

# From the specification (services.md section 5.3).
STRANGER_BURST: Final = 200
STRANGER_RATE: Final = 100.0

# Of our choosing.
SMALL_REST: Final = 64 << 10
"""An unfinished event up to this size is never refused: it costs no more than the
window of its stream, and nobody's flood may stop ordinary events."""
REFUSED_RATE: Final = 10_000.0
"""Refused publications per second and node that are read; a faster flood waits in
its own window."""


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """Limits of the peers of the event service."""

    connections: int = 64
    """Of one node to one broker. Nodes of this host have no such limit."""
    unfinished_node: int = 32 << 20
    """Bytes of unfinished events of one node, at all brokers of the host; two of
    the largest events."""
    unfinished: int = 256 << 20
    """The same of all nodes."""
    frame_s: float = 300.0
    """How long one event may take from its first byte to its last."""
    remembered: int = 16_384
    """Nodes whose rate is kept after their last connection, so that connecting
    again gains nothing."""


class Peer:
    """One node at one broker."""

    __slots__ = ("bucket", "connections", "is_member", "key")

    def __init__(
        self, key: tuple[int, int], bucket: TokenBucket, *, is_member: bool
    ) -> None:
        self.key = key
        self.bucket = bucket
        self.is_member = is_member
        self.connections = 0

    def flood_pause(self, refused: int) -> float:
        """Return how long not to read after so many refusals."""
        return refused * self.connections / REFUSED_RATE


class PeerLimits:
    """The peers of all brokers of a host."""

    def __init__(
        self,
        config: LimitConfig,
        rates: BrokerConfig,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self._rates = rates
        self._clock = clock
        self._peers: dict[tuple[int, int], Peer] = {}
        self._left: dict[tuple[int, int], Peer] = {}
        """Peers without a connection, the last one to leave at the end."""
        self._unfinished: dict[int, int] = {}
        self._total = 0

    def connect(
        self, broker: int, node: int, *, is_member: bool, is_local: bool
    ) -> Peer:
        """Admit a connection of a node to the broker of an agent.

        Raises:
            Busy: The node has too many.
        """
        key = (broker, node)
        peer = self._peers.get(key) or self._left.pop(key, None)
        if peer is None or peer.is_member is not is_member:
            # Trust that was given or taken counts from the next connection on.
            renewed = Peer(key, self._bucket(is_member=is_member), is_member=is_member)
            renewed.connections = peer.connections if peer is not None else 0
            peer = renewed
        if peer.connections >= self.config.connections and not is_local:
            raise Busy(f"node {node} has {peer.connections} connections to the broker")
        peer.connections += 1
        self._peers[key] = peer
        return peer

    def disconnect(self, peer: Peer) -> None:
        """Forget a connection; the node's rate is kept for a while."""
        # Peers made anew by a change of trust share their key, not their object.
        current = self._peers[peer.key]
        current.connections -= 1
        if current.connections:
            return
        self._left[peer.key] = self._peers.pop(peer.key)
        if len(self._left) > self.config.remembered:
            del self._left[next(iter(self._left))]

    def set_unfinished(self, node: int, before: int, after: int) -> None:
        """Count the unfinished event of a connection.

        Args:
            node: Whose connection it is.
            before: Bytes counted for the connection so far.
            after: Bytes to count from now on.

        Raises:
            Busy: The node, or all together, keep too much waiting. The bytes are
                counted all the same, until the connection is closed.
        """
        if before == after:
            return
        mine = self._unfinished.get(node, 0) + after - before
        self._total += after - before
        if mine:
            self._unfinished[node] = mine
        else:
            self._unfinished.pop(node, None)
        if after <= max(before, SMALL_REST):
            return
        if mine > self.config.unfinished_node or self._total > self.config.unfinished:
            raise Busy(f"node {node} has {mine} bytes of unfinished events")

    def _bucket(self, *, is_member: bool) -> TokenBucket:
        rates, now = self._rates, self._clock()
        if is_member:
            return TokenBucket(rates.member_burst, rates.member_rate, now)
        return TokenBucket(STRANGER_BURST, STRANGER_RATE, now)
