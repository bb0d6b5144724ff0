"""Stream packets as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.packet import Flag, Packet, Protocol, encode_packet

if TYPE_CHECKING:
    from pilotfleet.protocol.address import SocketAddress

__all__ = ["ACK", "FIN", "RST", "STREAM", "SYN", "encode_stream_packet"]

# Plain numbers: arithmetic on an IntFlag costs a microsecond per packet.
SYN: Final = int(Flag.SYN)
ACK: Final = int(Flag.ACK)
FIN: Final = int(Flag.FIN)
RST: Final = int(Flag.RST)
STREAM: Final = int(Protocol.STREAM)


def encode_stream_packet(
    local: SocketAddress,
    remote: SocketAddress,
    flags: int,
    seq: int = 0,
    ack: int = 0,
    window: int = 0,
    payload: bytes = b"",
) -> bytes:
    """Return a packet from ``local`` to ``remote``."""
    (network, node), port = local
    (peer_network, peer_node), peer_port = remote
    # fmt: off
    return encode_packet(Packet(
        STREAM, flags, network, node, peer_network, peer_node, port, peer_port,
        seq, ack, window, payload,
    ))
    # fmt: on
