"""Tasks on disk: one SQLite database per daemon.

Everything that a peer or a user was told is on the disk first: each write returns a
future that is done after the commit. One thread writes. It takes whatever has
gathered while the last commit was on its way and puts it into one transaction, so a
thousand concurrent changes cost one ``fsync`` and a lone one waits for nobody. What
nobody was told and nobody waits for may be unhurried: it goes with the next one.

Writes take effect in the order of the calls. A failed transaction fails all writes
in it with StorageError, and none of them has happened.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from pilotfleet.errors import Closed, StorageError
from pilotfleet.protocol.services.taskstate import FINAL, Role, Status
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.tasks.record import Pending, TaskKey, TaskRecord
from pilotfleet.transport.database import open_database

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pilotfleet.services.tasks.files import TaskFiles

__all__ = ["Limits", "TaskStore", "Work"]

SCHEMA_VERSION: Final = 2
_MAX_BATCH: Final = 2_000
"""Changes in one transaction; keeps the first of them from waiting for too many."""
UNHURRIED_S: Final = 0.25
"""How long a change that nobody waits for may wait for others to be written with."""

# Not IN: for three values SQLite makes a table, and so for every row that is written.
_OPEN: Final = (
    "(pending != 0 OR status = 'NEW' OR status = 'ACCEPTED' OR status = 'EXECUTING')"
)
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS tasks (
    agent TEXT NOT NULL, role TEXT NOT NULL, task_id TEXT NOT NULL,
    peer INTEGER NOT NULL, from_addr TEXT NOT NULL, to_addr TEXT NOT NULL,
    description TEXT NOT NULL, created REAL NOT NULL,
    priority INTEGER NOT NULL, deadline REAL NOT NULL,
    status TEXT NOT NULL, justification TEXT NOT NULL,
    accepted REAL NOT NULL, staged REAL NOT NULL, executing REAL NOT NULL,
    completed REAL NOT NULL, delivered REAL NOT NULL, deliver_by REAL NOT NULL,
    idle_ms INTEGER NOT NULL, staged_ms INTEGER NOT NULL, cpu_ms INTEGER NOT NULL,
    result_type TEXT NOT NULL, result_name TEXT NOT NULL, result_size INTEGER NOT NULL,
    error TEXT NOT NULL, retryable INTEGER NOT NULL,
    pending INTEGER NOT NULL, collected INTEGER NOT NULL,
    PRIMARY KEY (agent, role, task_id)
);
CREATE TABLE IF NOT EXISTS results (
    agent TEXT NOT NULL, role TEXT NOT NULL, task_id TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (agent, role, task_id)
);
DROP INDEX IF EXISTS open_tasks;
CREATE INDEX IF NOT EXISTS open_by_age ON tasks (created) WHERE {_OPEN};
{receiptrows.SCHEMA}
"""
_ADDED_COLUMNS: Final = {
    "priority": "INTEGER NOT NULL DEFAULT 0",
    "deadline": "REAL NOT NULL DEFAULT 0",
}
"""What a file of version 1 lacks, beside whole tables."""

