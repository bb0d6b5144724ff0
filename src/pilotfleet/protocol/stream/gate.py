"""Limits on incoming SYNs (wire.md section 11.4, checks 3, 5 and 6).

The gate remembers who sent how many SYNs, and holds those whose sender is still
being judged: whether a private node admits a peer may need the registry. All of
it is bounded, because whoever has a tunnel can send SYNs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.protocol.limits import IDLE_S, TokenBucket, TokenBuckets

if TYPE_CHECKING:
    from pilotfleet.protocol.packet import Packet

__all__ = ["SynGate"]

# From the specification.
SOURCE_BURST: Final = 64
SOURCE_RATE: Final = 10.0
GLOBAL_RATE: Final = 100
"""SYNs per second, and as many at once."""
MAX_SOURCES: Final = 4096


class HeldSyn(NamedTuple):
    """A SYN whose sender is being judged."""

    packet: Packet
    deadline: float


class SynGate:
    """Counts SYNs by source and in all; holds those that await a decision."""

    __slots__ = ("_global", "_held", "_max_held", "_sources")

    def __init__(self, now: float, *, max_held: int, rate: int = GLOBAL_RATE) -> None:
        self._global = TokenBucket(rate, rate, now)
        self._sources = TokenBuckets(SOURCE_RATE, SOURCE_BURST, capacity=MAX_SOURCES)
        self._held: dict[tuple[int, int, int, int], HeldSyn] = {}
        self._max_held = max_held

    def is_idle(self, now: float) -> bool:
        """Return whether a fresh gate would decide the same."""
        return not self._held and now - self._global.used_at >= IDLE_S

    @property
    def deadline(self) -> float:
        """When a held SYN is dropped, or else the gate has nothing to remember."""
        for held in self._held.values():
            return held.deadline
        return self._global.used_at + IDLE_S

    def allows(self, source: int, now: float) -> bool:
        """Charge a SYN to its source and to all; False if either is exhausted."""
        return self._sources.allow(source, now) and self._global.take(now)

    def hold(self, packet: Packet, deadline: float) -> bool:
        """Hold a SYN; True if its sender and port were not being judged yet."""
        key = (packet.src_node, packet.dst_port, packet.src_port, packet.src_network)
        if key in self._held or len(self._held) >= self._max_held:
            return False
        is_new = not any(other[:2] == key[:2] for other in self._held)
        self._held[key] = HeldSyn(packet, deadline)
        return is_new

    def release(self, source: int, port: int | None) -> list[Packet]:
        """Remove and return the SYNs of a source that has been judged."""
        keys = [
            key
            for key in self._held
            if key[0] == source and (port is None or key[1] == port)
        ]
        return [self._held.pop(key).packet for key in keys]

    def drop_expired(self, now: float) -> None:
        """Drop SYNs that nobody judged in time."""
        expired = [key for key, held in self._held.items() if held.deadline <= now]
        for key in expired:
            del self._held[key]
