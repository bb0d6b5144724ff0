"""A world of tunnel endpoints in memory: registry, beacon, network and clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import Endpoint
from pilotfleet.protocol.beacon import (
    Delivery,
    Discover,
    PunchCommand,
    PunchRequest,
    Reflection,
    Relay,
    decode_message,
    is_beacon_message,
)
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.packet import Flag, Packet, Protocol, encode_packet
from pilotfleet.protocol.tunnel.config import DEFAULT_CONFIG, TunnelConfig
from pilotfleet.protocol.tunnel.endpoint import TunnelEndpoint
from pilotfleet.protocol.tunnel.events import (
    Event,
    KeyWanted,
    PacketReceived,
    PathWanted,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.tunnel.keys import KeyPair

BEACON: Endpoint = ("198.51.100.1", 9001)
A, B = 1001, 3002

_VECTORS = Path(__file__).parents[2] / "vectors"

_EventT = TypeVar("_EventT")
Filter = Callable[[bytes, Endpoint, Endpoint], bool]


def vectors(name: str) -> Any:
    """Return one parsed vector file."""
    return json.loads((_VECTORS / name).read_bytes())


def seeded_random(seed: str) -> Callable[[int], bytes]:
    """Return a source of bytes that gives the same ones every time."""
    count = 0

    def random_bytes(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(f"{seed} {count}".encode()).digest(size)

    return random_bytes


def identity_of(node: int) -> Identity:
    """Return the identity that belongs to a node id in every test."""
    return Identity(hashlib.sha256(str(node).encode()).digest())


def stream_packet(source: int, target: int, payload: bytes = b"data") -> bytes:
    """Return an encoded stream packet."""
    return encode_packet(
        Packet(Protocol.STREAM, Flag.ACK, 0, source, 0, target, 1, 2, payload=payload)
    )


def control_packet(
    source: int,
    target: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    src_port: int = 0,
    dst_port: int = 0,
) -> bytes:
    """Return an encoded control packet."""
    return encode_packet(
        Packet(
            Protocol.CONTROL,
            flags,
            0,
            source,
            0,
            target,
            src_port,
            dst_port,
            payload=payload,
        )
    )


@dataclass
class Sent:
    """A datagram that left a node."""

    time: float
    source: Endpoint
    target: Endpoint
    data: bytes

    @property
    def magic(self) -> bytes:
        """The frame's magic, through relay envelopes."""
        if is_beacon_message(self.data):
            message = decode_message(self.data)
            return message.frame[:4] if isinstance(message, Relay) else b""
        return self.data[:4]

    @property
    def is_relay(self) -> bool:
        """It went to the beacon with a frame inside."""
        return self.data[:1] == b"\x05"


