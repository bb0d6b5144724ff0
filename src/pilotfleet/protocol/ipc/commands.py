"""Command bytes and binary payloads of the daemon's socket (ipc.md section 2).

All integers are big-endian. Decoders raise :class:`DecodeError` with the text the
reference sends for a payload that is too short (section 3).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import ADDRESS_SIZE, Address, SocketAddress

__all__ = [
    "REPLIES",
    "Accept",
    "Broadcast",
    "Command",
    "HandshakeSub",
    "ManagedSub",
    "NetworkSub",
    "ReceivedDatagram",
    "pack_accept",
    "pack_connection",
    "pack_error",
    "pack_node",
    "pack_port",
    "pack_received_datagram",
    "pack_socket_address",
    "unpack_accept",
    "unpack_broadcast",
    "unpack_connection",
    "unpack_error",
    "unpack_port",
    "unpack_received_datagram",
    "unpack_socket_address",
]


class Command(IntEnum):
    """The first byte of a frame. From 0x80 on: pilotfleet's extension."""

    BIND = 0x01
    BIND_OK = 0x02
    DIAL = 0x03
    DIAL_OK = 0x04
    ACCEPT = 0x05
    SEND = 0x06
    RECV = 0x07
    CLOSE = 0x08
    CLOSE_OK = 0x09
    ERROR = 0x0A
    SEND_TO = 0x0B
    RECV_FROM = 0x0C
    INFO = 0x0D
    INFO_OK = 0x0E
    HANDSHAKE = 0x0F
    HANDSHAKE_OK = 0x10
    RESOLVE_HOSTNAME = 0x11
    RESOLVE_HOSTNAME_OK = 0x12
    SET_HOSTNAME = 0x13
    SET_HOSTNAME_OK = 0x14
    SET_VISIBILITY = 0x15
    SET_VISIBILITY_OK = 0x16
    DEREGISTER = 0x17
    DEREGISTER_OK = 0x18
    SET_TAGS = 0x19
    SET_TAGS_OK = 0x1A
    SET_WEBHOOK = 0x1B
    SET_WEBHOOK_OK = 0x1C
    SET_TASK_EXEC = 0x1D
    SET_TASK_EXEC_OK = 0x1E
    NETWORK = 0x1F
    NETWORK_OK = 0x20
    HEALTH = 0x21
    HEALTH_OK = 0x22
    MANAGED = 0x23
    MANAGED_OK = 0x24
    ROTATE_KEY = 0x25
    ROTATE_KEY_OK = 0x26
    MY_POLO = 0x27
    MY_POLO_OK = 0x28
    BROADCAST = 0x29
    BROADCAST_OK = 0x2A
    CANCEL = 0x2B
    PREFER_DIRECT = 0x2D
    PREFER_DIRECT_OK = 0x2E
    SUBMIT_BADGE = 0x2F
    SUBMIT_BADGE_OK = 0x30
    ENROLL_RECOVERY = 0x31
    ENROLL_RECOVERY_OK = 0x32
    SIGN_ENVELOPE = 0x33
    SIGN_ENVELOPE_OK = 0x34
    VERIFY_ENVELOPE = 0x35
    VERIFY_ENVELOPE_OK = 0x36
    UNBIND = 0x37
    UNBIND_OK = 0x38
    SEND_TO_CONFIRM = 0x39
    SEND_TO_OK = 0x3A
    EXTENSION = 0x80
    EXTENSION_OK = 0x81
    EXTENSION_PUSH = 0x82


REPLIES: Final = {
    Command[name[:-3]]: reply
    for name, reply in Command.__members__.items()
    if name.endswith("_OK") and name != "SEND_TO_OK"
} | {Command.SEND_TO_CONFIRM: Command.SEND_TO_OK}
"""Request to its reply."""


class HandshakeSub(IntEnum):
    """First payload byte of Handshake (ipc.md section 6)."""

    SEND = 1
    APPROVE = 2
    REJECT = 3
    PENDING = 4
    TRUSTED = 5
    REVOKE = 6
    WAIT = 7


class NetworkSub(IntEnum):
    """First payload byte of Network (ipc.md section 7)."""

    LIST = 1
    JOIN = 2
    LEAVE = 3
    MEMBERS = 4
    INVITE = 5
    POLL_INVITES = 6
    RESPOND_INVITE = 7


class ManagedSub(IntEnum):
    """First payload byte of Managed (ipc.md section 8)."""

    STATUS = 2
    CYCLE = 4
    POLICY = 5
    MEMBER_TAGS = 6
    RECONCILE = 7


