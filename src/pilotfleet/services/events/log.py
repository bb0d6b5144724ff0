"""A bounded log of the events that a broker saw, for subscribers that ask back.

Events go to SQLite in groups, ten in a second at most if nobody waits for them, so a
busy broker makes few large transactions and an idle one none. A publisher that wants
a confirmation waits for the disk (:meth:`EventLog.sync`); for all others the log is
a convenience that loses events, counted, before anybody waits for it.

Every event has a number that grows and is never given twice, not even after a
crash that lost the newest events: a consumer that has seen number 90 may ask for
what follows it, and must not miss another event that got number 90 again. So the
file promises numbers in large blocks before they are used. The file has an
identity of its own, because numbers of another file say nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pilotfleet.errors import StorageError
from pilotfleet.transport.database import open_database, storage_errors
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.protocol.services.events import Event

__all__ = ["EventLog", "EventLogConfig", "LoggedEvent"]

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.1
"""How long a group gathers for which nobody waits: each costs a commit."""
GROUP_BYTES: Final = 1 << 20
"""It is written earlier when it is so large."""
REPLAY_PAGE: Final = 256
"""Events read at once; between pages the reader may be slow without cost."""
REPLAY_BYTES: Final = 256 << 10
"""A page ends after so much, so that many slow readers keep little in memory."""
REPLAY_READS: Final = 4
"""Pages read at the same time; what is to be written waits for no more."""
PRUNE_STEP: Final = 1024
"""Events removed at once when a cap is passed."""
ID_BLOCK: Final = 1 << 20
"""Numbers promised at a time."""
LAST_ID: Final = 1 << 62
"""Of any log: half of what SQLite can count to."""
ROW_OVERHEAD: Final = 32

_SCHEMA: Final = """
PRAGMA journal_size_limit = 4194304;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    wall REAL NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (wall);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL);
"""
_SIZE: Final = f"length(CAST(topic AS BLOB)) + length(payload) + {ROW_OVERHEAD}"
"""What a row counts against the cap, with an estimate of its overhead."""


class LoggedEvent(NamedTuple):
    """An event in the log. A named tuple: a replay makes many, and SQLite rows."""

    id: int
    wall: float
    topic: str
    payload: bytes


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
        self._waiting: list[LoggedEvent] = []
        self._waiting_bytes = 0
        self._is_durable = False
        """Whether somebody waits for the disk with what is waiting."""
        self._refused = 0
        """Groups that the disk did not take."""
        self._wake = asyncio.Event()
        self._many = asyncio.Event()
        self._writing = asyncio.Lock()
        self._reading = asyncio.Semaphore(REPLAY_READS)
        self.uuid = ""
        """Identity of the file."""
        self.last_id = 0
        """Number of the newest event, written or waiting."""
        self.logged = 0
        """Events written since the file was opened."""
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
        self.uuid, self.last_id = self._table.uuid, self._table.last_id
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

    def append(self, event: Event, wall: float, *, durable: bool = False) -> bool:
        """Log an event; tell whether it will be written, or counts as lost.

        Args:
            event: What to log.
            wall: When it was published.
            durable: Whether somebody will :meth:`sync`.
        """
        size = len(event.topic) + len(event.payload) + ROW_OVERHEAD
        table = self._table
        # No event gets a number that the file did not promise.
        if self.is_full(event) or table is None or self.last_id >= table.promised:
            self.lost += 1
            return False
        self.last_id += 1
        self._waiting.append(LoggedEvent(self.last_id, wall, *event))
        self._waiting_bytes += size
        self._is_durable |= durable
        self._wake.set()
        if self._waiting_bytes >= GROUP_BYTES:
            self._many.set()
        return True

    def is_full(self, event: Event) -> bool:
        """Tell whether an event has to wait for :meth:`flush`, or is lost."""
        size = len(event.topic) + len(event.payload) + ROW_OVERHEAD
        room = self._config.max_waiting_bytes - self._waiting_bytes
        # One event that is larger than all the room still passes.
        return size > room and bool(self._waiting)

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._many.wait()
            await self.flush()

    @property
    def refused(self) -> int:
        """Groups of events that the disk did not take; for :meth:`sync`."""
        return self._refused

    async def sync(self, refused_before: int) -> None:
        """Wait until all durable events appended before the call are on the disk.

        Args:
            refused_before: Value of :attr:`refused` before they were appended.

        Raises:
            StorageError: The disk did not take them, or perhaps not all.
        """
        await self.flush()
        if self._refused != refused_before or self._table is None:
            raise StorageError(f"event log {self._path} could not be written")

    async def flush(self) -> None:
        """Write all events that were appended before the call."""
        async with self._writing:
            self._wake.clear()
            self._many.clear()
            rows, self._waiting = self._waiting, []
            is_durable, self._is_durable = self._is_durable, False
            self._waiting_bytes = 0
            if not rows or self._table is None:
                return
            try:
                await self._thread.run(self._table.write, rows, durable=is_durable)
            except sqlite3.Error as error:
                self.lost += len(rows)
                self._refused += 1
                logger.warning("event log %s: %s", self._path, error)
            except asyncio.CancelledError:
                # It is being written still, and nobody will know how that ended.
                self._refused += 1
                raise
            else:
                self.logged += len(rows)

    async def replay(
        self, *, until_id: int, since: float = 0.0, after: int = 0
    ) -> AsyncIterator[list[LoggedEvent]]:
        """Yield pages of events, oldest first.

        Args:
            until_id: The newest event wanted; see :attr:`last_id`.
            since: Wall time of the oldest event wanted.
            after: Number of the last event not wanted.

        Raises:
            StorageError: The file cannot be read.
        """
        await self.flush()
        while self._table is not None and after < until_id:
            try:
                async with self._reading:
                    rows = await self._thread.run(
                        self._table.read, since, after, until_id
                    )
            except sqlite3.Error as error:
                raise StorageError(f"event log {self._path}: {error}") from error
            if not rows:
                return
            yield rows
            after = rows[-1].id


class _Table:
    """The file itself; lives in the log's thread."""

    def __init__(self, path: Path, config: EventLogConfig) -> None:
        self._config = config
        self._database = open_database(path, synchronous="FULL")
        with storage_errors("open", path):
            self._database.executescript(_SCHEMA)
            newest, self._count, self._bytes = self._database.execute(
                "SELECT coalesce(max(id), 0), count(*),"
                f" coalesce(sum({_SIZE}), 0) FROM events"
            ).fetchone()
            # Files of earlier versions get their identity here.
            self.uuid = str(self._meta("uuid", str(uuid.uuid4())))
            promised = self._meta("promised", 0)
            # SQLite keeps any type in any column.
            if not isinstance(promised, int) or max(newest, promised) > LAST_ID:
                raise StorageError(
                    f"event log {path} is damaged: it has no numbers left",
                    hint="move it away: the broker then begins a new one",
                )
            self.last_id = max(newest, promised)
            self.promised = self._promise(self.last_id)
            self._set_durable(on=False)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def write(self, rows: list[LoggedEvent], *, durable: bool) -> None:
        """Add rows and remove old ones in one transaction."""
        needs_numbers = rows[-1].id + ID_BLOCK // 2 > self.promised
        is_synced = durable or needs_numbers
        if is_synced:
            self._set_durable(on=True)
        promised = self.promised
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                count, size = self._count, self._bytes
                self._database.executemany(
                    "INSERT INTO events VALUES (?, ?, ?, ?)", rows
                )
                count += len(rows)
                size += sum(_size_of(row) for row in rows)
                removed, freed = self._prune(count, size, newest=rows[-1].wall)
                if needs_numbers:
                    promised = self._promise(rows[-1].id)
        finally:
            if is_synced:
                self._set_durable(on=False)
        self._count, self._bytes = count - removed, size - freed
        # Only now is it on the disk.
        self.promised = promised

    def read(self, since: float, after: int, until_id: int) -> list[LoggedEvent]:
        """Return the next page of events; none means that there are no more."""
        if not after:
            # Only the first page has to look for its beginning.
            oldest = self._database.execute(
                "SELECT min(id) FROM events WHERE wall >= ?", (since,)
            ).fetchone()[0]
            if oldest is None:
                return []
            after = oldest - 1
        found = self._database.execute(
            "SELECT id, wall, topic, payload FROM events"
            " WHERE id > ? AND id <= ? AND wall >= ? ORDER BY id LIMIT ?",
            (after, until_id, since, REPLAY_PAGE),
        )
        page, size = [], 0
        for row in found:
            page.append(LoggedEvent(*row))
            size += len(row[3])
            if size > REPLAY_BYTES:
                break
        found.close()
        return page

    def _meta(self, key: str, default: str | int) -> str | int:
        """Return a value of the meta table, which the default becomes if missing."""
        self._database.execute(
            "INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, default)
        )
        value: str | int = self._database.execute(
            "SELECT value FROM meta WHERE key = ?", (key,)
        ).fetchone()[0]
        return value

    def _promise(self, last_id: int) -> int:
        promised = last_id + ID_BLOCK
        self._database.execute(
            "UPDATE meta SET value = ? WHERE key = 'promised'", (promised,)
        )
        return promised

    def _set_durable(self, *, on: bool) -> None:
        level = "FULL" if on else "NORMAL"
        self._database.execute(f"PRAGMA synchronous = {level}")

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
        # By age, for which there is an index: by number it would be a look at all.
        rows, taken = self._remove("WHERE wall < ? ORDER BY wall LIMIT 8192", too_old)
        return removed + rows, freed + taken

    def _remove(self, condition: str, value: float) -> tuple[int, int]:
        """Delete the rows of a condition; return how many, and their size."""
        deleted = self._database.execute(
            f"DELETE FROM events WHERE id IN (SELECT id FROM events {condition})"
            f" RETURNING {_SIZE}",
            (value,),
        ).fetchall()
        return len(deleted), sum(size for (size,) in deleted)


def _size_of(row: LoggedEvent) -> int:
    return len(row.topic.encode()) + len(row.payload) + ROW_OVERHEAD
