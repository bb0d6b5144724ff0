"""A bound on what all connections of a host hold of unfinished frames.

One frame may have 64 MiB, and thousands of agents share the process. A connection
whose frame does not fit waits, and with it its sender, until others are done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["ReceiveBudget"]

FREE_BYTES: Final = 64 << 10
"""Small frames are not counted; their connections are bounded anyway."""


class ReceiveBudget:
    """Bytes held by connections.

    The connection that holds something for longest is never stopped. So there is
    always one that gets on, and no more is held than the limit and one frame.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Hashable, int] = {}
        """By connection, the one that holds something for longest first."""
        self._total = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def total(self) -> int:
        """Bytes held now."""
        return self._total

    async def hold(self, owner: Hashable, size: int) -> None:
        """Count ``size`` bytes for ``owner``, instead of what it held before.

        Waits until it may read on. May be cancelled; then still release.
        """
        if size <= FREE_BYTES:
            self.release(owner)
            return
        self._count(size - self._held.get(owner, 0))
        self._held[owner] = size
        while self._total > self._limit and next(iter(self._held)) != owner:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def release(self, owner: Hashable) -> None:
        """Count nothing for ``owner`` any more."""
        self._count(-self._held.pop(owner, 0))

    def _count(self, added: int) -> None:
        self._total += added
        if added >= 0:
            return
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