class Accept(NamedTuple):
    """A stream that somebody opened to a bound port."""

    local_port: int
    connection: int
    remote: SocketAddress


class ReceivedDatagram(NamedTuple):
    """A datagram pushed by the daemon."""

    source: SocketAddress
    port: int
    """Destination port."""
    data: bytes


class Broadcast(NamedTuple):
    """The payload of Broadcast."""

    network: int
    port: int
    token: bytes
    data: bytes


_PORT: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")
_BROADCAST: Final = struct.Struct("!HHH")
_ACCEPT: Final = struct.Struct("!HI")
_SOCKET_ADDRESS_SIZE: Final = ADDRESS_SIZE + _PORT.size
_ACCEPT_SIZE: Final = _ACCEPT.size + _SOCKET_ADDRESS_SIZE
_ERROR_CODE: Final = _PORT.pack(1)
"""Always 1; clients act on the text."""


def pack_port(port: int) -> bytes:
    """Return a port, or a network number, as 2 bytes."""
    return _PORT.pack(port)


def unpack_port(payload: bytes, missing: str) -> int:
    """Read 2 bytes; ``missing`` is the error's text when they are not there."""
    if len(payload) < _PORT.size:
        raise DecodeError(missing)
    port: int = _PORT.unpack_from(payload)[0]
    return port


def pack_node(node: int) -> bytes:
    """Return a node number as 4 bytes."""
    return _U32.pack(node)


def pack_connection(connection: int) -> bytes:
    """Return a connection id as 4 bytes."""
    return _U32.pack(connection)


def unpack_connection(payload: bytes, missing: str) -> int:
    """Read a connection id or node; ``missing`` is the error's text."""
    if len(payload) < _U32.size:
        raise DecodeError(missing)
    number: int = _U32.unpack_from(payload)[0]
    return number


def pack_socket_address(remote: SocketAddress) -> bytes:
    """Return address and port as 8 bytes."""
    return remote.address.pack() + _PORT.pack(remote.port)


def unpack_socket_address(payload: bytes, missing: str) -> SocketAddress:
    """Read address and port; ``missing`` is the error's text."""
    if len(payload) < _SOCKET_ADDRESS_SIZE:
        raise DecodeError(missing)
    port: int = _PORT.unpack_from(payload, ADDRESS_SIZE)[0]
    return SocketAddress(Address.unpack(payload), port)


def pack_accept(accept: Accept) -> bytes:
    """Return the payload of Accept."""
    head = _ACCEPT.pack(accept.local_port, accept.connection)
    return head + pack_socket_address(accept.remote)


def unpack_accept(payload: bytes) -> Accept:
    """Read the payload of Accept."""
    if len(payload) < _ACCEPT_SIZE:
        raise DecodeError(f"accept of {len(payload)} bytes")
    port, connection = _ACCEPT.unpack_from(payload)
    remote = unpack_socket_address(payload[_ACCEPT.size :], "accept: missing address")
    return Accept(port, connection, remote)


def pack_received_datagram(datagram: ReceivedDatagram) -> bytes:
    """Return the payload of RecvFrom."""
    head = pack_socket_address(datagram.source) + _PORT.pack(datagram.port)
    return head + datagram.data


def unpack_received_datagram(payload: bytes) -> ReceivedDatagram:
    """Read the payload of RecvFrom."""
    head = _SOCKET_ADDRESS_SIZE + _PORT.size
    if len(payload) < head:
        raise DecodeError(f"datagram frame of {len(payload)} bytes")
    source = unpack_socket_address(payload, "datagram: missing address")
    port: int = _PORT.unpack_from(payload, _SOCKET_ADDRESS_SIZE)[0]
    return ReceivedDatagram(source, port, payload[head:])


def unpack_broadcast(payload: bytes) -> Broadcast:
    """Read the payload of Broadcast."""
    if len(payload) < _BROADCAST.size:
        raise DecodeError("broadcast: missing header")
    network, port, token_size = _BROADCAST.unpack_from(payload)
    end = _BROADCAST.size + token_size
    if len(payload) < end:
        raise DecodeError("broadcast: truncated token")
    return Broadcast(network, port, payload[_BROADCAST.size : end], payload[end:])


def pack_error(message: str) -> bytes:
    """Return the payload of Error."""
    return _ERROR_CODE + message.encode("utf-8", "replace")


def unpack_error(payload: bytes) -> str:
    """Return the text of an Error payload, whatever it holds."""
    return payload[_PORT.size :].decode("utf-8", "replace")
