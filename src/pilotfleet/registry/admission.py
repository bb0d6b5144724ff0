"""Who may register now: the registry's defence against a herd (DESIGN.md 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.limits import RateLimit

if TYPE_CHECKING:
    from pilotfleet.registry.config import ServiceConfig
    from pilotfleet.registry.context import PeerContext

__all__ = ["Admission"]

RETRY_AFTER_S: Final = 2.0
"""Our clients wait so long, and up to twice as long by chance."""


class Admission:
    """Limits what is dear, in all and by address. This host is exempt."""

    __slots__ = ("_all", "_by_ip", "_receipts", "_receipts_by_ip")

    def __init__(self, config: ServiceConfig) -> None:
        self._all = RateLimit(
            config.new_nodes_per_second, burst=config.new_nodes_burst, max_keys=1
        )
        self._by_ip = RateLimit(
            config.new_nodes_per_second_per_ip, burst=config.new_nodes_burst_per_ip
        )
        self._receipts = RateLimit(
            config.receipts_per_second, burst=config.receipts_burst, max_keys=1
        )
        self._receipts_by_ip = RateLimit(
            config.receipts_per_second_per_ip, burst=config.receipts_burst_per_ip
        )

    def admit(self, peer: PeerContext, now: float) -> None:
        """Count one registration.

        Raises:
            Refused: There are too many now; the answer says when to come back.
        """
        if peer.is_local:
            return
        if not (self._by_ip.allow(peer.ip, now) and self._all.allow("", now)):
            raise Refused(
                "rate limited: too many registrations", retry_after=RETRY_AFTER_S
            )

    def admit_receipts(self, peer: PeerContext, count: int, now: float) -> None:
        """Count receipts that are to be verified.

        Raises:
            Refused: There are too many now; the answer says when to come back.
        """
        if peer.is_local:
            return
        by_ip = self._receipts_by_ip.allow(peer.ip, now, count=count)
        if not (by_ip and self._receipts.allow("", now, count=count)):
            raise Refused("rate limited: too many receipts", retry_after=RETRY_AFTER_S)
