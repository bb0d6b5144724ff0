"""The figures of a fleet while its controller runs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.fleet.monitor.feed import FeedConfig, FleetFeed
from pilotfleet.fleet.monitor.view.fleetview import FleetView, ViewConfig
from pilotfleet.protocol.services.fleetevents import HEALTH_TOPIC

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LiveFigures"]

logger = logging.getLogger(__name__)

PAUSE_S: Final = 2.0
MAX_STATES: Final = 8


class LiveFigures:
    """Follows the brokers of a fleet from the hub; keeps nothing on disk."""

    def __init__(self, fleet: str) -> None:
        """Begin with a fleet of which nothing was heard."""
        self._began = time.time()
        self._view = FleetView(fleet, config=ViewConfig(keeps_samples=False))
        self._health_events = 0

    async def run(self, hub: Path) -> None:
        """Follow the brokers that the hub's daemon names, until cancelled."""
        while True:
            # What was published while the fleet was starting is in the log.
            config = FeedConfig(socket=hub, since_s=time.time() - self._began)
            try:
                await FleetFeed(self._view, config, on_event=self._on_event).run()
            except Exception:  # Figures are for people; a defect must not end a fleet.
                logger.exception("the figures of the fleet are counted anew")
                self._view = FleetView(self._view.fleet, config=self._view.config)
                self._health_events = 0
            await asyncio.sleep(PAUSE_S)

    def status(self) -> dict[str, Any]:
        """Return the figures, and how many agents say that they are idle or busy."""
        return {
            "figures": msgspec.to_builtins(self._view.figures()),
            "health": {
                "events": self._health_events,
                "agents": self._view.statuses(MAX_STATES),
            },
        }

    def _on_event(self, broker: str, topic: str, payload: bytes, at: float) -> None:
        self._health_events += topic == HEALTH_TOPIC
