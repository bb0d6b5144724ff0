"""Work that takes long gets a share of each turn of the event loop.

A turn is what the loop does between two looks at its sockets, and in a crowd it can
grow to seconds: ten thousand agents that register at the same instant are ten thousand
requests in one turn, and a batch is a thousand in one message. Whoever has such work
asks before each piece of it. As long as the pieces of this turn have taken a few
milliseconds together, nobody waits; then they wait in the order in which they came,
and other requests are answered in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Turns"]

SHARE_S: Final = 0.002
"""What the work may take of a turn, before the last piece of it."""
WOKEN_AT_ONCE: Final = 8
"""Of those who wait, so many go on in the next turn: one piece each, of about a
quarter of a millisecond if it is a registration. Where a piece takes milliseconds, it
is to be one."""


class Turns:
    """Tells work when it may go on. Its clock tells the time that work takes."""

    __slots__ = ("_armed", "_clock", "_until", "_waiting", "_woken")

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        woken: int = WOKEN_AT_ONCE,
    ) -> None:
        self._clock = clock
        self._woken = woken
        self._until = 0.0
        self._armed = False
        """Whether this turn has begun to be counted."""
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        """Who waits, and since when."""

    @property
    def waited_s(self) -> float:
        """How long the one who comes next has waited; about what a new one will."""
        return self._clock() - self._waiting[0][1] if self._waiting else 0.0

    async def take(self) -> None:
        """Return when there is time for a piece of work; at once in quiet times.

        May be cancelled.
        """
        if not self._waiting:
            if not self._armed:
                self._begin()
                return
            if self._clock() < self._until:
                return
        await self._wait()

    async def keep(self) -> None:
        """Return when the one who works now may do another piece.

        Unlike ``take``, those who wait do not come first while his turn lasts.
        """
        if self._clock() >= self._until:
            await self._wait()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, self._clock()))
        if not self._armed:
            self._arm()
        await turn

    def _begin(self) -> None:
        self._until = self._clock() + SHARE_S
        self._arm()

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._armed = False
        if not self._waiting:
            return
        self._begin()
        woken = 0
        while self._waiting and woken < self._woken:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                woken += 1
