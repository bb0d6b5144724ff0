"""Stream endpoints on a fake network, and packets made by hand."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.packet import Flag, Packet, Protocol, decode_packet
from pilotfleet.protocol.stream.config import StreamConfig
from pilotfleet.protocol.stream.endpoint import StreamEndpoint
from pilotfleet.protocol.stream.events import (
    DataReceived,
    StreamAccepted,
    StreamEvent,
    Writable,
)
from pilotfleet.testing.network import Conditions, FakeNetwork

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pilotfleet.protocol.stream.connection import StreamConnection

A, B = 1001, 3002
PORT = 77
E = TypeVar("E")


class FixedRandom(random.Random):
    """Randomness that a test can predict: one ISN, and no spread."""

    def __init__(self, isn: int = 0, chance: float = 0.0) -> None:
        super().__init__(0)
        self.isn = isn
        self.chance = chance

    def random(self) -> float:
        return self.chance

    def getrandbits(self, k: int, /) -> int:
        return self.isn


class Node:
    """A stream endpoint that reads and writes for its application."""

    def __init__(
        self,
        network: FakeNetwork,
        node_id: int,
        *,
        isn: int = 0,
        config: StreamConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.network = network
        self.node_id = node_id
        self.endpoint = StreamEndpoint(
            node_id, rng=rng or FixedRandom(isn), config=config or StreamConfig()
        )
        self.endpoint.is_public = True
        self.events: list[StreamEvent] = []
        self.sent: list[tuple[float, Packet]] = []
        self.received: dict[int, bytearray] = {}
        self.to_write: dict[int, memoryview] = {}
        self.connections: dict[int, StreamConnection] = {}
        self.reads = True
        network.attach(node_id, self.receive, self)

    @property
    def now(self) -> float:
        return self.network.clock.now

    def receive(self, data: bytes, source: Hashable, now: float) -> None:
        self.endpoint.receive_packet(decode_packet(data), now)
        self.pump()

    def next_timer(self) -> float | None:
        return self.endpoint.next_timer()

    def handle_timer(self, now: float) -> None:
        self.endpoint.handle_timer(now)
        self.pump()

    def pump(self) -> None:
        """Serve events, then send."""
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, DataReceived) and self.reads:
                self.read(event.connection)
            elif isinstance(event, Writable):
                self.write_more(event.connection)
            elif isinstance(event, StreamAccepted):
                self.connections[event.connection.id] = event.connection
        for peer, data in self.endpoint.packets_to_send():
            self.sent.append((self.now, decode_packet(data)))
            self.network.send(data, self.node_id, peer)

    def read(self, connection: StreamConnection, limit: int = 1 << 20) -> None:
        data = connection.read(limit, self.now)
        self.received.setdefault(connection.id, bytearray()).extend(data)

    def got(self, connection: StreamConnection) -> bytes:
        """Return everything read from a connection so far."""
        return bytes(self.received.get(connection.id, b""))

    def write(self, connection: StreamConnection, data: bytes) -> None:
        """Write all of it, as room allows."""
        self.to_write[connection.id] = memoryview(data)
        self.write_more(connection)
        self.pump()

    def write_more(self, connection: StreamConnection) -> None:
        data = self.to_write.get(connection.id, memoryview(b""))
        if data and connection.is_active:
            taken = connection.write(data, self.now)
            self.to_write[connection.id] = data[taken:]

    def connect(
        self, peer: int = B, port: int = PORT, network: int = 0
    ) -> StreamConnection:
        remote = SocketAddress(Address(network, peer), port)
        connection = self.endpoint.connect(remote, self.now)
        self.connections[connection.id] = connection
        self.pump()
        return connection

    def events_of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def take_sent(self) -> list[Packet]:
        """Return the packets sent since the last call."""
        packets = [packet for _, packet in self.sent]
        self.sent.clear()
        return packets

    def inject(self, packet: Packet) -> None:
        """Receive a packet made by hand."""
        self.endpoint.receive_packet(packet, self.now)
        self.pump()


def make_pair(
    *,
    conditions: Conditions | None = None,
    seed: int = 0,
    isn_a: int = 0,
    isn_b: int = 0,
    config: StreamConfig | None = None,
) -> tuple[FakeNetwork, Node, Node]:
    """Two nodes; B listens on PORT."""
    network = FakeNetwork(seed=seed, conditions=conditions or Conditions())
    a = Node(network, A, isn=isn_a, config=config)
    b = Node(network, B, isn=isn_b, config=config)
    b.endpoint.listen(PORT)
    return network, a, b


def open_stream(
    network: FakeNetwork, a: Node, b: Node
) -> tuple[StreamConnection, StreamConnection]:
    """Dial from A to B and return both ends, open."""
    ours = a.connect(b.node_id)
    assert network.run(until=lambda: bool(b.events_of(StreamAccepted)), limit_s=30)
    theirs = b.events_of(StreamAccepted)[-1].connection
    network.run(limit_s=0.1)
    return ours, theirs


def lonely_node(
    *, isn: int = 0, config: StreamConfig | None = None
) -> tuple[FakeNetwork, Node]:
    """One node whose peer is played by the test, packet by packet."""
    network = FakeNetwork()
    node = Node(network, A, isn=isn, config=config)
    node.endpoint.listen(PORT)
    return network, node


def packet_from_peer(
    flags: Flag,
    *,
    seq: int = 0,
    ack: int = 0,
    window: int = 512,
    payload: bytes = b"",
    src_port: int = 50000,
    dst_port: int = PORT,
    src_node: int = B,
    src_network: int = 0,
) -> Packet:
    """A packet from B to A."""
    return Packet(
        Protocol.STREAM,
        flags,
        src_network,
        src_node,
        src_network,
        A,
        src_port,
        dst_port,
        seq,
        ack,
        window,
        payload,
    )


def accept_from_peer(node: Node, *, window: int = 512) -> StreamConnection:
    """Let the hand-made peer open a stream; its next number is 1, ours too."""
    node.inject(packet_from_peer(Flag.SYN, window=window))
    node.inject(packet_from_peer(Flag.ACK, seq=1, ack=1, window=window))
    node.take_sent()
    return node.events_of(StreamAccepted)[-1].connection


def pattern(size: int, salt: int = 0) -> bytes:
    """Bytes in which a shift, swap or repetition shows."""
    return random.Random(salt).randbytes(size)
