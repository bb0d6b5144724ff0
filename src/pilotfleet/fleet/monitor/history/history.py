"""What was, of all fleets that a monitor watches: one SQLite file.

All work is done in one thread. What cannot be written, because the disk is full or
fails, waits in memory and goes with the next call; the monitor goes on meanwhile.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from pilotfleet.errors import Closed
from pilotfleet.fleet.monitor.history.file import HistoryFile, Saved
from pilotfleet.fleet.monitor.history.prune import Retention
from pilotfleet.fleet.monitor.history.schema import translated
from pilotfleet.fleet.monitor.history.series import plan_series, read_series
from pilotfleet.fleet.monitor.samples import NOTHING_RECENT
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pilotfleet.fleet.monitor.figures import Series
    from pilotfleet.fleet.monitor.samples import Recent, Sample

__all__ = ["History", "Retention", "Saved"]

logger = logging.getLogger(__name__)

TELL_EVERY_S: Final = 60.0
"""Between two log lines about a disk that refuses."""

_Answer = TypeVar("_Answer")


class History:
    """Samples, states and alerts; an async context manager.

    One program has the file at a time. A call may be cancelled; what it asked for is
    done all the same.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention: Retention | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._retention = retention or Retention()
        self._wall = wall
        self._clock = clock
        self._thread = SerialThread("history")
        self._file: HistoryFile | None = None
        self._failing_since: float | None = None
        self._told_at = 0.0

    async def __aenter__(self) -> Self:
        """Open or make the file.

        Raises:
            StorageError: It cannot be opened, is damaged, is in use, belongs to another
                program, or a newer version wrote it.
        """
        try:
            self._file = await self._thread.run(
                HistoryFile, self._path, self._retention
            )
        except BaseException:
            await self._thread.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what was asked for, then close the file."""
        file, self._file = self._file, None
        if file is not None:
            await self._thread.run(file.close)
        await self._thread.aclose()

    @property
    def waiting(self) -> int:
        """Samples that are not on the disk yet, because it refuses."""
        return 0 if self._file is None else self._file.waiting

    @property
    def lost(self) -> int:
        """Samples given up because the disk refused for too long."""
        return 0 if self._file is None else self._file.lost

    @property
    def refused(self) -> int:
        """Samples of an impossible time, more than a day ahead of the clock."""
        return 0 if self._file is None else self._file.refused

    async def store(
        self,
        fleet: str,
        samples: Sequence[Sample],
        *,
        state: bytes,
        positions: Mapping[str, tuple[str, int]],
        recent: Recent = NOTHING_RECENT,
    ) -> bool:
        """Write what belongs together in one transaction.

        Args:
            fleet: Whose.
            samples: Seconds since the last call; add to what is there of them.
            state: What the view goes on with.
            positions: The logs of the brokers, and where in them the state is.
            recent: Tasks and events for pages, since the last call.

        Returns:
            False when the disk refuses: then it waits in memory and is written with a
            later call, with the state and the positions of that one.
        """
        file = self._opened()
        store = partial(
            file.store,
            fleet,
            list(samples),
            state,
            dict(positions),
            recent,
            self._wall(),
        )
        return await self._write(store)

    async def load(self, fleet: str) -> Saved | None:
        """Return what was stored last; None for a fleet that is new.

        Raises:
            StorageError: The file cannot be read.
        """
        return await self._read(partial(self._opened().load, fleet))

    async def series(
        self,
        fleet: str,
        metrics: Sequence[str],
        *,
        start: float,
        end: float,
        tag: str | None = None,
        points: int = 600,
    ) -> Series:
        """Return values over time, in the finest resolution that fits the points.

        A fleet or tag without history gives None everywhere. Levels are the last of a
        step, rates its average, counts and times all of it.

        Raises:
            InvalidArgument: There is no such metric, or the end is not after the start.
            StorageError: The file cannot be read.
        """
        file = self._opened()
        plan = plan_series(
            metrics,
            start=start,
            end=end,
            points=points,
            now=self._wall(),
            retention=self._retention,
        )
        read = partial(file.select, fleet, tag or "")
        return await self._read(partial(read_series, list(metrics), plan, read))

    async def store_alerts(self, state: bytes) -> bool:
        """Keep what the alerts go on with; False when the disk refuses."""
        return await self._write(partial(self._opened().store_alerts, state))

    async def load_alerts(self) -> bytes | None:
        """Return what :meth:`store_alerts` kept last.

        Raises:
            StorageError: The file cannot be read.
        """
        return await self._read(self._opened().load_alerts)

    # Private

    def _opened(self) -> HistoryFile:
        if self._file is None:
            raise Closed("the history is closed")
        return self._file

    async def _read(self, work: Callable[[], _Answer]) -> _Answer:
        try:
            return await self._thread.run(work)
        except sqlite3.Error as error:
            raise translated(error, self._path) from error

    async def _write(self, work: Callable[[], None]) -> bool:
        try:
            await self._thread.run(work)
        except sqlite3.Error as error:
            self._on_failure(error)
            return False
        self._on_success()
        return True

    def _on_failure(self, error: sqlite3.Error) -> None:
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        problem = translated(error, self._path)
        logger.error(
            "%s; %d samples wait in memory, %d are lost (%s)",
            problem,
            self.waiting,
            self.lost,
            problem.hint,
        )

    def _on_success(self) -> None:
        if self._failing_since is not None:
            failed_s = self._clock() - self._failing_since
            self._failing_since = None
            logger.warning(
                "history %s is written again after %.0f s; %d samples were lost",
                self._path,
                failed_s,
                self.lost,
            )
