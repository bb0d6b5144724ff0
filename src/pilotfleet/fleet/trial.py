"""Whether worker programs that were just replaced can do their tasks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import NotRunning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.fleet.actions import TaskResult

__all__ = ["Trial"]

FAILURES: Final = 3
"""So many failed tasks and not one success convict. One may be a bad task."""
TRIAL_S: Final = 10.0
"""Longer than most tasks take; without a verdict by then, the benefit of the doubt."""


class Trial:
    """Looks at the first results of certain agents."""

    def __init__(self, agents: Iterable[str]) -> None:
        self._agents = frozenset(agents)
        self._failed = 0
        self._error = ""
        self._is_decided = asyncio.Event()

    def add(self, result: TaskResult) -> None:
        """Look at a result, whosever it is."""
        if result.agent not in self._agents or self._is_decided.is_set():
            return
        if result.status == "SUCCEEDED":
            self._is_decided.set()
            return
        self._failed += 1
        self._error = result.error
        if self._failed >= FAILURES:
            self._is_decided.set()

    async def wait(self) -> None:
        """Wait for the verdict.

        Raises:
            NotRunning: The first tasks have all failed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(TRIAL_S):
                await self._is_decided.wait()
        if self._failed >= FAILURES:
            raise NotRunning(
                f"the first {self._failed} tasks of what was replaced have failed,"
                f" the last with: {self._error}",
                hint="these members are put back; the others are as they were",
            )
