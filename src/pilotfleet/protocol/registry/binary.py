"""Payloads of binary mode (registry.md section 2.4).

Each message is a frozen value with ``encode`` and ``decode``; the frame around
it is the business of ``framing``. Longer requests than needed are accepted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import SIGNATURE_SIZE

__all__ = [
    "MAX_ERROR_TEXT",
    "UNKNOWN_KEY_AGE",
    "BinaryType",
    "HeartbeatReply",
    "HeartbeatRequest",
    "LookupReply",
    "LookupRequest",
    "ResolveReply",
    "ResolveRequest",
    "decode_error",
    "encode_error",
]

# From the specification.
MAX_ERROR_TEXT: Final = 65_000
MAX_LIST: Final = 1024
"""Most networks or LAN addresses that a decoder accepts."""
UNKNOWN_KEY_AGE: Final = 0xFFFF_FFFF

_U16: Final = struct.Struct("!H")
_NODE: Final = struct.Struct("!I")
_PAIR: Final = struct.Struct("!II")
_HEARTBEAT_REPLY: Final = struct.Struct("!qB")
_LOOKUP_HEADER: Final = struct.Struct("!IBI")
_EXPIRY_WARNING: Final = 1
_PUBLIC: Final = 1
_TASK_EXEC: Final = 2


class BinaryType(IntEnum):
    """First byte of a binary frame."""

    JSON = 0x00
    HEARTBEAT = 0x01
    LOOKUP = 0x02
    RESOLVE = 0x03
    HEARTBEAT_OK = 0x81
    LOOKUP_OK = 0x82
    RESOLVE_OK = 0x83
    ERROR = 0xFF


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """A node says that it lives."""

    node_id: int
    signature: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return _NODE.pack(self.node_id) + self.signature

    @classmethod
    def decode(cls, payload: bytes) -> HeartbeatRequest:
        """Read the payload; DecodeError with the text to answer."""
        _need(payload, _NODE.size + SIGNATURE_SIZE, "heartbeat")
        (node,) = _NODE.unpack_from(payload)
        return cls(node, payload[_NODE.size : _NODE.size + SIGNATURE_SIZE])


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The registry's time, and whether the key is about to expire."""

    time: int
    key_expiry_warning: bool = False

    def encode(self) -> bytes:
        """Return the payload."""
        return _HEARTBEAT_REPLY.pack(self.time, self.key_expiry_warning)

    @classmethod
    def decode(cls, payload: bytes) -> HeartbeatReply:
        """Read the payload; DecodeError when it is too short."""
        _need(payload, _HEARTBEAT_REPLY.size, "heartbeat", "reply")
        time, flags = _HEARTBEAT_REPLY.unpack_from(payload)
        return cls(time, bool(flags & _EXPIRY_WARNING))


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """Anyone asks who a node is."""

    node_id: int

    def encode(self) -> bytes:
        """Return the payload."""
        return _NODE.pack(self.node_id)

    @classmethod
    def decode(cls, payload: bytes) -> LookupRequest:
        """Read the payload; DecodeError with the text to answer."""
        _need(payload, _NODE.size, "lookup")
        return cls(*_NODE.unpack_from(payload))


