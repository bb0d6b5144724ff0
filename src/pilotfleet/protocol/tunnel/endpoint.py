"""All tunnels of one node (wire.md sections 4 to 10).

`TunnelEndpoint` takes datagrams and packets, and gives datagrams and events. It is
built in layers, each a module with one subject::

    TunnelEndpoint   endpoint    what comes in, what the application wants
    Upkeep           upkeep      timers: retransmission, keepalive, probes, resets
    KeyExchanger     exchanger   PILA and PILK, installing and replacing sessions
    Links            links       the peer table, output, events, the deadline heap

What belongs to one peer is in `peer`, `path`, `session` and `growth`; none of them
knows the endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Busy, DecodeError
from pilotfleet.protocol.beacon import (
    HANDSHAKE_WAITING,
    Delivery,
    Notify,
    PunchCommand,
    Reflection,
    decode_message,
    is_beacon_message,
)
from pilotfleet.protocol.packet import Flag, Packet, Protocol, decode_packet
from pilotfleet.protocol.tunnel import control
from pilotfleet.protocol.tunnel.config import (
    DEFAULT_CONFIG,
    SEGMENT_SIZE,
    UPGRADE_INTERVAL,
    TunnelConfig,
)
from pilotfleet.protocol.tunnel.events import (
    HandshakeWaiting,
    PacketReceived,
    PongReceived,
    Reflected,
    TunnelEstablished,
)
from pilotfleet.protocol.tunnel.frames import (
    AUTHENTICATED,
    KEY_REQUEST,
    MAGIC_SIZE,
    NODE_END,
    PUNCH,
    SEALED,
    SEALED_MIN,
)
from pilotfleet.protocol.tunnel.peer import KEEPALIVE_LATEST, NEVER, keepalive_at
from pilotfleet.protocol.tunnel.stats import PeerInfo
from pilotfleet.protocol.tunnel.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.identity import Identity
    from pilotfleet.protocol.tunnel.keys import KeyPair
    from pilotfleet.protocol.tunnel.peer import Peer

__all__ = ["TunnelEndpoint"]

# From the specification.
_PUNCHES: Final = 3

# Plain numbers, for they are compared with every packet.
_CONTROL: Final = int(Protocol.CONTROL)
_DATAGRAM: Final = int(Protocol.DATAGRAM)


class TunnelEndpoint(Upkeep):
    """The tunnels of one node. Performs no I/O."""

    __slots__ = ("_has_met_itself",)

    def __init__(
        self,
        node_id: int,
        identity: Identity,
        *,
        random_bytes: Callable[[int], bytes],
        config: TunnelConfig = DEFAULT_CONFIG,
        key_pair: KeyPair | None = None,
    ) -> None:
        """Make an endpoint without peers.

        Args:
            node_id: The own node id; may be set later, when the registry gave it.
            identity: Signs the own key exchange frames.
            random_bytes: Source of keys and nonce prefixes, such as os.urandom.
            config: Bounds and rates.
            key_pair: The own X25519 key, for test vectors; made when first needed.
        """
        super().__init__(
            node_id,
            identity,
            random_bytes=random_bytes,
            config=config,
            key_pair=key_pair,
        )
        self._has_met_itself = False

    def peers(self) -> list[PeerInfo]:
        """Describe the peers known now."""
        return [self._describe(peer) for peer in self._peers.values()]

    def connected_peers(self) -> list[int]:
        """Return the nodes that there is a tunnel to."""
        return [node for node, peer in self._peers.items() if peer.session is not None]

    def has_session(self, peer: int) -> bool:
        """Tell whether packets to the peer leave at once."""
        if peer == self.node_id:
            return True
        entry = self._peers.get(peer)
        return entry is not None and entry.session is not None

    def peer_key(self, peer: int) -> bytes | None:
        """Return the identity key of the peer, if it is known."""
        entry = self._peers.get(peer)
        return None if entry is None else entry.public_key

    def is_relayed(self, peer: int) -> bool:
        """Tell whether packets to the peer go through the beacon."""
        entry = self._peers.get(peer)
        return entry is not None and entry.path.relayed

    def knows_address(self, peer: int) -> bool:
        """Tell whether it is known where the peer is; True for a forgotten one."""
        entry = self._peers.get(peer)
        return entry is None or entry.path.address is not None

    def max_payload(self, peer: int) -> int:
        """Return the payload size that a packet to the peer may have."""
        entry = self._peers.get(peer)
        if entry is None or entry.growth is None:
            return SEGMENT_SIZE
        return entry.growth.size

    # Receiving

    def receive_datagram(self, data: bytes, source: Endpoint, now: float) -> None:
        """Take one UDP datagram. Never raises, whatever the bytes are."""
        # Nearly everything is this, so it is asked first and outside the ``try``.
        if data[:MAGIC_SIZE] == SEALED:
            self._receive_sealed(data, source, now)
            return
        try:
            if is_beacon_message(data):
                self._receive_beacon_message(data, source, now)
            else:
                self._receive_frame(data, source, now)
        except DecodeError:
            self.stats.dropped += 1

    def _receive_beacon_message(
        self, data: bytes, source: Endpoint, now: float
    ) -> None:
        if source != self.beacon:
            # Anybody could make us send or poll otherwise (wire.md section 8).
            self.stats.dropped += 1
            return
        match decode_message(data):
            case Delivery(frame=frame, destination=destination):
                if destination in (None, self.node_id):
                    self._receive_frame(frame, None, now)
            # A beacon can make us send three datagrams of four bytes anywhere: no more
            # than it could send itself.
            case PunchCommand(endpoint) if endpoint[1] and not self.relay_only:
                self._out.extend([(PUNCH, endpoint)] * _PUNCHES)
                self._greet_punched(endpoint, now)
            case Reflection(endpoint):
                self._emit_if_room(Reflected(endpoint))
            case Notify(kind) if kind == HANDSHAKE_WAITING:
                self._emit_if_room(HandshakeWaiting())
            case _:
                self.stats.dropped += 1

    def _receive_frame(self, frame: bytes, source: Endpoint | None, now: float) -> None:
        match frame[:MAGIC_SIZE]:
            case b"PILS":
                self._receive_sealed(frame, source, now)
            case magic if magic == AUTHENTICATED:
                self._receive_authenticated(frame, source, now)
            case magic if magic == KEY_REQUEST:
                self._receive_key_request(frame, source, now)
            case magic if magic == PUNCH:
                pass
            case _:
                # Plaintext (PILT) and fragments (PILF) are among these: the first
                # is never accepted, the second never asked for.
                self.stats.dropped += 1

    def _receive_sealed(
        self, frame: bytes, source: Endpoint | None, now: float
    ) -> None:
        if len(frame) < SEALED_MIN:
            self.stats.dropped += 1
            return
        # The sender in the frame selects the session, not the one in a relay
        # envelope, which nobody vouches for (wire.md 5.3).
        node = int.from_bytes(frame[MAGIC_SIZE:NODE_END])
        peer = self._peers.get(node)
        if peer is None or peer.session is None:
            # The peer believes in a session that we lost, for example by a restart. It
            # learns so only from us (6.4).
            if node not in (0, self.node_id):
                self._request_key(node, source, now)
            return
        data: bytes | None
        try:
            data = peer.session.open(frame)
        except DecodeError as error:
            data = self._open_failed(peer, frame, source, now)
            if data is None:
                self._count_failure(peer, error)
                return
        self._opened(peer, data, source, now)

    def _opened(
        self, peer: Peer, data: bytes, source: Endpoint | None, now: float
    ) -> None:
        """Act on an authentic packet."""
        # Only now, after authentication and replay check, may the frame move the path:
        # its source address proves nothing, the seal does (5.3 rule 6).
        peer.exchange = None
        if source is None:
            if peer.path.received_by_relay(now):
                self._leave_direct(peer, now)
        elif peer.path.received_directly(source, now) and peer.growth is not None:
            self._grow(peer, peer.growth, now)
        try:
            packet = decode_packet(data)
        except DecodeError:
            self.stats.dropped += 1
            return
        # A peer may speak for itself only; without this check any peer could act as any
        # other behind its own seal (5.3 rule 5).
        if packet.src_node != peer.node and not control.is_keepalive(packet):
            self.stats.dropped += 1
            return
        stats = self.stats
        stats.packets_received += 1
        stats.bytes_received += len(data)
        if packet.protocol == _CONTROL:
            self._receive_control(peer, packet, source, now)
        elif packet.protocol <= _DATAGRAM:
            self._deliver(peer, packet, relayed=source is None, now=now)

    def _deliver(
        self, peer: Peer, packet: Packet, *, relayed: bool, now: float
    ) -> None:
        peer.last_traffic = now
        if peer.wake_at > now + KEEPALIVE_LATEST:
            self._schedule(peer, keepalive_at(now))
        # The reference answers for any node id. Agents of one host have different
        # rights, so none may answer for its neighbour.
        if packet.dst_node != self.node_id:
            self.stats.dropped += 1
            return
        self._emit_if_room(PacketReceived(peer.node, packet, relayed))

    def _receive_control(
        self, peer: Peer, packet: Packet, source: Endpoint | None, now: float
    ) -> None:
        # Answered without counting as traffic: pings of a peer that nobody talks to
        # must not keep the tunnel in use.
        if control.wants_pong(packet):
            if self.admits is not None and not self.admits(peer.node):
                return
            if len(packet.payload) > SEGMENT_SIZE and peer.path.relayed:
                # A size probe that could only be answered on another path.
                return
            self._transmit(peer, control.pong(self.node_id, packet), now)
            if packet.payload == control.HELLO:
                self._hello_received(peer, now)
        elif packet.flags & Flag.ACK and packet.payload:
            if packet.payload == control.PATH_PROBE:
                return
            if not self._hello_or_probe_answered(peer, packet, now):
                self._emit_if_room(PongReceived(peer.node, packet))
        elif packet.flags & Flag.ACK and source is not None and not peer.path.pinned:
            # The peer looks for a direct path, and three frames from us are what it
            # waits for. If nobody uses the tunnel here, it gets none otherwise. Not
            # answered in turn: these carry no ACK.
            answer = control.keepalive(self.node_id)
            self._transmit(peer, answer, now, to=source)

    # What the application wants

    def send_packet(self, peer: int, packet: bytes, now: float) -> None:
        """Send an encoded packet; without a session, queue it and make one.

        Raises:
            Busy: Too many packets or peers wait for their keys.
        """
        entry = self._peers.get(peer)
        if entry is None or entry.session is None:
            self._send_later(peer, packet, now)
            return
        entry.last_traffic = now
        self._transmit(entry, packet, now)
        if entry.path.sent(now):
            self._schedule(entry, max(now, entry.path.blackhole_at))

    def ping(
        self, peer: int, payload: bytes, *, src_port: int, seq: int, now: float
    ) -> None:
        """Send a control ping; its answer is `PongReceived`. Payload not empty."""
        packet = control.ping(self.node_id, peer, payload, src_port=src_port, seq=seq)
        self.send_packet(peer, packet, now)

    def set_peer_path(
        self, peer: int, *, address: Endpoint | None, relay_only: bool, now: float
    ) -> None:
        """Take the answer to `PathWanted`: where the peer is to be reached."""
        entry = self._peers.get(peer)
        if entry is None:
            return
        if address is None and self.beacon is None:
            self.path_failed(peer, now)
            return
        entry.resolve_by = NEVER
        path = entry.path
        path.pin(relay_only or self.relay_only)
        if entry.session is not None:
            # Where frames come from directly is better than this. But a relayed peer
            # may have moved, as after its restart: probes go to what is known now.
            if path.relayed or path.address is None:
                path.address = address or path.address
            return
        is_news = address not in (None, path.address)
        if is_news:
            path.address = address
        # An exchange on the very same path is under way already and has its own timer.
        if is_news or entry.exchange is None:
            self._start_exchange(entry, now)

    def touch(self, peer: int, now: float) -> None:
        """Count as traffic: the peer is in use though nothing is sent just now."""
        entry = self._peers.get(peer)
        if entry is not None:
            entry.last_traffic = now
            self._schedule(entry, keepalive_at(now))

    def use_relay(self, peer: int, now: float) -> None:
        """Send through the beacon until the direct path proves itself (11.10)."""
        entry = self._peers.get(peer)
        if entry is not None:
            self._use_relay(entry, now, probe_in=UPGRADE_INTERVAL)

    def drop(self, peer: int, now: float) -> None:
        """End the tunnel and forget the peer."""
        del now  # Nothing is sent: peers notice by the frames they cannot open.
        entry = self._peers.get(peer)
        if entry is not None:
            self._forget(entry)

    def _send_later(self, node: int, packet: bytes, now: float) -> None:
        if node == self.node_id:
            self._loop_back(packet)
            return
        # The new packet is refused and not an old one dropped: the first is the SYN
        # that all others depend on (6.4).
        if self._queued >= self._config.max_queued:
            raise Busy(f"{self._queued} packets wait for keys of peers")
        peer = self._peer(node, now)
        queue = peer.queue = peer.queue or []
        if len(queue) >= self._config.max_queued_per_peer:
            raise Busy(f"{len(queue)} packets wait for the key of node {node}")
        queue.append(packet)
        self._queued += 1
        peer.last_traffic = now
        if peer.exchange is not None or peer.is_resolving:
            return
        # A known path is used without asking: the registry may be down while the peer
        # is not.
        if peer.path.address is None and not peer.path.relayed:
            self._resolve(peer, now)
        else:
            self._start_exchange(peer, now)

    def _loop_back(self, packet: bytes) -> None:
        """Deliver to this node itself; peers cannot tell (wire.md section 13)."""
        if not self._has_met_itself:
            self._has_met_itself = True
            established = TunnelEstablished(
                self.node_id, authenticated=True, relayed=False, rekeyed=False
            )
            self._emit(established)
        decoded = decode_packet(packet)
        if decoded.protocol != Protocol.CONTROL:
            self._emit(PacketReceived(self.node_id, decoded, relayed=False))
        elif control.wants_pong(decoded):
            answer = decode_packet(control.pong(self.node_id, decoded))
            self._emit(PongReceived(self.node_id, answer))

    def _describe(self, peer: Peer) -> PeerInfo:
        path, growth = peer.path, peer.growth
        return PeerInfo(
            node=peer.node,
            address=path.address,
            is_established=peer.session is not None,
            is_authenticated=peer.session is not None,
            is_relayed=path.relayed,
            is_relay_pinned=path.pinned,
            is_pilotfleet=growth is not None and growth.is_pilotfleet,
            max_payload=SEGMENT_SIZE if growth is None else growth.size,
            public_key=peer.public_key,
            last_receive=path.last_receive,
            last_send=path.last_send,
        )
