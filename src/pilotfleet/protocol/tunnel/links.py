"""The peer table of an endpoint: output, events and one heap of deadlines."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Busy
from pilotfleet.protocol.beacon import Discover, PunchRequest, Relay
from pilotfleet.protocol.tunnel.events import (
    Event,
    KeyWanted,
    PathWanted,
    PayloadGrew,
    RelayActivated,
    TunnelFailed,
)
from pilotfleet.protocol.tunnel.keyring import KeyRing
from pilotfleet.protocol.tunnel.peer import (
    KEEPALIVE_LATEST,
    NEVER,
    Peer,
    keepalive_at,
)
from pilotfleet.protocol.tunnel.reception import Reception
from pilotfleet.protocol.tunnel.stats import TunnelStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.identity import Identity
    from pilotfleet.protocol.tunnel.config import TunnelConfig
    from pilotfleet.protocol.tunnel.keys import KeyPair

__all__ = ["Links"]

# Ours.
_PUNCH_ANSWER: Final = 2.0
_MAX_PUNCHING: Final = 64


class Links:
    """The lowest layer of `TunnelEndpoint`: peers, and what goes out for them.

    Each peer has one valid entry in the heap, named by its ``wake_at``. Traffic only
    moves deadlines away, so it leaves the entry alone: the entry fires early, finds
    nothing to do, and is set again. An earlier deadline pushes a new entry and
    leaves the old one behind as stale.
    """

    __slots__ = (
        "_config",
        "_events",
        "_heap",
        "_out",
        "_peers",
        "_punching",
        "_queued",
        "_reception",
        "_ring",
        "admits",
        "beacon",
        "relay_only",
        "stats",
    )

    def __init__(
        self,
        node_id: int,
        identity: Identity,
        *,
        random_bytes: Callable[[int], bytes],
        config: TunnelConfig,
        key_pair: KeyPair | None,
    ) -> None:
        self._config = config
        self._ring = KeyRing(node_id, identity, random_bytes, key_pair)
        self._peers: dict[int, Peer] = {}
        self._out: list[tuple[bytes, Endpoint]] = []
        self._heap: list[tuple[float, int]] = []
        # Counted over all peers, because ten thousand queues within their own bounds
        # would still be too much together.
        self._queued = 0
        # An empty deque takes 600 bytes, and most endpoints of a host are idle.
        self._events: deque[Event] | None = None
        self._reception: Reception | None = None
        self._punching: dict[int, float] | None = None
        """Peers whose punch request is under way, and until when."""
        self.admits: Callable[[int], bool] | None = None
        """Says which strangers may exchange keys and get pongs; None: everybody."""
        self.beacon: Endpoint | None = None
        """Where discover, punch and relay requests go."""
        self.relay_only = False
        """Hide where this node is: no peer gets a datagram of it but by relay."""
        self.stats = TunnelStats()

    @property
    def node_id(self) -> int:
        """The own node id; 0 before registration."""
        return self._ring.node_id

    @node_id.setter
    def node_id(self, node_id: int) -> None:
        # Frames made ahead name the old id, and peers select the session by it.
        self._ring.node_id = node_id
        self._ring.forget_frames()

    def set_identity(self, identity: Identity) -> None:
        """Sign key exchanges with another identity; sessions go on as they are."""
        self._ring.sign_as(identity)

    @property
    def has_events(self) -> bool:
        """Whether `next_event` has something."""
        return self._events is not None

    def next_event(self) -> Event | None:
        """Take the oldest event."""
        if self._events is None:
            return None
        event = self._events.popleft()
        if not self._events:
            self._events = None
        return event

    def datagrams_to_send(self) -> list[tuple[bytes, Endpoint]]:
        """Take what is to be sent, in order."""
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called."""
        heap = self._heap
        while heap:
            deadline, node = heap[0]
            peer = self._peers.get(node)
            # Stale entries are thrown away when they come up: finding them inside the
            # heap would cost more than carrying them.
            if peer is not None and peer.wake_at == deadline:
                return deadline
            heappop(heap)
        return None

    def _emit(self, event: Event) -> None:
        if self._events is None:
            self._events = deque()
        self._events.append(event)

    def _emit_if_room(self, event: Event) -> None:
        """Emit what a remote side may cause without end."""
        # The owner takes events after every batch, so this is reached only when one
        # batch is a flood. Losing datagrams there is what networks do.
        if self._events is not None and len(self._events) >= self._config.max_events:
            self.stats.dropped += 1
        else:
            self._emit(event)

    def _is_admitted(self, node: int) -> bool:
        return self.admits is None or self.admits(node)

    def _strangers(self) -> Reception:
        if self._reception is None:
            self._reception = Reception(self._config)
        return self._reception

    def _peer(self, node: int, now: float) -> Peer:
        peer = self._peers.get(node)
        if peer is None:
            if len(self._peers) >= self._config.max_peers:
                raise Busy(f"all {self._config.max_peers} tunnels are in use")
            peer = self._peers[node] = Peer(node, now)
            peer.path.pin(self.relay_only)
        return peer

    def _forget(self, peer: Peer) -> None:
        self._drop_queue(peer)
        self._drop_session(peer)
        del self._peers[peer.node]

    def _drop_session(self, peer: Peer) -> None:
        """End both sessions, and leave their counters to the key ring."""
        # The counter must outlive the session: a 1.18.0 receiver looks at it alone and
        # takes everything for a replay that starts again at 1 (5.4).
        for session in (peer.previous, peer.session):
            if session is not None:
                self._ring.retire(session, peer.node)
        self.stats.changes += peer.session is not None
        peer.session = None
        self._drop_previous(peer)

    def _drop_previous(self, peer: Peer) -> None:
        peer.previous = None
        peer.previous_until = NEVER
        peer.previous_opens = 0

    def _drop_queue(self, peer: Peer) -> None:
        if peer.queue is not None:
            self._queued -= len(peer.queue)
            peer.queue = None

    def _fail(self, peer: Peer, reason: str) -> None:
        self._drop_queue(peer)
        self._emit(TunnelFailed(peer.node, reason))

    def _schedule(self, peer: Peer, deadline: float) -> None:
        """Wake the peer no later than this."""
        # A later deadline needs nothing: the entry that is there fires, finds nothing
        # due and sets the right one.
        if deadline < peer.wake_at:
            peer.wake_at = deadline
            heappush(self._heap, (deadline, peer.node))

    def _resolve(self, peer: Peer, now: float) -> None:
        peer.resolve_by = now + self._config.resolve_timeout
        self._emit(PathWanted(peer.node))
        # Asked for at the same time, so that the answer is there before the PILA.
        lookup = peer.public_key is None and self._strangers().begin_lookup(
            peer.node, now
        )
        if lookup:
            self._emit(KeyWanted(peer.node))
        self._schedule(peer, peer.resolve_by)

    def _transmit(
        self, peer: Peer, packet: bytes, now: float, *, to: Endpoint | None = None
    ) -> None:
        """Seal one packet for a peer with a session; send it there, or on its path."""
        session = peer.session
        assert session is not None
        # Sealed once and sent once. The same frame on two paths would be a replay, for
        # which 1.18.0 tears the session down (5.4).
        frame = session.seal(packet)
        path = peer.path
        if to is None:
            # Probes go beside the path and keep nothing on it alive.
            path.last_send = now
        stats = self.stats
        stats.packets_sent += 1
        stats.bytes_sent += len(packet)
        if to is None and not path.relayed:
            to = path.address
        if to is not None:
            self._out.append((frame, to))
        else:
            self._relay(peer.node, frame)
        # An idle peer sleeps until it is forgotten; the first packet brings back the
        # keepalives of a peer in use.
        if peer.wake_at > now + KEEPALIVE_LATEST:
            self._schedule(peer, keepalive_at(now))

    def _reply(self, node: int, frame: bytes, source: Endpoint | None) -> None:
        """Send a frame where another one came from; None means by relay."""
        # Not where we believe the peer to be: an invented sender could otherwise aim
        # our answers at somebody else, and behind a NAT only this path is known to be
        # open.
        if source is None or self.relay_only:
            self._relay(node, frame)
        else:
            self._out.append((frame, source))

    def _relay(self, node: int, frame: bytes) -> None:
        if self.beacon is None:
            self.stats.dropped += 1
            return
        self._out.append((Relay(self.node_id, node, frame).encode(), self.beacon))

    def discover(self, now: float) -> None:
        """Tell the beacon where this node is; it answers with `Reflected`."""
        del now  # Sent at once: the owner keeps the cadence for all its nodes.
        if self.beacon is not None:
            self._out.append((Discover(self.node_id).encode(), self.beacon))

    def _punch(self, peer: Peer, now: float) -> None:
        # A relay-only peer wants no direct path (9.2).
        if self.beacon is None or peer.path.pinned:
            return
        request = PunchRequest(self.node_id, peer.node)
        self._out.append((request.encode(), self.beacon))
        punching = self._punching = self._punching or {}
        punching.pop(peer.node, None)
        punching[peer.node] = now + _PUNCH_ANSWER
        if len(punching) > _MAX_PUNCHING:
            del punching[next(iter(punching))]

    def _punched(self, endpoint: Endpoint, now: float) -> Peer | None:
        """Return whose endpoint a punch command names, if we asked for it.

        The command does not say. It is the peer at that IP, or the only one.
        """
        punching = {n: t for n, t in (self._punching or {}).items() if t > now}
        waiting = [self._peers[node] for node in punching if node in self._peers]
        found = waiting[0] if len(waiting) == 1 else None
        for peer in waiting:
            if peer.path.address is not None and peer.path.address[0] == endpoint[0]:
                found = peer
                break
        if found is not None:
            del punching[found.node]
        self._punching = punching or None
        return found

    def _use_relay(self, peer: Peer, now: float, *, probe_in: float) -> None:
        if self.beacon is None:
            return
        if not peer.path.relayed:
            self._emit_if_room(RelayActivated(peer.node))
        peer.path.use_relay(now, probe_in=probe_in)
        # The size was found on the direct path; the relay's is unknown and its header
        # takes room (11.1).
        self._fall_back(peer)
        if peer.session is not None:
            self._schedule(peer, peer.path.next_upgrade)

    def _fall_back(self, peer: Peer) -> None:
        """Return to the payload size that every path takes."""
        if peer.growth is not None and peer.growth.fall_back():
            self._emit(PayloadGrew(peer.node, peer.growth.size))
