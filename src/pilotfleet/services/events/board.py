"""The broker of one agent: who subscribed to what, the log and the counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.events import encode_event
from pilotfleet.protocol.topics import TopicTrie
from pilotfleet.services.events.counters import BrokerCounters
from pilotfleet.services.events.session import Delivery, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.services.events import Event
    from pilotfleet.services.events.host import BrokerAgent
    from pilotfleet.services.events.log import EventLog

__all__ = ["Board"]

CACHED_TOPICS: Final = 256
CACHED_SUBSCRIBERS: Final = 64
"""Longer lists are not kept: delivering to so many costs far more than matching."""


class Board:
    """Gives publications to the log and to the subscribers."""

    __slots__ = ("_cache", "_topics", "agent", "counters", "log", "wall")

    def __init__(
        self, agent: BrokerAgent, log: EventLog | None, wall: Callable[[], float]
    ) -> None:
        self.agent = agent
        self.log = log
        self.wall = wall
        self.counters = BrokerCounters()
        self._topics: TopicTrie[Session] = TopicTrie()
        self._cache: dict[str, list[Session]] = {}
        """Matches of topics since the last change of the subscriptions."""

    @property
    def last_id(self) -> int:
        """Number of the newest logged event; 0 without a log."""
        return self.log.last_id if self.log is not None else 0

    def add(self, topic: str, session: Session) -> None:
        """Let a session get what fits its topic from now on."""
        self._topics.add(topic, session)
        self._cache.clear()

    def remove(self, topic: str, session: Session) -> None:
        """Let a session get nothing more."""
        self._topics.remove(topic, session)
        self._cache.clear()

    def deliver(
        self, event: Event, *, source: Session | None = None, durable: bool = False
    ) -> None:
        """Give one publication to the log and to all subscribers but its source.

        Args:
            event: The publication.
            source: The connection it came from.
            durable: Whether it must be in the log; the caller waits for the disk.

        Raises:
            StorageError: It should be in the log and cannot; nobody got it.
        """
        wall, log = self.wall(), self.log
        if log is not None and not log.append(event, wall, durable=durable) and durable:
            raise StorageError("the event log takes no more")
        self.counters.published += 1
        subscribers = self._subscribers(event.topic)
        if not subscribers:
            return
        delivery = Delivery(encode_event(*event), self.last_id, wall)
        for session in subscribers:
            if session is not source:
                session.queue(delivery)
                self.counters.delivered += 1

    def _subscribers(self, topic: str) -> list[Session]:
        found = self._cache.get(topic)
        if found is None:
            found = self._topics.match(topic)
            if len(found) <= CACHED_SUBSCRIBERS:
                if len(self._cache) >= CACHED_TOPICS:
                    self._cache.clear()
                self._cache[topic] = found
        return found
