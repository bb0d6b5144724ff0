"""Control packets: ping, pong, keepalive and probes (wire.md section 10)."""

from __future__ import annotations

from typing import Final

from pilotfleet.protocol.address import BACKBONE
from pilotfleet.protocol.packet import Flag, Packet, Protocol, encode_packet

__all__ = [
    "HELLO",
    "PATH_PROBE",
    "is_keepalive",
    "keepalive",
    "ping",
    "pong",
    "upgrade_probe",
    "wants_pong",
]

# From the specification.
PATH_PROBE: Final = b"pathprobe.v1"
_PORT: Final = 0

# Ours.
HELLO: Final = b"pilotfleet.hello.v1"
"""Payload of a ping that says what we are. Official peers just pong it."""

_U32: Final = 0xFFFF_FFFF


def ping(
    node: int, peer: int, payload: bytes, *, src_port: int = 0, seq: int = 0
) -> bytes:
    """Return a packet that the peer answers with a pong of the same payload."""
    return encode_packet(
        Packet(
            Protocol.CONTROL,
            Flag.NONE,
            BACKBONE,
            node,
            BACKBONE,
            peer,
            src_port,
            _PORT,
            seq,
            payload=payload,
        )
    )


def pong(node: int, request: Packet) -> bytes:
    """Return the answer to a ping; the address it named is echoed (10.2)."""
    return encode_packet(
        Packet(
            Protocol.CONTROL,
            Flag.ACK,
            request.dst_network,
            request.dst_node or node,
            request.src_network,
            request.src_node,
            _PORT,
            request.src_port,
            request.seq,
            request.seq + 1 & _U32,
            payload=request.payload,
        )
    )


def keepalive(node: int) -> bytes:
    """Return the empty packet that keeps a NAT mapping open (10.1)."""
    return ping(node, 0, b"")


def upgrade_probe(node: int, peer: int) -> bytes:
    """Return the packet that shows a relayed peer that the direct path works (9.3)."""
    return encode_packet(
        Packet(
            Protocol.CONTROL, Flag.ACK, BACKBONE, node, BACKBONE, peer, _PORT, _PORT, 1
        )
    )


def wants_pong(packet: Packet) -> bool:
    """Tell a ping from keepalives, pongs and probes."""
    is_reply = packet.flags & Flag.ACK
    return packet.dst_port == _PORT and not is_reply and bool(packet.payload)


def is_keepalive(packet: Packet) -> bool:
    """Tell whether it may name no source: nodes before 1.12.1 sent those (5.3)."""
    return (
        packet.protocol == Protocol.CONTROL
        and packet.src_node == 0
        and packet.dst_port == _PORT
        and not packet.payload
    )
