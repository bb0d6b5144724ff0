"""A bounded log of the events that a broker saw, for subscribers that ask back.

Events go to SQLite in groups: while one group is being written, the next one
gathers, so a busy broker makes few large transactions and an idle one none. The
log is a convenience, not a promise. Nothing waits for it to reach the disk, and
under pressure it loses events, counted, before it makes publishers wait.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.events import Event
from pilotfleet.protocol.topics import matches
from pilotfleet.transport.database import open_database, storage_errors
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["EventLog", "EventLogConfig"]

logger = logging.getLogger(__name__)

REPLAY_PAGE: Final = 256
"""Events read at once; between pages the reader may be slow without cost."""
PRUNE_STEP: Final = 1024
"""Events removed at once when a cap is passed."""

_SCHEMA: Final = """
PRAGMA journal_size_limit = 4194304;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    wall REAL NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (wall);
"""
_SIZE: Final = "length(CAST(topic AS BLOB)) + length(payload) + 32"
"""What a row counts against the cap, with an estimate of its overhead."""


@dataclass(frozen=True, slots=True)
class EventLogConfig:
    """Limits of an event log. Whichever is reached first removes the oldest."""

    max_events: int = 200_000
    """Rows kept; 200,000 small events take about 30 MB of disk."""
    max_age_s: float = 24 * 3600
    """How far back a subscriber may ask."""
    max_bytes: int = 64 << 20
    """Topics and payloads kept, which bounds the file."""
    max_waiting_bytes: int = 8 << 20
    """Events in memory while the disk is slow; more are not logged."""


class EventLog:
    """Keeps events in one SQLite file; :meth:`run` does the writing."""

    def __init__(self, path: Path, *, config: EventLogConfig | None = None) -> None:
        self._path = path
        self._config = config or EventLogConfig()
        self._thread = SerialThread("eventlog")
        self._table: _Table | None = None
        self._waiting: list[tuple[int, float, str, bytes]] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self.last_id = 0
        """Number of the newest event, written or waiting."""
        self.lost = 0
        """Events that were not logged because the disk was slow or refused."""

    async def __aenter__(self) -> Self:
        """Open the file, making it when it is missing.

        Raises:
            StorageError: The file cannot be opened, or is no database.
        """
        try:
            self._table = await self._thread.run(_Table, self._path, self._config)
        except StorageError:
            await self._thread.aclose()
            raise
        self.last_id = self._table.last_id
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what is waiting and close the file."""
        await self.flush()
        if self._table is not None:
            await self._thread.run(self._table.close)
            self._table = None
            await self._thread.aclose()

    def append(self, event: Event, wall: float) -> None:
        """Log an event; it is written later, or counted as lost."""
        size = len(event.topic) + len(event.payload)
        if self._waiting_bytes + size > self._config.max_waiting_bytes:
            self.lost += 1
            return
        self.last_id += 1
        self._waiting.append((self.last_id, wall, event.topic, event.payload))
        self._waiting_bytes += size
        self._wake.set()

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            await self._wake.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write all events that were appended before the call."""
        async with self._writing:
            self._wake.clear()
            rows, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            if not rows or self._table is None:
                return
            try:
                await self._thread.run(self._table.write, rows)
            except sqlite3.Error as error:
                self.lost += len(rows)
                logger.warning("event log %s: %s", self._path, error)

    async def replay(
        self, pattern: str, *, since: float, until_id: int
    ) -> AsyncIterator[Event]:
        """Yield the events that match, oldest first.

        Args:
            pattern: As in a subscription.
            since: Wall time of the oldest event wanted.
            until_id: The newest event wanted; see :attr:`last_id`.

        Raises:
            StorageError: The file cannot be read.
        """
        await self.flush()
        after = 0
        while self._table is not None:
            try:
                rows = await self._thread.run(self._table.read, since, after, until_id)
            except sqlite3.Error as error:
                raise StorageError(f"event log {self._path}: {error}") from error
            for _, topic, payload in rows:
                if matches(pattern, topic):
                    yield Event(topic, payload)
            if len(rows) < REPLAY_PAGE:
                return
            after = rows[-1][0]


class _Table:
    """The file itself; lives in the log's thread."""

    def __init__(self, path: Path, config: EventLogConfig) -> None:
        self._config = config
        self._database = open_database(path, synchronous="NORMAL")
        with storage_errors("open", path):
            self._database.executescript(_SCHEMA)
            self.last_id, self._count, self._bytes = self._database.execute(
                "SELECT coalesce(max(id), 0), count(*),"
                f" coalesce(sum({_SIZE}), 0) FROM events"
            ).fetchone()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def write(self, rows: list[tuple[int, float, str, bytes]]) -> None:
        """Add rows and remove old ones in one transaction."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            count, size = self._count, self._bytes
            self._database.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
            count += len(rows)
            size += sum(len(row[2].encode()) + len(row[3]) + 32 for row in rows)
            removed, freed = self._prune(count, size, newest=rows[-1][1])
            self._count, self._bytes = count - removed, size - freed

    def read(
        self, since: float, after: int, until_id: int
    ) -> list[tuple[int, str, bytes]]:
        """Return the next page of events."""
        if not after:
            # Only the first page has to look for its beginning.
            oldest = self._database.execute(
                "SELECT min(id) FROM events WHERE wall >= ?", (since,)
            ).fetchone()[0]
            if oldest is None:
                return []
            after = oldest - 1
        return self._database.execute(
            "SELECT id, topic, payload FROM events"
            " WHERE id > ? AND id <= ? AND wall >= ? ORDER BY id LIMIT ?",
            (after, until_id, since, REPLAY_PAGE),
        ).fetchall()

    def _prune(self, count: int, size: int, *, newest: float) -> tuple[int, int]:
        removed, freed = 0, 0
        while count - removed > self._config.max_events or (
            size - freed > self._config.max_bytes
        ):
            excess = count - removed - self._config.max_events
            step = min(PRUNE_STEP, max(excess, PRUNE_STEP // 8))
            rows, taken = self._remove("ORDER BY id LIMIT ?", step)
            removed, freed = removed + rows, freed + taken
            if not rows:
                break
        too_old = newest - self._config.max_age_s
        rows, taken = self._remove("WHERE wall < ? ORDER BY id LIMIT 8192", too_old)
        return removed + rows, freed + taken

    def _remove(self, condition: str, value: float) -> tuple[int, int]:
        """Delete the rows of a condition; return how many, and their size."""
        deleted = self._database.execute(
            f"DELETE FROM events WHERE id IN (SELECT id FROM events {condition})"
            f" RETURNING {_SIZE}",
            (value,),
        ).fetchall()
        return len(deleted), sum(size for (size,) in deleted)