@dataclass(frozen=True, slots=True)
class LookupReply:
    """Who a node is."""

    node_id: int
    public: bool
    task_exec: bool
    networks: tuple[int, ...]
    public_key: bytes
    hostname: str
    tags: tuple[str, ...]
    real_addr: str
    external_id: str = ""

    def encode(self) -> bytes:
        """Return the payload."""
        flags = _PUBLIC * self.public | _TASK_EXEC * self.task_exec
        count = len(self.networks)
        return b"".join(
            (
                _LOOKUP_HEADER.pack(self.node_id, flags, 0),
                struct.pack(f"!H{count}H", count, *self.networks),
                _short(self.public_key),
                _short(self.hostname.encode()),
                bytes([len(self.tags)]),
                *(_short(tag.encode()) for tag in self.tags),
                _long(self.real_addr.encode()),
                _short(self.external_id.encode()),
            )
        )

    @classmethod
    def decode(cls, payload: bytes) -> LookupReply:
        """Read the payload; DecodeError when it is not one."""
        reader = _Reader(payload)
        node, flags, _ = _LOOKUP_HEADER.unpack(reader.take(_LOOKUP_HEADER.size))
        return cls(
            node_id=node,
            public=bool(flags & _PUBLIC),
            task_exec=bool(flags & _TASK_EXEC),
            networks=tuple(reader.u16() for _ in range(reader.count())),
            public_key=reader.short(),
            hostname=reader.short_text(),
            tags=tuple(reader.short_text() for _ in range(reader.u8())),
            real_addr=reader.long_text(),
            external_id=reader.short_text(),
        )


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """A node asks where another one is."""

    node_id: int
    requester_id: int
    signature: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return _PAIR.pack(self.node_id, self.requester_id) + self.signature

    @classmethod
    def decode(cls, payload: bytes) -> ResolveRequest:
        """Read the payload; DecodeError with the text to answer."""
        _need(payload, _PAIR.size + SIGNATURE_SIZE, "resolve")
        node, requester = _PAIR.unpack_from(payload)
        signature = payload[_PAIR.size : _PAIR.size + SIGNATURE_SIZE]
        return cls(node, requester, signature)


@dataclass(frozen=True, slots=True)
class ResolveReply:
    """Where a node is."""

    node_id: int
    real_addr: str
    lan_addrs: tuple[str, ...] = field(default=())
    key_age_days: int | None = None
    """None: unknown."""

    def encode(self) -> bytes:
        """Return the payload."""
        age = UNKNOWN_KEY_AGE if self.key_age_days is None else self.key_age_days
        return b"".join(
            (
                _NODE.pack(self.node_id),
                _long(self.real_addr.encode()),
                _U16.pack(len(self.lan_addrs)),
                *(_long(address.encode()) for address in self.lan_addrs),
                _NODE.pack(age),
            )
        )

    @classmethod
    def decode(cls, payload: bytes) -> ResolveReply:
        """Read the payload; DecodeError when it is not one."""
        reader = _Reader(payload)
        node = reader.u32()
        real_addr = reader.long_text()
        lan = tuple(reader.long_text() for _ in range(reader.count()))
        age = reader.u32()
        return cls(node, real_addr, lan, None if age == UNKNOWN_KEY_AGE else age)


def encode_error(text: str) -> bytes:
    """Return the payload of an error frame; a long text is cut."""
    return _long(text.encode()[:MAX_ERROR_TEXT])


def decode_error(payload: bytes) -> str:
    """Read the payload of an error frame.

    Raises:
        DecodeError: It is shorter than it says, or longer than allowed.
    """
    reader = _Reader(payload)
    length = reader.u16()
    if length > MAX_ERROR_TEXT:
        raise DecodeError(f"error text of {length} bytes, limit {MAX_ERROR_TEXT}")
    # A cut text may end within a character; that must not hide the error.
    return reader.take(length).decode(errors="replace")


def _need(payload: bytes, size: int, what: str, part: str = "request") -> None:
    if len(payload) < size:
        raise DecodeError(f"{what} {part} too short: {len(payload)} bytes")


def _short(data: bytes) -> bytes:
    if len(data) > 0xFF:
        raise InvalidArgument(f"field of {len(data)} bytes, limit 255")
    return bytes([len(data)]) + data


def _long(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise InvalidArgument(f"field of {len(data)} bytes, limit 65535")
    return _U16.pack(len(data)) + data


class _Reader:
    """Takes fields off the front of a payload."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes; DecodeError when there are fewer."""
        end = self._position + size
        if end > len(self._data):
            raise DecodeError(f"payload ends after {len(self._data)} bytes")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def count(self) -> int:
        count = self.u16()
        if count > MAX_LIST:
            raise DecodeError(f"list of {count} entries, limit {MAX_LIST}")
        return count

    def short(self) -> bytes:
        return self.take(self.u8())

    def short_text(self) -> str:
        return _text(self.short())

    def long_text(self) -> str:
        return _text(self.take(self.u16()))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DecodeError("field is not UTF-8") from None
