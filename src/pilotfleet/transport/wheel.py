"""One timer for everything in the process that has a deadline.

Ten thousand agents may each wait for something. If each had a handle at the
event loop, the loop would sort ten thousand handles; and a stream that moves
its retransmission deadline with every packet would make and cancel a handle
every time. The wheel keeps one heap and arms one loop timer for the earliest
deadline. Moving a deadline *later*, by far the commonest change, touches no
heap: the old entry fires, is found early, and is put back.
"""

from __future__ import annotations

import logging
import time
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["TimerOwner", "TimerWheel"]

logger = logging.getLogger(__name__)

_RESOLUTION_S: Final = 0.001
"""Deadlines this close are handled together; event loops count milliseconds."""
_STALE_ENTRIES: Final = 256
"""Dead heap entries tolerated before the heap is rebuilt."""


class TimerOwner(Protocol):
    """Something with at most one deadline at a time. Must be hashable."""

    def handle_timer(self, now: float) -> None:
        """Act on a deadline that has passed; may schedule the next one."""


class TimerWheel:
    """Calls owners back when their deadlines have passed.

    An exception in one owner is logged and does not keep the others waiting.
    """

    __slots__ = (
        "_armed",
        "_clock",
        "_deadlines",
        "_handle",
        "_heap",
        "_loop",
        "_queued",
        "_seq",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._deadlines: dict[TimerOwner, float] = {}
        # The one heap entry of each owner that counts: never later than its
        # deadline. Entries that were overtaken by an earlier one are dead.
        self._queued: dict[TimerOwner, float] = {}
        self._heap: list[tuple[float, int, TimerOwner]] = []
        self._seq = 0
        self._handle: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def __len__(self) -> int:
        """Return the number of owners that wait for a deadline."""
        return len(self._deadlines)

    def deadline(self, owner: TimerOwner) -> float | None:
        """Return when ``owner`` is due, or None."""
        return self._deadlines.get(owner)

    def schedule(self, owner: TimerOwner, deadline: float) -> None:
        """Call ``owner`` at ``deadline``; this replaces an earlier request."""
        self._deadlines[owner] = deadline
        queued = self._queued.get(owner)
        if queued is None or deadline < queued:
            self._push(owner, deadline)
            self._arm()

    def cancel(self, owner: TimerOwner) -> None:
        """Forget the deadline of ``owner``, if it has one."""
        # The heap entry stays until its time comes or the heap is rebuilt.
        self._deadlines.pop(owner, None)

    def close(self) -> None:
        """Drop every deadline."""
        self._deadlines.clear()
        self._queued.clear()
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _push(self, owner: TimerOwner, deadline: float) -> None:
        self._queued[owner] = deadline
        self._seq += 1
        heappush(self._heap, (deadline, self._seq, owner))
        if len(self._heap) > 2 * len(self._deadlines) + _STALE_ENTRIES:
            self._rebuild()

    def _rebuild(self) -> None:
        """Keep one entry for each owner that still waits."""
        self._queued = dict(self._deadlines)
        self._heap[:] = [
            (deadline, self._seq + index, owner)
            for index, (owner, deadline) in enumerate(self._queued.items(), start=1)
        ]
        self._seq += len(self._heap)
        heapify(self._heap)

    def _arm(self) -> None:
        if not self._heap:
            return
        first = self._heap[0][0]
        if self._handle is not None:
            if self._armed <= first:
                return
            self._handle.cancel()
        self._armed = first
        delay = max(_RESOLUTION_S, first - self._clock())
        self._handle = self._loop.call_later(delay, self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._clock()
        # Owners that ask for a deadline in the past are served in the next
        # round, so that one of them cannot hold the loop.
        for owner in self._take_due(now + _RESOLUTION_S / 2):
            try:
                owner.handle_timer(now)
            except Exception:  # Owners are strangers to each other.
                logger.exception("a timer handler of %r failed", owner)
        self._arm()

    def _take_due(self, limit: float) -> list[TimerOwner]:
        due: list[TimerOwner] = []
        while self._heap and self._heap[0][0] <= limit:
            queued, _, owner = heappop(self._heap)
            if self._queued.get(owner) != queued:
                continue
            del self._queued[owner]
            deadline = self._deadlines.get(owner)
            if deadline is None:
                continue
            if deadline <= limit:
                del self._deadlines[owner]
                due.append(owner)
            else:
                self._push(owner, deadline)
        return due
