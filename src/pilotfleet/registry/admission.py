"""Who may register now: the registry's defence against a herd (DESIGN.md 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.limits import SlotLimit

if TYPE_CHECKING:
    from pilotfleet.registry.config import ServiceConfig
    from pilotfleet.registry.context import PeerContext

__all__ = ["Admission"]

SHORTEST_S: Final = 0.05
"""Nobody is told to come back earlier; for less, asking again is not worth it."""
DIGITS: Final = 3
"""Milliseconds are as exact as a time on the way can be."""


class Admission:
    """Limits what is dear, in all and by address.

    Who comes too early is told when it is his turn, one after the other, so that a
    herd comes back at the rate at which it is taken on, and not all at once.
    """

    __slots__ = ("_exempts_local", "_receipts", "_registrations")

    def __init__(self, config: ServiceConfig) -> None:
        self._exempts_local = not config.limit_local
        self._registrations = _Gate(
            SlotLimit(config.new_nodes_per_second, burst=config.new_nodes_burst),
            SlotLimit(
                config.new_nodes_per_second_per_ip, burst=config.new_nodes_burst_per_ip
            ),
        )
        self._receipts = _Gate(
            SlotLimit(config.receipts_per_second, burst=config.receipts_burst),
            SlotLimit(
                config.receipts_per_second_per_ip, burst=config.receipts_burst_per_ip
            ),
        )

    def admit(self, peer: PeerContext, now: float) -> None:
        """Count one registration.

        Raises:
            Refused: There are too many now; the answer says when to come back.
        """
        self._pass(self._registrations, peer, 1, now, "registrations")

    def room(self, peer: PeerContext, now: float, *, most: int) -> int:
        """Return how many registrations would be taken on now, up to ``most``."""
        if self._is_exempt(peer):
            return most
        return self._registrations.room(peer.ip, now, most)

    def admit_receipts(self, peer: PeerContext, count: int, now: float) -> None:
        """Count receipts that are to be verified.

        Raises:
            Refused: There are too many now; the answer says when to come back.
        """
        self._pass(self._receipts, peer, count, now, "receipts")

    def _pass(
        self, gate: _Gate, peer: PeerContext, count: int, now: float, what: str
    ) -> None:
        if self._is_exempt(peer):
            return
        wait = gate.enter(peer.ip, count, now)
        if wait:
            raise Refused(
                f"rate limited: too many {what}",
                retry_after=round(max(wait, SHORTEST_S), DIGITS),
            )

    def _is_exempt(self, peer: PeerContext) -> bool:
        return self._exempts_local and peer.is_local


class _Gate:
    """A limit for all together and one for each address."""

    __slots__ = ("_all", "_by_ip")

    def __init__(self, together: SlotLimit, by_ip: SlotLimit) -> None:
        self._all = together
        self._by_ip = by_ip

    def enter(self, ip: str, count: int, now: float) -> float:
        """Count so many and return 0; or return in how long there is room for them."""
        keys = ((self._by_ip, ip), (self._all, ""))
        closed = [each for each in keys if each[0].missing(each[1], count, now)]
        if not closed:
            for limit, key in keys:
                limit.charge(key, count, now)
            return 0.0
        # Only the limits that refuse have a queue.
        return max(limit.slot(key, count, now) for limit, key in closed)

    def room(self, ip: str, now: float, most: int) -> int:
        """Return how many single ones would be let in now."""
        return min(self._by_ip.room(ip, now, most), self._all.room("", now, most))