_COLUMNS: Final = TaskRecord.__struct_fields__
_KEY_SIZE: Final = len(TaskKey._fields)
_KEY: Final = "agent = ? AND role = ? AND task_id = ?"
_INSERT: Final = (
    f"INSERT INTO tasks ({', '.join(_COLUMNS)})"
    f" VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
)
# Whether it was collected is written by collect() alone: a record in memory may still
# be open then, and its later updates must not undo it.
_MUTABLE: Final = slice(_COLUMNS.index("status"), _COLUMNS.index("collected"))
_UPDATE: Final = (
    f"UPDATE tasks SET {', '.join(f'{c} = ?' for c in _COLUMNS[_MUTABLE])} WHERE {_KEY}"
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM tasks"
_KEEP_RESULT: Final = (
    "INSERT INTO results (agent, role, task_id, content) VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET content = excluded.content"
)
_PRUNE: Final = f"""
DELETE FROM tasks WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, created, collected OR role = 'received' AS done,
            row_number() OVER (PARTITION BY agent, role ORDER BY created DESC) AS age,
            row_number() OVER (ORDER BY created DESC) AS host_age
        FROM tasks WHERE NOT {_OPEN}
    )
    WHERE created < :oldest OR done AND (age > :per_agent OR host_age > :total)
)
RETURNING agent, role, task_id, result_type, result_name
"""
_PRUNE_RESULTS: Final = """
DELETE FROM results WHERE NOT EXISTS (
    SELECT 1 FROM tasks WHERE tasks.agent = results.agent
        AND tasks.role = results.role AND tasks.task_id = results.task_id)
"""

_Answer = TypeVar("_Answer")
Work: TypeAlias = Callable[[sqlite3.Connection], _Answer]
"""What the thread does inside a transaction."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many finished tasks are kept."""

    finished_per_agent: int = 1_000
    """Per agent and role; older ones go first."""
    finished_total: int = 100_000
    """On the whole host."""
    retention_s: float = 7 * 86_400.0
    """A finished task older than this goes, even if nobody collected its result."""


class _Job(NamedTuple):
    work: Work[Any]
    future: asyncio.Future[Any]


class TaskStore:
    """The tasks of all agents of one daemon; an async context manager."""

    def __init__(
        self,
        path: Path,
        *,
        limits: Limits | None = None,
        files: TaskFiles | None = None,
    ) -> None:
        self._path = path
        self._limits = limits or Limits()
        self._files = files
        self._jobs: SimpleQueue[list[_Job] | None] = SimpleQueue()
        """Work for the thread; None is the last of it."""
        self._gathered: list[_Job] = []
        """Work of this turn of the loop: to wake the thread costs more than a write,
        and for each piece of work on its own it would be woken, and commit."""
        self._waking: asyncio.Handle | None = None
        """Wakes the thread; a timer while all that was gathered is unhurried."""
        self._is_hurried = False
        self._closing = False
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> TaskStore:
        """Open or create the database.

        Raises:
            StorageError: It cannot be opened, or a newer program wrote it.
        """
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._write_forever, args=(opened,), name="task store", daemon=True
        )
        self._thread.start()
        await opened
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish the writes that were asked for, then close the database."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._jobs.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def insert(self, record: TaskRecord) -> asyncio.Future[bool]:
        """Keep a new task; the answer is False when its key is taken."""
        values = _values(record)
        snapshot = self._files and self._files.snapshot(record)

        def write(database: sqlite3.Connection) -> bool:
            is_new = database.execute(_INSERT, values).rowcount == 1
            if is_new and self._files and snapshot:
                self._files.changed(snapshot, has_new_result=False)
            return is_new

        return self.run(write)

    def insert_all(self, records: Sequence[TaskRecord]) -> asyncio.Future[list[bool]]:
        """Keep new tasks, all or none; False stands for a key that is taken."""
        rows = [_values(record) for record in records]
        files = self._files
        snapshots = [files.snapshot(record) if files else None for record in records]

        def write(database: sqlite3.Connection) -> list[bool]:
            execute = database.execute
            are_new = [execute(_INSERT, row).rowcount == 1 for row in rows]
            for snapshot, is_new in zip(snapshots, are_new, strict=True):
                if files and snapshot and is_new:
                    files.changed(snapshot, has_new_result=False)
            return are_new

        return self.run(write)

    def update(
        self,
        record: TaskRecord,
        content: bytes | None = None,
        also: Work[None] | None = None,
        *,
        unhurried: bool = False,
    ) -> asyncio.Future[None]:
        """Keep the present state of a task, with its result if there is one now.

        ``also`` is done in the same transaction.
        """
        row = _values(record)
        key = row[:_KEY_SIZE]
        values = (*row[_MUTABLE], *key)
        snapshot = self._files and self._files.snapshot(record)

        def write(database: sqlite3.Connection) -> None:
            database.execute(_UPDATE, values)
            if content is not None:
                database.execute(_KEEP_RESULT, (*key, content))
            if also is not None:
                also(database)
            if self._files and snapshot:
                self._files.changed(snapshot, has_new_result=content is not None)

        return self.run(write, unhurried=unhurried)

    def delete(self, key: TaskKey) -> asyncio.Future[None]:
        """Forget a task and its result."""

        def write(database: sqlite3.Connection) -> None:
            database.execute(f"DELETE FROM tasks WHERE {_KEY}", key)
            database.execute(f"DELETE FROM results WHERE {_KEY}", key)
            if self._files:
                self._files.forgotten(key, "", "")

        return self.run(write)

    def collect(self, agent: str, task_ids: list[str]) -> asyncio.Future[None]:
        """Mark the results of submitted tasks as taken."""
        rows = [(agent, str(Role.SUBMITTED), task_id) for task_id in task_ids]

        def write(database: sqlite3.Connection) -> None:
            statement = f"UPDATE tasks SET collected = 1 WHERE {_KEY}"
            database.executemany(statement, rows)

        return self.run(write)

    def get(self, key: TaskKey) -> asyncio.Future[TaskRecord | None]:
        """Find a task."""

        def read(database: sqlite3.Connection) -> TaskRecord | None:
            row = database.execute(f"{_SELECT} WHERE {_KEY}", key).fetchone()
            return None if row is None else _record(row)

        return self.run(read)

    def result(self, key: TaskKey) -> asyncio.Future[bytes | None]:
        """Find the result of a task."""

        return self.run(lambda database: _result(database, key))

    def open_tasks(self) -> asyncio.Future[list[TaskRecord]]:
        """Return what a restarted daemon has to go on with, oldest first."""
        return self._select(f"{_SELECT} WHERE {_OPEN} ORDER BY created, rowid")

    def tasks_of(
        self, agent: str, role: Role, limit: int
    ) -> asyncio.Future[list[TaskRecord]]:
        """Return the newest tasks of an agent, newest first."""
        return self._select(
            f"{_SELECT} WHERE agent = ? AND role = ?"
            " ORDER BY created DESC, rowid DESC LIMIT ?",
            (agent, role, limit),
        )

    def uncollected(self, agent: str, limit: int) -> asyncio.Future[list[TaskRecord]]:
        """Return finished submitted tasks that nobody has collected, oldest first."""
        return self._select(
            f"{_SELECT} WHERE agent = ? AND role = 'submitted' AND NOT collected"
            " AND status NOT IN ('NEW', 'ACCEPTED', 'EXECUTING')"
            " ORDER BY created, rowid LIMIT ?",
            (agent, limit),
        )

    def unsettled(
        self, agent: str, prefix: str, after: str, limit: int
    ) -> asyncio.Future[list[TaskRecord]]:
        """Return submitted tasks that have not ended, or ended and not collected.

        Those whose id has the prefix and comes after ``after``, in order of the ids.
        """
        # All characters of an id come before the tilde.
        return self._select(
            f"{_SELECT} WHERE agent = ? AND role = 'submitted'"
            " AND task_id > ? AND task_id >= ? AND task_id < ?"
            " AND (NOT collected OR status IN ('NEW', 'ACCEPTED', 'EXECUTING'))"
            " ORDER BY task_id LIMIT ?",
            (agent, after, prefix, f"{prefix}~", limit),
        )

    def prune(self, wall: float) -> asyncio.Future[int]:
        """Forget finished tasks over the limits; the answer is how many."""
        bounds = {
            "oldest": wall - self._limits.retention_s,
            "per_agent": self._limits.finished_per_agent,
            "total": self._limits.finished_total,
        }

        def write(database: sqlite3.Connection) -> int:
            gone = database.execute(_PRUNE, bounds).fetchall()
            if gone:
                database.execute(_PRUNE_RESULTS)
            if self._files:
                for agent, role, task_id, kind, name in gone:
                    self._files.forgotten(
                        TaskKey(agent, Role(role), task_id), kind, name
                    )
            return len(gone)

        return self.run(write)

    def run(
        self, work: Work[_Answer], *, unhurried: bool = False
    ) -> asyncio.Future[_Answer]:
        """Hand work to the thread. Its bound is the callers': each awaits its own.

        ``unhurried``: nobody does, so it need not wake the thread. It goes with the
        next work, in the order of the calls, or soon.
        """
        future: asyncio.Future[_Answer] = self._loop.create_future()
        if self._closing:
            future.set_exception(Closed("the task store is closed"))
        else:
            self._gathered.append(_Job(work, future))
            is_hurried = not unhurried or len(self._gathered) >= _MAX_BATCH
            if self._waking is None or (is_hurried and not self._is_hurried):
                self._wake(is_hurried=is_hurried)
        return future

    def _wake(self, *, is_hurried: bool) -> None:
        if self._waking is not None:
            self._waking.cancel()
        self._is_hurried = is_hurried
        if is_hurried:
            self._waking = self._loop.call_soon(self._hand_over)
        else:
            self._waking = self._loop.call_later(UNHURRIED_S, self._hand_over)

    def _hand_over(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._jobs.put(gathered)

    def _select(
        self, query: str, values: tuple[object, ...] = ()
    ) -> asyncio.Future[list[TaskRecord]]:
        return self.run(
            lambda database: [_record(row) for row in database.execute(query, values)]
        )

    def _write_forever(self, opened: asyncio.Future[None]) -> None:
        try:
            database = _open(self._path)
        except (sqlite3.Error, StorageError) as error:
            self._tell([(opened, None, _translated(error))])
            return
        if self._files:
            _restore(database, self._files)
        self._tell([(opened, None, None)])
        try:
            is_open = True
            while is_open:
                batch, is_open = self._next_batch()
                answers = _run(database, batch, self._files) if batch else []
                if self._files:
                    self._files.catch_up(
                        lambda key: _result(database, key), wait=is_open
                    )
                self._tell(answers)
        finally:
            database.close()

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Wait for work, or until files are due; False when there will be no more."""
        batch: list[_Job] = []
        try:
            jobs = self._jobs.get(timeout=self._files.pause if self._files else None)
        except Empty:
            return batch, True
        while jobs is not None:
            batch += jobs
            if len(batch) >= _MAX_BATCH or self._jobs.empty():
                return batch, True
            jobs = self._jobs.get()
        return batch, False

    def _tell(self, answers: list[_Answered]) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, answers)
        except RuntimeError:
            # The loop is closed: nobody is left who waits for these answers.
            return


_Answered: TypeAlias = tuple[asyncio.Future[Any], Any, Exception | None]


def _open(path: Path) -> sqlite3.Connection:
    database = open_database(path)
    database.execute("PRAGMA cache_size = -8192")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        database.close()
        raise StorageError(
            f"{path} was written by a newer version ({version} > {SCHEMA_VERSION})"
        )
    known = {row[1] for row in database.execute("PRAGMA table_info(tasks)")}
    missing = [
        f"{name} {kind}"
        for name, kind in _ADDED_COLUMNS.items()
        if known and name not in known
    ]
    upgrade = "".join(f"ALTER TABLE tasks ADD COLUMN {column};" for column in missing)
    # In one piece, should we be killed here.
    database.executescript(
        f"BEGIN IMMEDIATE; {upgrade} {_SCHEMA}"
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
    return database


def _restore(database: sqlite3.Connection, files: TaskFiles) -> None:
    for agent in files.agents:
        rows = database.execute(f"{_SELECT} WHERE agent = ?", (agent,))
        files.restore(map(_record, rows), lambda key: _result(database, key))


def _result(database: sqlite3.Connection, key: TaskKey) -> bytes | None:
    query = f"SELECT content FROM results WHERE {_KEY}"
    row = database.execute(query, key).fetchone()
    return None if row is None else bytes(row[0])


def _run(
    database: sqlite3.Connection, batch: list[_Job], files: TaskFiles | None
) -> list[_Answered]:
    """Do all work of a batch in one transaction."""
    try:
        database.execute("BEGIN IMMEDIATE")
        answers: list[_Answered] = [
            (job.future, job.work(database), None) for job in batch
        ]
        database.execute("COMMIT")
    except Exception as error:
        # Whatever one piece of work raises, the thread and the others go on.
        if database.in_transaction:
            database.execute("ROLLBACK")
        if files:
            files.discard()
        if len(batch) > 1:
            return [answer for job in batch for answer in _run(database, [job], files)]
        return [(batch[0].future, None, _translated(error))]
    if files:
        files.commit()
    return answers


def _translated(error: Exception) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageError(f"task store: {error}")


def _settle(answers: list[_Answered]) -> None:
    for future, answer, error in answers:
        if future.done():
            continue
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)


def _values(record: TaskRecord) -> tuple[Any, ...]:
    # Without enumerations, for which SQLite's module looks for adapters each time.
    return tuple(msgspec.to_builtins(record).values())


def _record(row: tuple[Any, ...]) -> TaskRecord:
    record = TaskRecord(*row)
    record.role = Role(record.role)
    record.status = Status(record.status)
    record.pending = Pending(record.pending)
    record.retryable = bool(record.retryable)
    record.collected = bool(record.collected)
    return record


assert {"NEW", "ACCEPTED", "EXECUTING"} == set(Status) - FINAL, "see _OPEN"
