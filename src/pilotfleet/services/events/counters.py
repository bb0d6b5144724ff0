"""What one broker counted, for `pilotctl events status` and ``fleet.broker``."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.services.events import Event
from pilotfleet.protocol.services.fleetevents import BROKER_TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pilotfleet.services.events.board import Board
    from pilotfleet.services.events.host import BrokerHost
    from pilotfleet.services.events.log import EventLog

__all__ = ["BrokerCounters", "CounterReports"]

PAUSE_S: Final = 10.0


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


class CounterReports:
    """Publishes the counters of the fleet's brokers while somebody listens.

    Args:
        host: Owns the task; there is one for all brokers, and none without listeners.
        boards: The brokers of the host, as they are at any time.
        names: Those of the fleet's brokers.
        publish: Publishes at a board.
    """

    def __init__(
        self,
        host: BrokerHost,
        boards: Collection[Board],
        names: Sequence[str],
        *,
        publish: Callable[[Board, Event], None],
    ) -> None:
        self._host = host
        self._boards = boards
        self._names = names
        self._publish = publish
        self._is_running = False

    def start(self) -> None:
        """Begin, if somebody listens now."""
        if not self._is_running and self._heard():
            self._is_running = True
            self._host.spawn(self._run(), name="event counters")

    def _heard(self) -> list[Board]:
        """Return the boards of the fleet's brokers that have a subscriber."""
        return [
            board
            for board in self._boards
            if board.counters.subscribers
            and not {board.agent.hostname, board.agent.name}.isdisjoint(self._names)
        ]

    async def _run(self) -> None:
        try:
            while self._heard():
                await asyncio.sleep(PAUSE_S)
                for board in self._heard():
                    name = board.agent.hostname or board.agent.name
                    row = {"broker": name, **board.counters.as_dict(board.log)}
                    self._publish(board, Event(BROKER_TOPIC, json.dumps(row).encode()))
        finally:
            self._is_running = False
