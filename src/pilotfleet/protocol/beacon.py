"""Beacon messages: the ten UDP datagrams below 0x10 (beacon.md section 1).

One frozen value per message, ``encode()`` on each, and one `decode_message`.
Decoding is lenient where the specification is: bytes past a fixed body are
ignored, an optional tail that is too short counts as absent, and an IPv4-mapped
address in 16 bytes is the IPv4 address.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = [
    "HANDSHAKE_WAITING",
    "MAX_SYNC_NODES",
    "BeaconMessage",
    "Delivery",
    "Discover",
    "Grant",
    "MessageType",
    "Notify",
    "PunchCommand",
    "PunchRequest",
    "Reflection",
    "Relay",
    "Sync",
    "decode_message",
    "is_beacon_message",
]

# From the specification.
HANDSHAKE_WAITING: Final = 1
"""The only notify kind: the registry holds a trust handshake for the node."""
MAX_SYNC_NODES: Final = 0xFFFF
_FIRST_TUNNEL_BYTE: Final = 0x10
_KEY_SIZE: Final = 32
_SIGNATURE_SIZE: Final = 64

_NODE: Final = struct.Struct("!BI")
_PAIR: Final = struct.Struct("!BII")
_SYNC: Final = struct.Struct("!BIH")
_PORT: Final = struct.Struct("!H")
_EXPIRY: Final = struct.Struct("!Q")
_IPV4_SIZE: Final = 4
_IPV6_SIZE: Final = 16
_ENDPOINT_OVERHEAD: Final = 4
"""Type, address length and port around the address bytes."""


class MessageType(IntEnum):
    """The first byte of a beacon message."""

    DISCOVER = 0x01
    REFLECTION = 0x02
    PUNCH_REQUEST = 0x03
    PUNCH_COMMAND = 0x04
    RELAY = 0x05
    DELIVERY = 0x06
    SYNC = 0x07
    DISCOVER_EXTENDED = 0x08
    DELIVERY_EXTENDED = 0x09
    NOTIFY = 0x0A


@dataclass(frozen=True, slots=True)
class Discover:
    """A node makes its endpoint known, or (as node 0) only asks for it."""

    node: int
    public_key: bytes | None = None
    """32 bytes, kept by the beacon for punch grants; 1.18.0 sends none."""
    extended: bool = False
    """0x08: the sender wants deliveries that name their destination."""

    def encode(self) -> bytes:
        """Return the datagram."""
        kind = MessageType.DISCOVER
        if self.extended:
            kind = MessageType.DISCOVER_EXTENDED
        return _NODE.pack(kind, self.node) + (self.public_key or b"")


@dataclass(frozen=True, slots=True)
class Reflection:
    """The beacon's answer to a discover: where the datagram came from."""

    endpoint: Endpoint

    def encode(self) -> bytes:
        """Return the datagram."""
        return _encode_endpoint(MessageType.REFLECTION, self.endpoint)


@dataclass(frozen=True, slots=True)
class Grant:
    """The target's permission to punch, signed by its key."""

    expiry: int
    """Unix seconds."""
    signature: bytes

    def encode(self) -> bytes:
        """Return the 72 bytes that follow a punch request."""
        return _EXPIRY.pack(self.expiry) + self.signature

    @staticmethod
    def signed_text(requester: int, target: int, expiry: int) -> bytes:
        """Return what the target signs."""
        return f"punch-grant:{requester}:{target}:{expiry}".encode()


@dataclass(frozen=True, slots=True)
class PunchRequest:
    """A node asks that both sides open their NAT for each other."""

    requester: int
    target: int
    grant: Grant | None = None

    def encode(self) -> bytes:
        """Return the datagram."""
        body = _PAIR.pack(MessageType.PUNCH_REQUEST, self.requester, self.target)
        return body + (self.grant.encode() if self.grant else b"")


@dataclass(frozen=True, slots=True)
class PunchCommand:
    """The beacon tells a node to send punch packets to this endpoint."""

    endpoint: Endpoint

    def encode(self) -> bytes:
        """Return the datagram."""
        return _encode_endpoint(MessageType.PUNCH_COMMAND, self.endpoint)


@dataclass(frozen=True, slots=True)
class Relay:
    """A tunnel frame on its way to the beacon. ``sender`` is not proven."""

    sender: int
    destination: int
    frame: bytes

    def encode(self) -> bytes:
        """Return the datagram."""
        return _PAIR.pack(MessageType.RELAY, self.sender, self.destination) + self.frame


@dataclass(frozen=True, slots=True)
class Delivery:
    """A relayed tunnel frame on its way to the node."""

    sender: int
    frame: bytes
    destination: int | None = None
    """Named only towards nodes that registered with an extended discover."""

    def encode(self) -> bytes:
        """Return the datagram."""
        if self.destination is None:
            return _NODE.pack(MessageType.DELIVERY, self.sender) + self.frame
        kind = MessageType.DELIVERY_EXTENDED
        return _PAIR.pack(kind, self.sender, self.destination) + self.frame


