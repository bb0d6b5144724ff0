"""Brings tasks to a pattern and results to the disk, whatever ends in between.

The pattern needs a daemon, which may be started again, and the agents it gives tasks
to, which may be others after a change. Then it is opened again: it is given what has
no result, takes up what is under way, and nothing that was finished runs again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import InvalidArgument, NotSupported, PilotError, StorageError
from pilotfleet.fleet.throughput import Throughput
from pilotfleet.fleet.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager

    from pilotfleet.fleet.batches import Batches
    from pilotfleet.fleet.patterns import PatternRun
    from pilotfleet.fleet.schedule import TaskResult

__all__ = ["Work"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
MAX_UNKEPT: Final = 500
"""Results that wait for the disk; each may be a mebibyte, most are a line."""
FATAL: Final = (StorageError, InvalidArgument, NotSupported)
"""What trying again does not change."""


class Work:
    """The tasks of a fleet on their way."""

    def __init__(
        self,
        batches: Batches,
        open_pattern: Callable[[], Awaitable[AbstractAsyncContextManager[PatternRun]]],
    ) -> None:
        """Prepare to work.

        Args:
            batches: Where tasks come from and results go to.
            open_pattern: Opens the fleet's pattern as the fleet is now.
        """
        self.throughput = Throughput()
        self._batches = batches
        self._open = open_pattern
        self._pattern: PatternRun | None = None
        self._last: dict[str, Any] = {}
        """What the last pattern said when it ended."""
        self._trouble = ""
        self._trial: Trial | None = None
        self._renewed = asyncio.Event()
        self._is_ending = False

    async def run(self) -> None:
        """Work until :meth:`end`, and then until what is under way has ended.

        Raises:
            StorageError: Results cannot be kept any more.
            PilotError: The pattern cannot run at all.
        """
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                if await self._run_pattern():
                    return
            except FATAL:
                raise
            except PilotError as error:
                self._trouble = str(error)
                logger.warning("tasks are not given out: %s", error)
                if time.monotonic() - began > LONGEST_PAUSE_S:
                    pause = FIRST_PAUSE_S
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    def end(self) -> None:
        """Give out no more tasks."""
        self._is_ending = True
        self._batches.close()

    def renew(self) -> None:
        """Open the pattern again: its fleet has another form or other settings now."""
        self._renewed.set()

    def lost(self, names: Iterable[str]) -> None:
        """Have others take over from agents that are known to be dead."""
        if self._pattern is not None:
            for name in names:
                self._pattern.lost(name)

    async def try_out(self, agents: Collection[str]) -> None:
        """Look at what agents make of their next tasks, if there are any to do.

        Raises:
            NotRunning: The first have all failed.
        """
        if not self._batches.open_count:
            return
        self._trial = Trial(agents)
        try:
            await self._trial.wait()
        finally:
            self._trial = None

    def status(self) -> dict[str, Any]:
        """Return what the pattern says, how fast it goes, and what is in its way."""
        pattern = self._last if self._pattern is None else self._pattern.status()
        return {
            "workers": pattern,
            "clusters": pattern.get("clusters", []),
            "trouble": self._trouble,
            **self.throughput.status(),
        }

    async def _run_pattern(self) -> bool:
        """Run the pattern once; True when it came to its end, not to a new one."""
        self._renewed.clear()
        async with await self._open() as pattern:
            self._pattern, self._trouble = pattern, ""
            unkept: asyncio.Queue[TaskResult] = asyncio.Queue(MAX_UNKEPT)
            parts: list[Coroutine[Any, Any, Any]] = [
                self._read(pattern, unkept),
                self._keep(pattern, unkept),
                self._renewed.wait(),
            ]
            jobs = [asyncio.ensure_future(part) for part in parts]
            try:
                await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
                for job in jobs:
                    if job.done():
                        job.result()
                return self._is_ending and jobs[0].done()
            finally:
                self._last = pattern.status()
                self._pattern = None
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)

    async def _read(
        self, pattern: PatternRun, unkept: asyncio.Queue[TaskResult]
    ) -> None:
        async with aclosing(pattern.run(self._batches.lines())) as results:
            async for result in results:
                await unkept.put(result)

    async def _keep(
        self, pattern: PatternRun, unkept: asyncio.Queue[TaskResult]
    ) -> None:
        """Keep all results that are there at once: a commit costs the same for many.

        Only what is on the disk is taken; the daemon has the rest.
        """
        while True:
            group = [await unkept.get()]
            while not unkept.empty():
                group.append(unkept.get_nowait())
            kept = await self._batches.finish_all(group)
            for given, own in zip(group, kept, strict=True):
                pattern.taken(given.id)
                self._batches.returned(given.id)
                if own is not None:
                    self.throughput.add(own)
                    if self._trial is not None:
                        self._trial.add(own)
