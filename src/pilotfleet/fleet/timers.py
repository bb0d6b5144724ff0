"""When something is to be done for tasks, attempts and workers. Performs no I/O.

Timers are never taken back: one whose task has ended means nothing when its time
comes. Where most mean nothing any more, they are thrown away together.
"""

from __future__ import annotations

import heapq
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MIN_TIMERS", "Timer", "Timers"]

MIN_TIMERS: Final = 1_024
STALE_PER_ENTRY: Final = 4
"""Timers of what has ended are tolerated up to this; then the heap is rebuilt."""


class Timer(Enum):
    """What is done when a time has come."""

    DEADLINE = "deadline"
    LIMIT = "limit"
    RETRY = "retry"
    REST = "rest"
    UNMATCHED = "unmatched"


class Timers:
    """A heap of times, bounded by what there is to wait for.

    Args:
        entries: Returns how many tasks, attempts and workers there are.
        is_wanted: Tells whether a timer with a key still means something.
    """

    def __init__(
        self, entries: Callable[[], int], is_wanted: Callable[[Timer, Any], bool]
    ) -> None:
        self._entries = entries
        self._is_wanted = is_wanted
        self._heap: list[tuple[float, int, Timer, Any]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, timer: Timer, key: object) -> None:
        """Have something done at a time."""
        if len(self._heap) > MIN_TIMERS + STALE_PER_ENTRY * self._entries():
            self._heap = [entry for entry in self._heap if self._is_wanted(*entry[2:])]
            heapq.heapify(self._heap)
        # The count keeps equal times from comparing keys.
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer, key))

    def first(self) -> float | None:
        """Return the earliest time."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[tuple[Timer, Any]]:
        """Take out what is due; also what is added meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            _, _, timer, key = heapq.heappop(self._heap)
            yield timer, key
