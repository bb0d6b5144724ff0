"""Node addresses and socket addresses (wire.md section 1)."""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple, TypeAlias

from pilotfleet.errors import DecodeError

__all__ = [
    "ADDRESS_SIZE",
    "BACKBONE",
    "BROADCAST_NODE",
    "Address",
    "Endpoint",
    "SocketAddress",
]

# From the specification.
ADDRESS_SIZE: Final = 6
BACKBONE: Final = 0
"""The network that every node belongs to."""
BROADCAST_NODE: Final = 0xFFFF_FFFF
"""Stands for all members of a network in the API; never on the wire."""

Endpoint: TypeAlias = tuple[str, int]
"""Where UDP or TCP reaches a host: IP address as text, port."""

_LAYOUT: Final = struct.Struct("!HI")
_TEXT: Final = re.compile(
    r"([0-9]+):([0-9A-Fa-f]{4})\.([0-9A-Fa-f]{4})\.([0-9A-Fa-f]{4})", re.ASCII
)
_MAX_DIGITS: Final = 10
"""Of a node number; more would be slow to read."""
_MAX_TEXT: Final = 64
"""Longest text looked at: far above any valid address, far below an attack."""


class Address(NamedTuple):
    """A node as seen from one network. Routing uses ``node`` alone."""

    network: int
    node: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read the text form ``N:NNNN.HHHH.LLLL``.

        Raises:
            DecodeError: The text is not an address.
        """
        match = _TEXT.fullmatch(text) if len(text) <= _MAX_TEXT else None
        if match is None:
            raise DecodeError(f"address {text[:_MAX_TEXT]!r} is not N:NNNN.HHHH.LLLL")
        network = int(match[1])
        if network != int(match[2], 16):
            raise DecodeError(f"address {text!r} names two different networks")
        return cls(network, int(match[3] + match[4], 16))

    @classmethod
    def stated_by(cls, text: str) -> Address | None:
        """Return the address or node number that a text is; None: it is a name."""
        digits = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
        if digits and int(text) <= BROADCAST_NODE:
            return cls(BACKBONE, int(text))
        try:
            return cls.parse(text)
        except DecodeError:
            return None

    @classmethod
    def unpack(cls, data: bytes) -> Address:
        """Read the 6-byte form from the start of ``data``.

        Raises:
            DecodeError: Fewer than 6 bytes.
        """
        if len(data) < ADDRESS_SIZE:
            raise DecodeError(f"address of {len(data)} bytes, need {ADDRESS_SIZE}")
        return cls(*_LAYOUT.unpack_from(data))

    def pack(self) -> bytes:
        """Return the 6-byte form."""
        return _LAYOUT.pack(self.network, self.node)

    def __str__(self) -> str:
        high, low = self.node >> 16, self.node & 0xFFFF
        return f"{self.network}:{self.network:04X}.{high:04X}.{low:04X}"


class SocketAddress(NamedTuple):
    """A port on a node."""

    address: Address
    port: int

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Read ``ADDRESS:PORT``.

        Raises:
            DecodeError: The text is not an address and a port.
        """
        address, separator, port = text.rpartition(":")
        valid = separator and port.isascii() and port.isdigit() and len(port) <= 5
        if not valid or int(port) > 0xFFFF:
            raise DecodeError(f"{text[:_MAX_TEXT]!r} does not end with a port")
        return cls(Address.parse(address), int(port))

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"