@dataclass(frozen=True, slots=True)
class Sync:
    """Gossip between beacons: the nodes that ``beacon`` serves itself."""

    beacon: int
    nodes: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the datagram; at most `MAX_SYNC_NODES` nodes fit."""
        count = len(self.nodes)
        head = _SYNC.pack(MessageType.SYNC, self.beacon, count)
        return head + struct.pack(f"!{count}I", *self.nodes)


@dataclass(frozen=True, slots=True)
class Notify:
    """Something waits for the node at the registry."""

    kind: int = HANDSHAKE_WAITING

    def encode(self) -> bytes:
        """Return the datagram."""
        return bytes((MessageType.NOTIFY, self.kind))


BeaconMessage: TypeAlias = (
    Discover
    | Reflection
    | PunchRequest
    | PunchCommand
    | Relay
    | Delivery
    | Sync
    | Notify
)


def is_beacon_message(data: bytes) -> bool:
    """Tell beacon messages from tunnel frames, which begin with ``P``."""
    return bool(data) and data[0] < _FIRST_TUNNEL_BYTE


def decode_message(data: bytes) -> BeaconMessage:
    """Read one datagram.

    Raises:
        DecodeError: Empty, of an unknown type, or too short.
    """
    decode = _DECODERS.get(data[0]) if data else None
    if decode is None:
        raise DecodeError(f"beacon message of unknown type {data[:1].hex() or 'none'}")
    return decode(data)


def _decode_discover(data: bytes) -> Discover:
    kind, node = _unpack(_NODE, data)
    tail = data[_NODE.size : _NODE.size + _KEY_SIZE]
    key = tail if len(tail) == _KEY_SIZE else None
    return Discover(node, key, extended=kind == MessageType.DISCOVER_EXTENDED)


def _decode_punch_request(data: bytes) -> PunchRequest:
    _, requester, target = _unpack(_PAIR, data)
    tail = data[_PAIR.size : _PAIR.size + _EXPIRY.size + _SIGNATURE_SIZE]
    if len(tail) < _EXPIRY.size + _SIGNATURE_SIZE:
        return PunchRequest(requester, target)
    (expiry,) = _EXPIRY.unpack_from(tail)
    return PunchRequest(requester, target, Grant(expiry, tail[_EXPIRY.size :]))


def _decode_relay(data: bytes) -> Relay:
    _, sender, destination = _unpack(_PAIR, data)
    return Relay(sender, destination, data[_PAIR.size :])


def _decode_delivery(data: bytes) -> Delivery:
    _, sender = _unpack(_NODE, data)
    return Delivery(sender, data[_NODE.size :])


def _decode_extended_delivery(data: bytes) -> Delivery:
    _, sender, destination = _unpack(_PAIR, data)
    return Delivery(sender, data[_PAIR.size :], destination)


def _decode_sync(data: bytes) -> Sync:
    _, beacon, count = _unpack(_SYNC, data)
    nodes = _unpack(struct.Struct(f"!{count}I"), data[_SYNC.size :])
    return Sync(beacon, nodes)


def _decode_notify(data: bytes) -> Notify:
    # 1.18.0 ignores bytes after the kind (beacon.md section 1.4).
    if len(data) < 2:
        raise DecodeError("notify without a kind")
    return Notify(data[1])


_DECODERS: Final[dict[int, Callable[[bytes], BeaconMessage]]] = {
    MessageType.DISCOVER: _decode_discover,
    MessageType.REFLECTION: lambda data: Reflection(_decode_endpoint(data)),
    MessageType.PUNCH_REQUEST: _decode_punch_request,
    MessageType.PUNCH_COMMAND: lambda data: PunchCommand(_decode_endpoint(data)),
    MessageType.RELAY: _decode_relay,
    MessageType.DELIVERY: _decode_delivery,
    MessageType.SYNC: _decode_sync,
    MessageType.DISCOVER_EXTENDED: _decode_discover,
    MessageType.DELIVERY_EXTENDED: _decode_extended_delivery,
    MessageType.NOTIFY: _decode_notify,
}


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise DecodeError(f"beacon message of {len(data)} bytes, need {layout.size}")
    return layout.unpack_from(data)


def _encode_endpoint(kind: MessageType, endpoint: Endpoint) -> bytes:
    ip, port = endpoint
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    packed = address.packed
    return bytes((kind, len(packed))) + packed + _PORT.pack(port)


def _decode_endpoint(data: bytes) -> Endpoint:
    length = data[1] if len(data) > 1 else 0
    if length not in (_IPV4_SIZE, _IPV6_SIZE):
        raise DecodeError(f"beacon message with an address of {length} bytes")
    if len(data) < length + _ENDPOINT_OVERHEAD:
        raise DecodeError(f"beacon message of {len(data)} bytes cuts its endpoint")
    (port,) = _PORT.unpack_from(data, 2 + length)
    packed = data[2 : 2 + length]
    if length == _IPV4_SIZE:
        # By hand: the answer to each discover of each agent has one.
        return "{}.{}.{}.{}".format(*packed), port
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address), port
