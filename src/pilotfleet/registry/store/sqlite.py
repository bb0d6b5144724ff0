"""The embedded store: one SQLite file.

One thread owns the connection. Writes that wait while it is busy are committed
together (group commit), so the cost of a sync to disk is shared by all of
them. The journal is a write-ahead log with full sync: what is acknowledged
survives the loss of the process and of power.

One row per key, and the revision is its row ID: a change deletes the old row
and appends a new one, so a scan of the table is in the order of revisions.
Deleted keys stay as rows without a value until there are too many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pilotfleet.errors import Conflict, StorageError
from pilotfleet.registry.store.base import Change, Entry, Store
from pilotfleet.registry.store.groupwriter import GroupWriter
from pilotfleet.transport.database import open_database, storage_errors
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from typing import TypeAlias

    from pilotfleet.registry.store.groupwriter import Write

__all__ = ["SqliteStore"]

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 5_000
"""Writes in one commit: bounds the time that the first of them waits."""
MAX_DELETED: Final = 100_000
"""Deleted keys that are remembered for slow watchers."""
WATCH_CHUNK: Final = 1_000
"""Entries that a watcher holds at a time."""
ROWS_PER_STATEMENT: Final = 200
"""Every statement lets the event loop's thread run, and then waits for it: so
few large statements are several times faster than many small ones."""
POLL_INTERVAL_S: Final = 0.5
"""How often a watcher looks for changes made by other processes."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    value BLOB
);
CREATE INDEX IF NOT EXISTS deleted ON entries (revision) WHERE value IS NULL;
"""
_SELECT: Final = "SELECT revision, value IS NULL FROM entries WHERE key = ?"
_INSERT: Final = (
    "INSERT OR REPLACE INTO entries (revision, key, value) VALUES (?, ?, ?)"
)
_LAST: Final = "SELECT coalesce(max(revision), 0) FROM entries"
# The newest row stays whatever it is: it holds the counter.
_FORGET: Final = """
DELETE FROM entries WHERE value IS NULL AND revision < (
    SELECT revision FROM entries WHERE value IS NULL
    ORDER BY revision DESC LIMIT 1 OFFSET ?
)
"""

T = TypeVar("T")

if TYPE_CHECKING:
    Row: TypeAlias = tuple[int, str, bytes | None]
    Result: TypeAlias = "list[int] | Conflict"


class SqliteStore(Store):
    """Keys in the file ``path``, which is made with its directories."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._thread = SerialThread("store")
        self._database: sqlite3.Connection | None = None
        self._opening = asyncio.Lock()
        self._writer = GroupWriter(
            str(self._path),
            count=lambda waiting: MAX_BATCH,
            commit=self._commit_group,
        )
        self._changed = asyncio.Event()
        self._closed = False

    async def load(self) -> list[Entry]:
        """Return all existing keys in the order of their revisions."""
        await self._open()
        return await self._thread.run(self._read_all)

    async def _write(self, changes: Sequence[Change]) -> list[int]:
        await self._open()
        return await self._writer.write(changes)

    async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
        """Yield every change with a revision above ``after``."""
        await self._open()
        while not self._closed:
            changed = self._changed
            entries = await self._thread.run(self._read_since, after)
            for entry in entries:
                after = entry.revision
                yield entry
            if entries:
                continue
            # Our own commits set the event; those of others are polled for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await changed.wait()

    async def aclose(self) -> None:
        """Commit what waits and close the file."""
        self._closed = True
        await self._writer.aclose()
        self._changed.set()
        await self._thread.run(self._disconnect)
        await self._thread.aclose()

    async def _open(self) -> None:
        if self._closed:
            raise StorageError(f"store {self._path} is closed")
        if self._database is None:
            async with self._opening:
                if self._database is None:
                    await self._thread.run(self._connect)

    async def _commit_group(self, group: Sequence[Write]) -> None:
        results: Sequence[list[int] | StorageError]
        try:
            results = await self._thread.run(
                self._commit, [write.changes for write in group]
            )
        except StorageError as error:
            results = [error] * len(group)
        for write, result in zip(group, results, strict=True):
            write.settle(result)
        self._changed.set()
        self._changed = asyncio.Event()

    # All that follows runs in the store's thread.

    def _connect(self) -> None:
        database = open_database(self._path)
        try:
            with storage_errors("open", self._path):
                database.executescript(_SCHEMA)
                database.execute(_FORGET, (MAX_DELETED,))
        except BaseException:
            database.close()
            raise
        self._database = database

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _commit(self, writes: Sequence[Sequence[Change]]) -> list[Result]:
        """Commit writes together; one with a conflict leaves nothing behind."""
        database = self._connection
        with storage_errors("write", self._path):
            database.execute("BEGIN IMMEDIATE")
            try:
                results, rows = self._decide(database, writes)
                for chunk in _chunks(rows, ROWS_PER_STATEMENT):
                    marks = ",".join(["(?,?,?)"] * len(chunk))
                    values = [value for row in chunk for value in row]
                    database.execute(f"REPLACE INTO entries VALUES {marks}", values)
                database.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors (disk full).
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        return results

    def _decide(
        self, database: sqlite3.Connection, writes: Sequence[Sequence[Change]]
    ) -> tuple[list[Result], list[Row]]:
        """Number the changes of all writes that have no conflict."""
        revision: int = database.execute(_LAST).fetchone()[0]
        current = self._current_revisions(database, writes)
        results: list[Result] = []
        rows: list[Row] = []
        for changes in writes:
            new: dict[str, int] = {}
            conflict: Conflict | None = None
            for number, change in enumerate(changes, revision + 1):
                found = new.get(change.key, current.get(change.key, 0))
                if change.expected not in (None, found):
                    conflict = Conflict(change.key)
                    break
                new[change.key] = 0 if change.value is None else number
            if conflict is not None:
                results.append(conflict)
                continue
            current |= new
            numbers = list(range(revision + 1, revision + len(changes) + 1))
            for number, change in zip(numbers, changes, strict=True):
                rows.append((number, change.key, change.value))
            results.append(numbers)
            revision += len(changes)
        return results, rows

    def _current_revisions(
        self, database: sqlite3.Connection, writes: Sequence[Sequence[Change]]
    ) -> dict[str, int]:
        keys = {c.key for changes in writes for c in changes if c.expected is not None}
        current: dict[str, int] = {}
        for chunk in _chunks(list(keys), ROWS_PER_STATEMENT):
            marks = ",".join("?" * len(chunk))
            current.update(
                database.execute(
                    "SELECT key, revision FROM entries"
                    f" WHERE value IS NOT NULL AND key IN ({marks})",
                    chunk,
                )
            )
        return current

    def _read_all(self) -> list[Entry]:
        with storage_errors("read", self._path):
            rows = self._connection.execute(
                "SELECT key, value, revision FROM entries"
                " WHERE value IS NOT NULL ORDER BY revision"
            )
            return [Entry(*row) for row in rows]

    def _read_since(self, after: int) -> list[Entry]:
        with storage_errors("read", self._path):
            rows = self._connection.execute(
                "SELECT key, value, revision FROM entries"
                " WHERE revision > ? ORDER BY revision LIMIT ?",
                (after, WATCH_CHUNK),
            )
            return [Entry(*row) for row in rows]

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise StorageError(f"store {self._path} is closed")
        return self._database


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
