"""What a stream endpoint tells its owner.

Order of the events of one connection: ``StreamAccepted`` or ``StreamOpened``
(or ``StreamFailed``, and nothing more), any number of ``DataReceived`` and
``Writable``, perhaps ``StreamEnded``, and ``StreamClosed`` as the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pilotfleet.protocol.packet import Packet
    from pilotfleet.protocol.stream.connection import StreamConnection

__all__ = [
    "IDLE",
    "PEER_SILENT",
    "AdmissionWanted",
    "DataReceived",
    "RelayWanted",
    "StreamAccepted",
    "StreamClosed",
    "StreamEnded",
    "StreamEvent",
    "StreamFailed",
    "StreamOpened",
    "SynCause",
    "SynDropped",
    "Writable",
]

PEER_SILENT: Final = "peer is silent"
"""Reason of a `StreamClosed`: the peer answered none of our probes."""
IDLE: Final = "idle for too long"
"""Reason of a `StreamClosed`: nothing came within the idle timeout."""


@dataclass(frozen=True, slots=True)
class AdmissionWanted:
    """A SYN is held until somebody says whether ``peer`` may use ``port``."""

    peer: int
    port: int


class SynCause(Enum):
    """Why a SYN came to nothing, though its sender is trusted."""

    RATE = "too many SYNs"
    POLICY = "the network's policy forbids the port"
    BACKLOG = "nobody took the earlier streams over"


@dataclass(frozen=True, slots=True)
class SynDropped:
    """A SYN was ignored or refused by one of our limits."""

    packet: Packet
    cause: SynCause


@dataclass(frozen=True, slots=True)
class RelayWanted:
    """Nobody answered on the direct path: send to ``peer`` by relay from now on."""

    peer: int


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """A peer opened a connection to a port we listen on."""

    connection: StreamConnection


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer answered our dial."""

    connection: StreamConnection


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """Our dial failed."""

    connection: StreamConnection
    reason: str
    refused: bool
    """The peer answered that nothing listens there."""


@dataclass(frozen=True, slots=True)
class DataReceived:
    """There is something to read."""

    connection: StreamConnection


@dataclass(frozen=True, slots=True)
class Writable:
    """There is room again after a write that took less than it was given."""

    connection: StreamConnection


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sent its FIN; what is queued can still be read."""

    connection: StreamConnection


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Nothing more will be sent or received."""

    connection: StreamConnection
    reason: str | None
    """Why it was broken off, or None when it ended in good order."""


StreamEvent: TypeAlias = (
    AdmissionWanted
    | RelayWanted
    | StreamAccepted
    | StreamOpened
    | StreamFailed
    | DataReceived
    | Writable
    | StreamEnded
    | StreamClosed
    | SynDropped
)
