"""Locks on store keys: requests about the same thing take turns.

Within one process a conflict on a key is known before the store is asked. The
second request waits until the first is written and then decides again, in the
order of arrival, so nobody starves and nothing is written in vain. Requests
about different things do not meet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KeyLocks"]

_Waiters: TypeAlias = "deque[asyncio.Future[None]]"


class KeyLocks:
    """Any number of named locks; free ones cost nothing."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, _Waiters | None] = {}

    def try_acquire(self, keys: Iterable[str]) -> bool:
        """Take all keys if none is held; never waits."""
        held = self._held
        wanted: dict[str, _Waiters | None] = dict.fromkeys(keys)
        if not held.keys().isdisjoint(wanted):
            return False
        held.update(wanted)
        return True

    async def acquire(self, keys: Iterable[str]) -> None:
        """Take all keys, waiting for each. Holds none when cancelled."""
        taken: list[str] = []
        try:
            # One order for everybody excludes deadlocks.
            for key in sorted(keys):
                await self._acquire_one(key)
                taken.append(key)
        except asyncio.CancelledError:
            self.release(taken)
            raise

    def release(self, keys: Iterable[str]) -> None:
        """Give keys back; each passes to whoever waits longest for it."""
        for key in keys:
            waiters = self._held[key]
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    break
            else:
                del self._held[key]

    async def _acquire_one(self, key: str) -> None:
        if key not in self._held:
            self._held[key] = None
            return
        waiters = self._held[key]
        if waiters is None:
            waiters = self._held[key] = deque()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # The key may have been passed to us just before.
            if waiter.done() and not waiter.cancelled():
                self.release([key])
            raise
