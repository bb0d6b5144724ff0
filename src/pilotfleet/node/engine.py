"""The I/O of one agent: its socket, its tunnels and its streams.

A datagram's way in is one synchronous pass: socket, tunnels, streams, the waiting
reader. The way out is gathered: whatever is written during one turn of the event
loop is sealed and leaves in one batch, so that an answer written by the reader
carries the acknowledgement of the question.

What programs ask of an agent is in `pilotfleet.node.agent`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pilotfleet.errors import Busy, PilotError
from pilotfleet.node.ports import PortTable
from pilotfleet.node.stream import Stream
from pilotfleet.node.trust import TrustStore
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.identity import encode_key_text
from pilotfleet.protocol.packet import Flag, Packet, Protocol
from pilotfleet.protocol.stream import events as stream_events
from pilotfleet.protocol.stream.endpoint import StreamEndpoint
from pilotfleet.protocol.stream.packets import STREAM
from pilotfleet.protocol.tunnel import events as tunnel_events
from pilotfleet.protocol.tunnel.endpoint import TunnelEndpoint
from pilotfleet.transport.udp import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pilotfleet.node.config import AgentSpec
    from pilotfleet.node.host import Host
    from pilotfleet.node.routing import Path as PeerPath
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.identity import Identity

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

MAX_PATH_ERRORS = 256
"""Refusals kept for dials that fail because of them."""
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}


class Engine(ABC):
    """Carries packets between the socket and the streams of one agent."""

    __slots__ = (
        "__weakref__",
        "_is_dirty",
        "_path_errors",
        "_socket",
        "_trust",
        "closed",
        "host",
        "identity",
        "is_public",
        "name",
        "node_id",
        "ports",
        "spec",
        "streams",
        "tunnels",
    )

    def __init__(self, host: Host, spec: AgentSpec, identity: Identity) -> None:
        self.host = host
        self.spec = spec
        self.name = spec.name
        self.identity = identity
        self.is_public = spec.is_public
        self.node_id = 0
        self.closed = False
        # An idle agent must be small, for a host has many thousands: what only some of
        # them need is made at its first use.
        self._is_dirty = False
        self._trust: TrustStore | None = None
        self._path_errors: dict[int, PilotError] | None = None
        self.ports = PortTable(host.services)
        self.tunnels = TunnelEndpoint(
            0, identity, random_bytes=host.random_bytes, config=host.tunnel_config
        )
        self.tunnels.beacon = host.beacon
        self.tunnels.relay_only = spec.relay_only
        if host.config.strict_dataplane_trust:
            self.tunnels.admits = self.admits_peer
        self.streams = StreamEndpoint(0, rng=host.rng, config=host.stream_config(spec))
        self.streams.is_public = spec.is_public
        self.streams.listens_by_default = host.is_served
        # The two cores know nothing of each other; this and the events are all that
        # joins them.
        self.streams.has_tunnel = self.tunnels.has_session
        self._socket = UdpSocket(
            host.loop,
            spec.listen,
            self._on_datagrams,
            buffer=host.receive_buffer,
            gathers=True,
        )

    @property
    def address(self) -> Address:
        """Its address on the backbone."""
        return Address(BACKBONE, self.node_id)

    @property
    def socket(self) -> UdpSocket:
        """Its UDP socket."""
        return self._socket

    @property
    def trust(self) -> TrustStore:
        """Whom it trusts; read from its file at the first use.

        Raises:
            ConfigError: The file is damaged.
        """
        if self._trust is None:
            self._trust = self._read_trust()
        return self._trust

    @property
    def _trust_path(self) -> Path:
        return self.spec.identity_path.with_name("trust.json")

    def load_trust(self) -> None:
        """Read the trust file now if there is one: damage must show at the start.

        Raises:
            ConfigError: The file is damaged.
        """
        if self._trust is None and self._trust_path.exists():
            self._trust = self._read_trust()

    def _read_trust(self) -> TrustStore:
        store = TrustStore.load(self._trust_path, wall=self.host.wall())
        # From the first change on: a key can be bound before any service asks.
        store.on_change = self.host.on_trust_change
        return store

    def adopt(self, node_id: int) -> None:
        """Become the node that the registry says this identity is."""
        self.node_id = node_id
        # Not made anew: a registry that comes back empty gives other numbers, and the
        # tunnel key and its counters must survive that.
        self.tunnels.node_id = node_id
        self.streams.node_id = node_id

    @abstractmethod
    def admits_peer(self, peer: int) -> bool:
        """Tell whether a peer may exchange keys, where not everybody may."""

    def own_endpoint(self) -> Endpoint:
        """Return where this machine reaches the agent's socket."""
        host, port = self._socket.address
        return _EVERY_ADDRESS.get(host, host), port

    # Answers to what the cores want

    def set_peer_path(self, peer: int, path: PeerPath) -> None:
        """Tell the tunnels how to reach ``peer``."""
        if self.closed:
            return
        if path.address is not None and not self.tunnels.knows_address(peer):
            self.on_peer_found(peer, path.address)
        self.tunnels.set_peer_path(
            peer,
            address=path.address,
            relay_only=path.is_relay_only,
            now=self.host.now(),
        )
        self.mark_dirty()

    def path_failed(self, peer: int, error: PilotError) -> None:
        """Tell the tunnels that ``peer`` cannot be resolved."""
        if self.closed:
            return
        # The tunnel's event says only that it failed. A person who dialled wants the
        # registry's words.
        if self._path_errors is None:
            self._path_errors = {}
        self._path_errors[peer] = error
        if len(self._path_errors) > MAX_PATH_ERRORS:
            # Not every path is wanted by a dial that takes its error away.
            del self._path_errors[next(iter(self._path_errors))]
        self.tunnels.path_failed(peer, self.host.now())
        self.mark_dirty()

    def set_peer_key(
        self, peer: int, key: bytes | None, *, rotated: bool = False
    ) -> None:
        """Tell the tunnels the identity key of ``peer``; None: no such node.

        Args:
            peer: The node.
            key: What the registry says is its key.
            rotated: The registry says that the node has changed its key before.
        """
        if self.closed:
            return
        if key is not None and self.trust.is_trusted(peer):
            # Trust is bound to the key (trust.md section 3).
            text = encode_key_text(key)
            if not self.trust.bind_key(peer, text, rotated=rotated):
                logger.warning(
                    "agent %s: node %d has another key; trust ends", self.name, peer
                )
        self.tunnels.set_peer_key(peer, key, self.host.now())
        self.mark_dirty()

    # The way in and the way out

    def mark_dirty(self) -> None:
        """Have ``flush`` called in this turn of the event loop."""
        if not self._is_dirty:
            self._is_dirty = True
            self.host.flush_soon(self)

    def flush(self) -> None:
        """Seal and send what the streams and tunnels have ready."""
        self._is_dirty = False
        # The host may have it on its list from earlier in the same turn.
        if self.closed:
            return
        now = self.host.now()
        # Events first: what their handlers write leaves in the same batch.
        self._dispatch(now)
        # Sealing brings events where a tunnel to the own node delivers at once, and
        # their handlers can write again.
        while self._seal(now) and self.tunnels.has_events:
            self._dispatch(now)
        datagrams = self.tunnels.datagrams_to_send()
        if datagrams:
            self._socket.send(datagrams)
        self._arm()

    def handle_timer(self, now: float) -> None:
        """Let the cores act on their deadlines."""
        # After a long turn of the loop timers come first. What has arrived meanwhile
        # must not be taken for missing, and sent or asked for again.
        self._socket.read_now()
        if self.closed:
            return
        self.tunnels.handle_timer(now)
        self.streams.handle_timer(now)
        self.mark_dirty()

    def close(self) -> None:
        """Let go of the socket and of everybody who waits."""
        if self.closed:
            return
        self.closed = True
        self.host.wheel.cancel(self)
        for connection in self.streams.connections():
            if isinstance(connection.owner, Stream):
                connection.owner.on_closed("daemon is shutting down")
        self._socket.close()

    def finish_streams(self) -> None:
        """End every stream once what was written to it is acknowledged."""
        now = self.host.now()
        for connection in self.streams.connections():
            connection.close(now)
        self.mark_dirty()

    def shut_streams_down(self) -> None:
        """Send the FIN of every stream, whatever is still on its way."""
        self.streams.shut_down(self.host.now())
        self.mark_dirty()

    def _on_datagrams(self, datagrams: Iterable[tuple[bytes, Endpoint]]) -> None:
        # One time for the whole batch: the cores only compare it.
        now = self.host.now()
        receive = self.tunnels.receive_datagram
        try:
            for data, source in datagrams:
                receive(data, source, now)
            self._dispatch_tunnels(now)
            # The streams are not flushed yet: what a reader answers in this turn shall
            # carry the acknowledgement.
            while self.streams.has_events:
                self._dispatch_stream(now)
        except Exception:  # A defect here must not stop the neighbours.
            logger.exception("agent %s failed on a datagram", self.name)
        self.mark_dirty()

    def _seal(self, now: float) -> bool:
        """Give the tunnels what the streams have; tell whether it was anything."""
        packets = self.streams.packets_to_send()
        send = self.tunnels.send_packet
        for peer, packet in packets:
            try:
                send(peer, packet, now)
            except Busy:
                # The stream sends it again; until then the peer's key may be there.
                self.host.packets_refused += 1
        return bool(packets)

    def _arm(self) -> None:
        tunnels, streams = self.tunnels.next_timer(), self.streams.next_timer()
        if tunnels is None:
            deadline = streams
        elif streams is None:
            deadline = tunnels
        else:
            deadline = min(tunnels, streams)
        if deadline is None:
            self.host.wheel.cancel(self)
        else:
            self.host.wheel.schedule(self, deadline)

    def _dispatch(self, now: float) -> None:
        """Act on every event of the cores."""
        self._dispatch_tunnels(now)
        while self._dispatch_stream(now):
            pass

    def _dispatch_tunnels(self, now: float) -> None:
        while (event := self.tunnels.next_event()) is not None:
            # Packets and their data are the hot path, so they do not go through the
            # dispatch by class.
            if type(event) is tunnel_events.PacketReceived:
                self._on_packet(event.packet, now)
            else:
                self.on_tunnel_event(event, now)

    def _dispatch_stream(self, now: float) -> bool:
        """Act on the next event of the streams, if there is one."""
        event = self.streams.next_event()
        if type(event) is stream_events.DataReceived:
            owner = event.connection.owner
            if isinstance(owner, Stream):
                owner.on_readable()
        elif event is not None:
            self.on_stream_event(event, now)
        return event is not None

    def _on_packet(self, packet: Packet, now: float) -> None:
        if packet.dst_node != self.node_id:
            # The official daemon answers for any node (wire.md 11.2); we do not.
            self.host.packets_misaddressed += 1
        elif packet.dst_network != BACKBONE and _is_opening(packet):
            self.host.port_policies.admit(
                packet.dst_network, packet.dst_port, lambda: self._admit_packet(packet)
            )
        elif packet.protocol == STREAM:
            self.streams.receive_packet(packet, now)
        elif packet.protocol == Protocol.DATAGRAM:
            self.on_datagram(packet)

    def _admit_packet(self, packet: Packet) -> None:
        """Take a packet that the policy of its network allows, perhaps after a wait."""
        if self.closed:
            return
        if packet.protocol == Protocol.STREAM:
            self.streams.receive_packet(packet, self.host.now())
            self.mark_dirty()
        else:
            self.on_datagram(packet)

    @abstractmethod
    def on_peer_found(self, peer: int, address: Endpoint) -> None:
        """Take note of where a new peer is."""

    @abstractmethod
    def on_tunnel_event(self, event: tunnel_events.Event, now: float) -> None:
        """React to anything from the tunnels but a packet."""

    @abstractmethod
    def on_stream_event(self, event: stream_events.StreamEvent, now: float) -> None:
        """React to what the streams report, but for data."""

    @abstractmethod
    def on_datagram(self, packet: Packet) -> None:
        """Take a datagram of a peer."""


def _is_opening(packet: Packet) -> bool:
    """Tell whether a packet begins something: a SYN, or any datagram."""
    if packet.protocol == Protocol.DATAGRAM:
        return True
    flags = packet.flags & (Flag.SYN | Flag.ACK)
    return packet.protocol == Protocol.STREAM and flags == Flag.SYN
