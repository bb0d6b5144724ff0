"""Owner of every task that a host starts."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import PilotError

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs tasks that may fail without taking their neighbours along.

    A `TaskGroup` would cancel all agents when a handler of one fails. Here a
    failure is logged and counted, and that is all; every task is still owned,
    and is cancelled and awaited in `aclose`.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failures = 0

    def __len__(self) -> int:
        """Return the number of tasks that run."""
        return len(self._tasks)

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run ``coro`` as a task of this supervisor."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def aclose(self) -> None:
        """Cancel every task and wait for it to end."""
        own = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not own]:
            for task in tasks:
                task.cancel()
            # Not gather: a task may be finishing with its own exception.
            await asyncio.wait(tasks)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        self.failures += 1
        if isinstance(error, PilotError):
            logger.warning("%s: %s", task.get_name(), error)
        else:
            logger.error("%s failed", task.get_name(), exc_info=error)
