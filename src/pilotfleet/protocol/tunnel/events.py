"""What a tunnel endpoint tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.packet import Packet

__all__ = [
    "Event",
    "HandshakeWaiting",
    "KeyWanted",
    "PacketReceived",
    "PathWanted",
    "PayloadGrew",
    "PongReceived",
    "Reflected",
    "RelayActivated",
    "ReplayDetected",
    "TunnelEstablished",
    "TunnelFailed",
]


class PacketReceived(NamedTuple):
    """A stream or datagram packet, decrypted and proven to be from ``peer``.

    A named tuple for the same reason as `Packet`: one is made per packet.
    """

    peer: int
    packet: Packet
    relayed: bool


@dataclass(frozen=True, slots=True)
class PathWanted:
    """Resolve the peer, then call ``set_peer_path`` or ``path_failed``."""

    peer: int


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """Look the peer's Ed25519 key up, then call ``set_peer_key``."""

    peer: int
    refresh: bool = False
    """The key known so far does not fit: do not answer from a cache."""


@dataclass(frozen=True, slots=True)
class TunnelEstablished:
    """A session with the peer is there; queued packets were sent."""

    peer: int
    authenticated: bool
    relayed: bool
    rekeyed: bool
    """It replaced a session: the peer restarted, or the path was reset."""


@dataclass(frozen=True, slots=True)
class TunnelFailed:
    """The peer could not be reached; queued packets were dropped."""

    peer: int
    reason: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to a ping."""

    peer: int
    packet: Packet


@dataclass(frozen=True, slots=True)
class HandshakeWaiting:
    """The beacon says that the registry holds a trust handshake: poll now."""


@dataclass(frozen=True, slots=True)
class Reflected:
    """The beacon saw us at this endpoint."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class PayloadGrew:
    """Packets to the peer may carry ``size`` bytes of payload from now on.

    Also emitted when the size falls back to 1152 because the path changed.
    """

    peer: int
    size: int


@dataclass(frozen=True, slots=True)
class RelayActivated:
    """Packets to the peer go through the beacon from now on."""

    peer: int


@dataclass(frozen=True, slots=True)
class ReplayDetected:
    """An authentic frame of the peer came a second time, or much too late."""

    peer: int
    counter: int


Event: TypeAlias = (
    PacketReceived
    | PathWanted
    | KeyWanted
    | TunnelEstablished
    | TunnelFailed
    | PongReceived
    | HandshakeWaiting
    | Reflected
    | PayloadGrew
    | RelayActivated
    | ReplayDetected
)
