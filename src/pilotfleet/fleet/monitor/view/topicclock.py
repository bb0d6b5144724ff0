"""When the last event of each topic came."""

from __future__ import annotations

from typing import Final

from pilotfleet.protocol.topics import matches

__all__ = ["TopicClock"]

MAX_TOPICS: Final = 1_000
"""Whoever may publish chooses the topics; the one silent the longest gives way."""


class TopicClock:
    """Remembers a bounded number of topics."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: dict[str, float] = {}

    def take(self, topic: str, at: float) -> None:
        """Note that an event of a topic came."""
        times = self._times
        # To the end: the first one is then the one that is silent the longest.
        times[topic] = max(at, times.pop(topic, at))
        if len(times) > MAX_TOPICS:
            del times[next(iter(times))]

    def last_event_at(self, pattern: str) -> float | None:
        """Return when the last event of a topic that matches came."""
        exact = self._times.get(pattern)
        if exact is not None:
            return exact
        fitting = (at for topic, at in self._times.items() if matches(pattern, topic))
        return max(fitting, default=None)
