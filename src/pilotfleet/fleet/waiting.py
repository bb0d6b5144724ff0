"""Tasks that wait for one kind of worker, the most urgent first. Performs no I/O."""

from __future__ import annotations

import heapq
from typing import Final, TypeAlias

__all__ = ["Rank", "WaitingTasks"]

Rank: TypeAlias = tuple[int, int]
"""A task's place: its priority, negated, then its number. The lowest goes first, so
a task that is tried again comes before those of its priority that are younger."""

STALE: Final = 64
"""Places of tasks that left are tolerated up to this many more than twice the rest."""


class WaitingTasks:
    """A queue by rank that tasks may also leave from the middle."""

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._members: set[Rank] = set()

    def __len__(self) -> int:
        return len(self._members)

    def first(self) -> Rank:
        """Return the most urgent one; there must be one."""
        while self._heap[0] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0]

    def push(self, rank: Rank) -> None:
        """Add a task."""
        if rank not in self._members:
            self._members.add(rank)
            heapq.heappush(self._heap, rank)

    def pop(self) -> Rank:
        """Remove and return the most urgent one; there must be one."""
        rank = self.first()
        heapq.heappop(self._heap)
        self._members.discard(rank)
        return rank

    def discard(self, rank: Rank) -> None:
        """Remove a task if it waits here."""
        self._members.discard(rank)
        if len(self._heap) > STALE + 2 * len(self._members):
            self._heap = sorted(self._members)