class Node:
    """One endpoint with its place in the world."""

    def __init__(
        self,
        node: int,
        *,
        config: TunnelConfig = DEFAULT_CONFIG,
        key_pair: KeyPair | None = None,
        generation: int = 0,
    ) -> None:
        self.id = node
        self.identity = identity_of(node)
        self.address: Endpoint = (f"203.0.113.{node % 250}", 40000 + node)
        self.endpoint = TunnelEndpoint(
            node,
            self.identity,
            random_bytes=seeded_random(f"{node}.{generation}"),
            config=config,
            key_pair=key_pair,
        )
        self.endpoint.beacon = BEACON
        self.events: list[Event] = []

    def of(self, kind: type[_EventT]) -> list[_EventT]:
        """Return the events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def payloads(self) -> list[bytes]:
        """Return what the received packets carried."""
        return [event.packet.payload for event in self.of(PacketReceived)]


@dataclass
class World:
    """Carries datagrams until none is left, and moves the clock."""

    nodes: dict[int, Node] = field(default_factory=dict)
    now: float = 1000.0
    sent: list[Sent] = field(default_factory=list)
    delivers: Filter = lambda data, source, target: True
    """Decides over each datagram to a node or the beacon."""
    relay_only: set[int] = field(default_factory=set)
    answers: bool = True
    """The registry answers wishes for paths and keys."""
    beacon_knows: dict[int, Endpoint] = field(default_factory=dict)
    registered: dict[int, Endpoint] = field(default_factory=dict)
    """What the registry tells instead of a node's own address."""

    def add(self, node: int, **options: Any) -> Node:
        """Add a node that is registered with the beacon, or restart one."""
        made = self.nodes[node] = Node(node, **options)
        self.beacon_knows[node] = made.address
        return made

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(1000):
            busy = [node.id for node in self.nodes.values() if self._step(node)]
            if not busy:
                return
        raise AssertionError("the endpoints never come to rest")

    def advance(self, seconds: float) -> None:
        """Move the clock, with every timer on the way at its time."""
        end = self.now + seconds
        for _ in range(10_000):
            timers = [node.endpoint.next_timer() for node in self.nodes.values()]
            due = min((t for t in timers if t is not None), default=end)
            if due > end:
                break
            self.now = max(self.now, due)
            for node in self.nodes.values():
                node.endpoint.handle_timer(self.now)
            self.settle()
            if not any(t is not None and t <= end for t in timers):
                break
        self.now = end

    def send(self, source: int, target: int, payload: bytes = b"data") -> None:
        """Send a stream packet and let it arrive."""
        packet = stream_packet(source, target, payload)
        self.nodes[source].endpoint.send_packet(target, packet, self.now)
        self.settle()

    def inject(
        self, target: int, data: bytes, source: Endpoint = ("192.0.2.66", 6)
    ) -> None:
        """Hand a datagram to a node as if the network had brought it."""
        self.nodes[target].endpoint.receive_datagram(data, source, self.now)
        self.settle()

    def filter_by_nat(self, behind: set[Endpoint]) -> None:
        """Put these behind NATs that let in only what was sent to before."""
        open_to = {(address, BEACON) for address in behind}

        def delivers(data: bytes, source: Endpoint, target: Endpoint) -> bool:
            open_to.add((source, target))
            return target not in behind or (target, source) in open_to

        self.delivers = delivers

    def frames(self, magic: bytes, source: int | None = None) -> list[Sent]:
        """Return what was sent with this magic, relayed or not."""
        address = self.nodes[source].address if source else None
        return [
            s
            for s in self.sent
            if s.magic == magic and (address is None or s.source == address)
        ]

    def _step(self, node: Node) -> bool:
        busy = False
        while (event := node.endpoint.next_event()) is not None:
            node.events.append(event)
            busy = True
            if self.answers:
                self._answer(node, event)
        for data, target in node.endpoint.datagrams_to_send():
            busy = True
            self.sent.append(Sent(self.now, node.address, target, data))
            if self.delivers(data, node.address, target):
                self._carry(data, node.address, target)
        return busy

    def _answer(self, node: Node, event: Event) -> None:
        match event:
            case PathWanted(peer) if peer in self.nodes:
                node.endpoint.set_peer_path(
                    peer,
                    address=self.registered.get(peer, self.nodes[peer].address),
                    relay_only=peer in self.relay_only,
                    now=self.now,
                )
            case PathWanted(peer):
                node.endpoint.path_failed(peer, self.now)
            case KeyWanted(peer):
                known = self.nodes.get(peer)
                key = known.identity.public_key if known else None
                node.endpoint.set_peer_key(peer, key, self.now)
            case _:
                pass

    def _carry(self, data: bytes, source: Endpoint, target: Endpoint) -> None:
        if target == BEACON:
            self._beacon(data, source)
            return
        for node in self.nodes.values():
            if node.address == target:
                node.endpoint.receive_datagram(data, source, self.now)

    def _beacon(self, data: bytes, source: Endpoint) -> None:
        try:
            message = decode_message(data)
        except DecodeError:
            # A node answers frames that seem to come from here; a beacon drops that.
            return
        match message:
            case Discover(node):
                self.beacon_knows[node] = source
                self._from_beacon(Reflection(source).encode(), source)
            case PunchRequest(requester, target):
                peer = self.beacon_knows.get(target)
                if peer is not None:
                    self._from_beacon(PunchCommand(peer).encode(), source)
                    self._from_beacon(PunchCommand(source).encode(), peer)
                del requester
            case Relay(sender, destination, frame):
                peer = self.beacon_knows.get(destination)
                if peer is not None:
                    self._from_beacon(Delivery(sender, frame).encode(), peer)
            case _:
                pass

    def _from_beacon(self, data: bytes, target: Endpoint) -> None:
        if self.delivers(data, BEACON, target):
            self._carry(data, BEACON, target)


def pair(**options: Any) -> tuple[World, Node, Node]:
    """Return a world with the nodes A and B."""
    world = World(**options)
    return world, world.add(A), world.add(B)


def connected(**options: Any) -> tuple[World, Node, Node]:
    """Return A and B with a tunnel that has carried a packet each way."""
    world, a, b = pair(**options)
    world.send(A, B)
    world.send(B, A)
    return world, a, b


def direct_is_blocked(data: bytes, source: Endpoint, target: Endpoint) -> bool:
    """Deliver only what goes to or comes from the beacon."""
    return BEACON in (source, target)


def nothing_arrives(data: bytes, source: Endpoint, target: Endpoint) -> bool:
    """Deliver nothing."""
    return False
