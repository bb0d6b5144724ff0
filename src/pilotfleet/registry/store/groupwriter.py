"""Group commit: writes that wait while one is under way go together next time.

The price of a commit (a sync to disk, a round trip to the servers) hardly depends
on how much is in it. So one task commits for everybody, and the slower it is, the
more shares the next commit.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pilotfleet.registry.store.base import Change

__all__ = ["GroupWriter", "Write"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 50_000
"""Writes that may wait for the next commit; more of them wait to wait."""


class Write:
    """Changes that belong together, and who waits for them."""

    __slots__ = ("changes", "done")

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.done: asyncio.Future[list[int]] = asyncio.Future()

    def settle(self, result: list[int] | StorageError) -> None:
        """Tell the outcome, unless nobody waits for it any more."""
        if self.done.done():
            return
        if isinstance(result, StorageError):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class GroupWriter:
    """Collects writes and has them committed in groups, one after the other.

    Args:
        where: The store, for errors.
        count: Tells how many of the writes that wait form the next group.
        commit: Commits a group and settles every write in it.
    """

    def __init__(
        self,
        where: str,
        *,
        count: Callable[[Sequence[Write]], int],
        commit: Callable[[Sequence[Write]], Awaitable[None]],
    ) -> None:
        self._where = where
        self._count = count
        self._commit = commit
        self._waiting: list[Write] = []
        self._slots = asyncio.Semaphore(MAX_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, changes: Sequence[Change]) -> list[int]:
        """Have changes committed and return their revisions.

        Raises:
            StorageError: What the commit settled, or the writer is closed.
        """
        async with self._slots:
            if self._closed:
                raise StorageError(f"store {self._where} is closed")
            write = Write(changes)
            self._waiting.append(write)
            if self._task is None:
                self._task = asyncio.create_task(self._run(), name="store-commit")
            return await write.done

    async def aclose(self) -> None:
        """Take no more writes and commit those that wait."""
        self._closed = True
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        """Commit until nobody waits any more."""
        while self._waiting:
            count = self._count(self._waiting)
            group, self._waiting = self._waiting[:count], self._waiting[count:]
            try:
                await self._commit(group)
            # A defect: this task must go on, or every later write would wait for it.
            except Exception as error:
                logger.exception("a commit to %s failed", self._where)
                for write in group:
                    write.settle(StorageError(f"cannot write {self._where}: {error}"))
        self._task = None
