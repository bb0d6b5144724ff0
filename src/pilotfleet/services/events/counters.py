"""What one broker counted, for `pilotctl events status` and ``fleet.broker``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfleet.services.events.log import EventLog

__all__ = ["BrokerCounters"]


@dataclass(slots=True)
class BrokerCounters:
    """Counters of one agent's broker since its first use."""

    subscribers: int = 0
    """Connections that are subscribed now."""
    publishers: int = 0
    """Connections open now that publish, or said that they will."""
    published: int = 0
    """Publications taken."""
    delivered: int = 0
    """Events put into the queue of a subscriber."""
    dropped: int = 0
    """Events that a subscriber was too slow for."""
    rate_limited: int = 0
    """Publications refused because their publisher was too fast."""
    malformed: int = 0
    """Frames that break the protocol, and publications to reserved topics."""
    refused: int = 0
    """Connections closed because their node had too many, or kept too much waiting
    in events that it did not finish."""
    forwarded: int = 0
    """Publications given to the broker above."""

    def as_dict(self, log: EventLog | None) -> dict[str, int]:
        """Return all of them, with those of the log."""
        logged, lost = (log.logged, log.lost) if log is not None else (0, 0)
        return {**asdict(self), "logged": logged, "log_lost": lost}
