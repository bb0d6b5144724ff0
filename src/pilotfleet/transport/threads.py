"""The one way to call code that blocks: files, databases, name lookups."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SerialThread", "run_blocking"]

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(function: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
    """Call ``function`` in a thread of the shared pool.

    When cancelled, the call still runs to its end; its result is lost.
    """
    return await asyncio.to_thread(function, *args, **kw)


class SerialThread:
    """One thread that runs calls one after the other.

    For libraries whose objects belong to a single thread, like a SQLite
    connection. The caller bounds how many calls it makes at a time.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Call ``function`` in the thread, after all calls made before."""
        loop = asyncio.get_running_loop()
        # Shielded: a cancelled caller must not take a call out of the order
        # that later calls rely on.
        future = loop.run_in_executor(self._pool, lambda: function(*args, **kw))
        return await asyncio.shield(future)

    async def aclose(self) -> None:
        """Wait for the calls that were made and end the thread."""
        await asyncio.to_thread(self._pool.shutdown)
