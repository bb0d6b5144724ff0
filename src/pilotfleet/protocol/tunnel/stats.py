"""Counters of one tunnel endpoint, and what it shows of a peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

__all__ = ["PeerInfo", "TunnelStats"]


class TunnelStats:
    """Totals since the endpoint was made."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "changes",
        "dropped",
        "exchanges_refused",
        "forged",
        "packets_received",
        "packets_sent",
        "replayed",
        "sessions",
    )

    def __init__(self) -> None:
        self.packets_sent = 0
        self.packets_received = 0
        self.bytes_sent = 0
        """Of Pilot packets, without the frames around them."""
        self.bytes_received = 0
        self.sessions = 0
        """Sessions installed."""
        self.changes = 0
        """Sessions installed or given up: who is connected is as it was while it is."""
        self.exchanges_refused = 0
        """Key exchange frames not accepted: limit, unknown node, wrong key."""
        self.forged = 0
        self.replayed = 0
        self.dropped = 0
        """Other datagrams that were not understood, or had no way to go."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer as status commands show it."""

    node: int
    address: Endpoint | None
    is_established: bool
    is_authenticated: bool
    is_relayed: bool
    is_relay_pinned: bool
    is_pilotfleet: bool
    """It spoke the extension greeting."""
    max_payload: int
    public_key: bytes | None
    """Ed25519, as the registry gave it."""
    last_receive: float
    last_send: float
