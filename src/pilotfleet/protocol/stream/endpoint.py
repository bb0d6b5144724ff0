"""All streams of one node: lookup, ports, listeners, gate (wire.md section 11).

How to drive an endpoint, after each batch of input or a timer: take events until
there are none, then take the packets, then arm one timer. In this order a
``RelayWanted`` comes before the packet that it is about, and an answer written by
an event's handler leaves in the same batch, with the acknowledgement on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import AlreadyExists, Busy, NotFound
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.stream.config import NEVER, StreamConfig
from pilotfleet.protocol.stream.connection import StreamConnection
from pilotfleet.protocol.stream.events import (
    AdmissionWanted,
    SynCause,
    SynDropped,
)
from pilotfleet.protocol.stream.gate import SynGate
from pilotfleet.protocol.stream.packets import (
    ACK,
    FIN,
    RST,
    STREAM,
    SYN,
    encode_stream_packet,
)
from pilotfleet.protocol.stream.state import State
from pilotfleet.protocol.stream.table import ConnectionTable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from pilotfleet.protocol.packet import Packet
    from pilotfleet.protocol.stream.events import StreamEvent

__all__ = ["DEFAULT_CONFIG", "StreamEndpoint"]

# From the specification (wire.md section 3).
FIRST_EPHEMERAL: Final = 49152
EPHEMERAL_COUNT: Final = 16384

DEFAULT_CONFIG: Final = StreamConfig()


def _nothing_listens(port: int) -> bool:
    return False


def _tunnel_is_up(peer: int) -> bool:
    return True


def _port_is_allowed(network: int, port: int) -> bool:
    return True


class StreamEndpoint:
    """The stream connections of one node. Performs no I/O."""

    __slots__ = (
        "_config",
        "_gate",
        "_listeners",
        "_next_id",
        "_next_port",
        "_rng",
        "_table",
        "accept_drops",
        "has_tunnel",
        "is_public",
        "listens_by_default",
        "node_id",
        "port_is_allowed",
    )

    def __init__(
        self,
        node_id: int,
        *,
        rng: random.Random,
        config: StreamConfig = DEFAULT_CONFIG,
    ) -> None:
        self.node_id = node_id
        self.is_public = False
        """Whether everybody may connect, without asking for admission."""
        self.listens_by_default: Callable[[int], bool] = _nothing_listens
        """Says which ports are served for every node of the host."""
        self.has_tunnel: Callable[[int], bool] = _tunnel_is_up
        """Says whether a packet to a peer leaves at once; if not, a dial waits for
        :meth:`tunnel_ready`."""
        self.port_is_allowed: Callable[[int, int], bool] = _port_is_allowed
        """The port policy of a network: (network, port)."""
        self.accept_drops = 0
        """Streams refused because nobody took the earlier ones over."""
        self._config = config
        self._rng = rng
        self._listeners: frozenset[int] = frozenset()
        self._table: ConnectionTable | None = None
        self._gate: SynGate | None = None
        self._next_id = 1
        self._next_port = 0

    # Ports.

    def listen(self, port: int) -> None:
        """Accept connections to a port.

        Raises:
            AlreadyExists: Something listens there.
        """
        if self.is_listening(port):
            raise AlreadyExists(f"port {port} is already listened on")
        self._listeners |= {port}

    def unlisten(self, port: int) -> None:
        """Refuse connections to a port; accepted ones stay.

        Raises:
            NotFound: Nothing of this node listens there.
        """
        if port not in self._listeners:
            raise NotFound(f"port {port} is not listened on")
        self._listeners -= {port}

    def is_listening(self, port: int) -> bool:
        """Return whether connections to a port are accepted."""
        return port in self._listeners or self.listens_by_default(port)

    # Connections.

    def connections(self) -> Iterable[StreamConnection]:
        """Return all connections, with those that only wait to be forgotten."""
        return list(self._table) if self._table is not None else []

    @property
    def open_count(self) -> int:
        """How many connections are not finished."""
        return len(self._table.active) if self._table is not None else 0

    def connect(self, remote: SocketAddress, now: float) -> StreamConnection:
        """Dial a peer; ``StreamOpened`` or ``StreamFailed`` follows.

        Raises:
            Busy: No connection or no ephemeral port is free.
        """
        table = self._open_table(now)
        if len(table.active) >= self._config.max_connections:
            raise Busy(f"all {self._config.max_connections} connections are in use")
        port = self._take_port(table)
        local = SocketAddress(Address(remote.address.network, self.node_id), port)
        connection = self._make(local, remote, table)
        connection.dial(now, has_tunnel=self.has_tunnel(remote.address.node))
        table.add(connection)
        return connection

    def tunnel_ready(self, peer: int, now: float) -> None:
        """Note that packets to a peer leave from now on; dials begin to count."""
        for connection in self._dialling(peer, now):
            connection.tunnel_ready(now)

    def tunnel_failed(self, peer: int, reason: str, now: float) -> None:
        """Note that a peer cannot be reached; dials to it fail."""
        for connection in self._dialling(peer, now):
            connection.fail_dial(reason)

    def doubt_peer(self, peer: int, now: float) -> None:
        """Note that a peer has new tunnel keys: it may be another process.

        Connections that it does not know any more end within seconds.
        """
        for connection in self.connections():
            if connection.remote.address.node == peer:
                connection.doubt(now)

    def shut_down(self, now: float) -> None:
        """Send a FIN on every connection without waiting for anything."""
        for connection in self.connections():
            connection.shut_down(now)

    # Input.

    def receive_packet(self, packet: Packet, now: float) -> None:
        """Take one packet of the stream protocol."""
        if packet.protocol != STREAM or packet.dst_node != self.node_id:
            return
        flags = packet.flags
        table = self._table
        connection = None
        if table is not None:
            table.now = now
            connection = table.active.get(
                (packet.dst_port, packet.src_network, packet.src_node, packet.src_port)
            )
        if flags & SYN and not flags & ACK:
            self._receive_syn(packet, connection, now)
        elif connection is None:
            if flags & RST and not flags & (SYN | FIN):
                self._forget_finished(packet)
            elif flags == ACK and packet.payload and not self._finished(packet):
                # 1.18.0 stays silent. Its peer then retries for a minute after a
                # restart; a RST ends that, and nobody answers a RST.
                self._refuse(packet, now)
        elif flags == ACK:
            connection.receive_ack(packet, now)
        elif flags & SYN:
            connection.receive_syn_ack(packet, now)
        elif flags & FIN:
            connection.receive_fin(packet, now)
        elif flags & RST:
            connection.receive_rst()

    def admit(
        self, peer: int, *, allowed: bool, now: float, port: int | None = None
    ) -> None:
        """Answer ``AdmissionWanted``, for one port or for all that were asked."""
        if self._gate is None:
            return
        packets = self._gate.release(peer, port)
        if allowed:
            for packet in packets:
                self._admit_syn(packet, now)

    # Output.

    @property
    def has_events(self) -> bool:
        """Whether events wait; flushing may bring more."""
        return self._table is not None and self._table.has_events

    def next_event(self) -> StreamEvent | None:
        """Return the next event, flushing first if that may bring one; or None."""
        return self._table.next_event() if self._table is not None else None

    def packets_to_send(self) -> list[tuple[int, bytes]]:
        """Return encoded packets with the node each goes to."""
        return self._table.take_packets() if self._table is not None else []

    # Timers.

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        if self._table is not None:
            self._table.handle_timer(now)
        if self._gate is not None:
            self._gate.drop_expired(now)
        self._free_when_idle(now)

    def next_timer(self) -> float | None:
        """Return when :meth:`handle_timer` wants to be called, or None."""
        if self._table is None:
            return None
        deadline = self._table.next_timer()
        if self._gate is not None:
            deadline = min(deadline, self._gate.deadline)
        if deadline == NEVER:
            self._free_when_idle(self._table.now)
            return None
        return deadline

    # The gate.

    def _receive_syn(
        self, packet: Packet, connection: StreamConnection | None, now: float
    ) -> None:
        """Check a SYN in the order of wire.md section 11.4."""
        if not self.is_listening(packet.dst_port):
            self._refuse(packet, now)
        elif connection is not None and connection.state is State.SYN_SENT:
            # Both ends dial each other from the very ports they dial to: nobody does.
            return
        elif connection is not None and connection.repeats_syn(packet):
            connection.resend_syn_ack(now)
        elif self.is_public:
            self._admit_syn(packet, now)
        else:
            self._ask_admission(packet, now)

    def _ask_admission(self, packet: Packet, now: float) -> None:
        gate = self._open_gate(now)
        if gate.hold(packet, now + self._config.admission_s):
            event = AdmissionWanted(packet.src_node, packet.dst_port)
            self._open_table(now).emit(event)

    def _admit_syn(self, packet: Packet, now: float) -> None:
        """Go on with a SYN whose sender is trusted."""
        table, config, port = self._open_table(now), self._config, packet.dst_port
        if not self.port_is_allowed(packet.dst_network, port):
            table.emit(SynDropped(packet, SynCause.POLICY))
            return
        is_exempt = packet.src_node in config.syn_whitelist
        if not is_exempt and not self._open_gate(now).allows(packet.src_node, now):
            table.emit(SynDropped(packet, SynCause.RATE))
            return
        most = config.max_connections_on.get(port, config.max_connections_per_port)
        if (
            table.count_on_port(port) >= most
            or len(table.active) >= config.max_connections
        ):
            self._refuse(packet, now)
        elif table.count_accepting(port) >= config.accept_backlog:
            self.accept_drops += 1
            self._refuse(packet, now)
            table.emit(SynDropped(packet, SynCause.BACKLOG))
        else:
            self._accept(packet, table, now)

    def _accept(self, packet: Packet, table: ConnectionTable, now: float) -> None:
        local, remote = _ends(packet)
        connection = self._make(local, remote, table)
        older = table.active.get(connection.key)
        if older is not None:
            older.replace()
        table.add(connection)
        connection.accept(packet, now)

    def _refuse(self, packet: Packet, now: float) -> None:
        local, remote = _ends(packet)
        outbox = self._open_table(now).outbox
        outbox.append((packet.src_node, encode_stream_packet(local, remote, RST)))

    # Private helpers.

    def _make(
        self, local: SocketAddress, remote: SocketAddress, table: ConnectionTable
    ) -> StreamConnection:
        number = self._next_id
        self._next_id = number % 0xFFFF_FFFF + 1
        return StreamConnection(
            number, local, remote, table=table, rng=self._rng, config=self._config
        )

    def _open_table(self, now: float) -> ConnectionTable:
        if self._table is None:
            self._table = ConnectionTable(now, max_finished=self._config.max_finished)
        self._table.now = now
        return self._table

    def _open_gate(self, now: float) -> SynGate:
        if self._gate is None:
            config = self._config
            self._gate = SynGate(
                now, max_held=config.max_waiting_syns, rate=config.syn_rate
            )
        return self._gate

    def _free_when_idle(self, now: float) -> None:
        if self._gate is not None and self._gate.is_idle(now):
            self._gate = None
        table = self._table
        if table is not None and table.is_empty and self._gate is None:
            self._table = None

    def _take_port(self, table: ConnectionTable) -> int:
        for _ in range(EPHEMERAL_COUNT):
            port = FIRST_EPHEMERAL + self._next_port
            self._next_port = (self._next_port + 1) % EPHEMERAL_COUNT
            if not table.has_port(port) and not self.is_listening(port):
                return port
        raise Busy(f"all {EPHEMERAL_COUNT} ephemeral ports are in use")

    def _dialling(self, peer: int, now: float) -> list[StreamConnection]:
        if self._table is None:
            return []
        self._table.now = now
        return [
            connection
            for connection in self._table.dialling.values()
            if connection.remote.address.node == peer
        ]

    def _finished(self, packet: Packet) -> StreamConnection | None:
        key = (packet.dst_port, packet.src_network, packet.src_node, packet.src_port)
        return self._table.finished.get(key) if self._table is not None else None

    def _forget_finished(self, packet: Packet) -> None:
        connection = self._finished(packet)
        if connection is not None:
            connection.receive_rst()


def _ends(packet: Packet) -> tuple[SocketAddress, SocketAddress]:
    """Return our end and the peer's of a packet received."""
    local = Address(packet.dst_network, packet.dst_node)
    remote = Address(packet.src_network, packet.src_node)
    return (
        SocketAddress(local, packet.dst_port),
        SocketAddress(remote, packet.src_port),
    )
