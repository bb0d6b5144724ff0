"""The Pilot packet: 34-byte header and payload (wire.md section 2)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple
from zlib import crc32

from pilotfleet.errors import DecodeError

__all__ = [
    "HEADER_SIZE",
    "MAX_PAYLOAD",
    "Flag",
    "Packet",
    "Protocol",
    "decode_packet",
    "encode_packet",
]

# From the specification.
HEADER_SIZE: Final = 34
MAX_PAYLOAD: Final = 0xFFFF
VERSION: Final = 1

_LAYOUT: Final = struct.Struct("!BBHHIHIHHIIHI")
_UNSUMMED: Final = struct.Struct("!BBHHIHIHHIIH")
_CHECKSUM: Final = struct.Struct("!I")
_CHECKSUM_OFFSET: Final = 30
_NO_CHECKSUM: Final = bytes(4)


class Protocol(IntEnum):
    """What a packet carries."""

    STREAM = 1
    DATAGRAM = 2
    CONTROL = 3


class Flag(IntFlag):
    """Stream flags; control packets use ACK for a pong."""

    NONE = 0
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class Packet(NamedTuple):
    """A decoded packet.

    A named tuple, not a dataclass: one is made for every packet received, and a
    frozen dataclass costs four times as much to build.
    """

    protocol: int
    flags: int
    src_network: int
    src_node: int
    dst_network: int
    dst_node: int
    src_port: int
    dst_port: int
    seq: int = 0
    ack: int = 0
    window: int = 0
    """In segments of 1152 bytes."""
    payload: bytes = b""


def encode_packet(packet: Packet) -> bytes:
    """Return header and payload with the checksum filled in."""
    payload = packet.payload
    header = _UNSUMMED.pack(
        VERSION << 4 | packet.flags,
        packet.protocol,
        len(payload),
        *packet[2:11],
    )
    checksum = crc32(payload, crc32(_NO_CHECKSUM, crc32(header)))
    return b"".join((header, _CHECKSUM.pack(checksum), payload))


def decode_packet(data: bytes) -> Packet:
    """Read one packet; bytes past the stated payload are ignored.

    Raises:
        DecodeError: Too short, wrong checksum, or another version.
    """
    if len(data) < HEADER_SIZE:
        raise DecodeError(f"packet of {len(data)} bytes, need {HEADER_SIZE}")
    fields = _LAYOUT.unpack_from(data)
    end = HEADER_SIZE + fields[2]
    if len(data) < end:
        raise DecodeError(f"packet of {len(data)} bytes states {end}")
    payload = data[HEADER_SIZE:end]
    checksum = crc32(payload, crc32(_NO_CHECKSUM, crc32(data[:_CHECKSUM_OFFSET])))
    if checksum != fields[12]:
        raise DecodeError("packet checksum does not match")
    if fields[0] >> 4 != VERSION:
        raise DecodeError(f"packet version {fields[0] >> 4}")
    return Packet._make((fields[1], fields[0] & 0x0F, *fields[3:12], payload))
