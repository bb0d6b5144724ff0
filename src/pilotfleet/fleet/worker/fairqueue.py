"""Whose turn it is: waiting lines in which no owner can crowd out another.

Each owner has a line of its own, and the owners take turns: one with a thousand
items waiting delays another's first item by one turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["FairPlaces", "FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by owner, handed out in turns. Bounded by whoever fills it."""

    __slots__ = ("_length", "_lines")

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        """In the order of the next turns; no line is empty."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, owner: str, item: T) -> None:
        """Add an item at the end of its owner's line."""
        self._lines.setdefault(owner, deque()).append(item)
        self._length += 1

    def pop(self) -> T:
        """Take the first item of the owner whose turn it is.

        Raises:
            IndexError: Nothing waits.
        """
        if not self._lines:
            raise IndexError("nothing waits")
        owner = next(iter(self._lines))
        line = self._lines.pop(owner)
        item = line.popleft()
        self._length -= 1
        if line:
            # Back to the end: the others come first now.
            self._lines[owner] = line
        return item

    def discard(self, owner: str, item: T) -> None:
        """Remove an item that waits no longer, if it is still there."""
        line = self._lines.get(owner)
        if line is None:
            return
        with suppress(ValueError):
            line.remove(item)
            self._length -= 1
        if not line:
            del self._lines[owner]


class FairPlaces:
    """A number of places that owners take in turns, as a semaphore for each would."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self, owner: str) -> None:
        """Wait for a place. May be cancelled: no place is lost then."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.discard(owner, turn)
            if not turn.cancelled():
                # The place came in the same moment.
                self.release()
            raise

    def release(self) -> None:
        """Give a place back: to the owner whose turn it is, if any waits."""
        while self._waiting:
            turn = self._waiting.pop()
            # One that was cancelled just now has had no time to leave its line.
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
