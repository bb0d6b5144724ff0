"""The tasks and results of a fleet on disk: one SQLite file that survives a power cut.

A batch is a set of tasks with a name. A task stands in the journal with its text until
it has a result; then the text goes and the result stays, until its batch is forgotten.
Nothing of this is kept in memory.

One thread does all the work. It takes whatever has gathered while the last commit was
on its way into one transaction, so a thousand results at once cost one ``fsync``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias, TypeVar

import msgspec

from pilotfleet.errors import AlreadyExists, Busy, Closed, StorageError
from pilotfleet.fleet.actions import TaskResult
from pilotfleet.fleet.taskfile import MAX_PRIORITY, TaskLine
from pilotfleet.transport.database import open_database
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

__all__ = ["BatchInfo", "Journal"]

SCHEMA_VERSION: Final = 1
MAX_GROUP: Final = 2_000
"""Changes in one transaction; keeps the first of them from waiting for too many."""
PAGE: Final = 1_000
"""Tasks without a result that are read at a time."""
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Results read at a time; a single one may be longer."""
FORGET_STEP: Final = 20_000
"""Tasks forgotten in one transaction; others get their turn in between."""
FREED_PAGES: Final = 10_000
"""Pages given back to the file system in one go, for the same reason."""
LEAST_DEADLINE_S: Final = 0.001

# The id of a row is its age. AUTOINCREMENT: it is never used for another one, and who
# reads results by number misses none. The rank is the negated priority: a page of tasks
# begins where the last one ended only in an index that is ascending throughout.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS journal (run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    created REAL NOT NULL, tasks INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    retried INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL,
    task_id TEXT NOT NULL, digest BLOB NOT NULL, added REAL NOT NULL,
    rank INTEGER NOT NULL, line BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS tasks_by_name ON tasks (batch, task_id);
CREATE INDEX IF NOT EXISTS tasks_open ON tasks (rank, id)
    WHERE line IS NOT NULL;
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL, content BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS results_by_batch ON results (batch, id);
CREATE TABLE IF NOT EXISTS forgotten (batch INTEGER NOT NULL);
"""
_UNFINISHED: Final = """
SELECT tasks.rank AS rank, tasks.id AS id, tasks.added, batches.name, tasks.line
FROM tasks CROSS JOIN batches ON batches.id = tasks.batch
WHERE line IS NOT NULL AND tasks.id <= :last AND
"""
# In two parts, because each of them begins in the middle of the index.
_PENDING: Final = f"""
{_UNFINISHED} tasks.rank = :rank AND tasks.id > :after UNION ALL
{_UNFINISHED} tasks.rank > :rank ORDER BY rank, id LIMIT :limit
"""
_COUNT: Final = """
UPDATE batches SET succeeded = succeeded + ?, failed = failed + ?, retried = retried + ?
WHERE id = ?
"""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_Answer = TypeVar("_Answer")
_Work: TypeAlias = Callable[[sqlite3.Connection], Any]
_Answered: TypeAlias = tuple[asyncio.Future[Any], Any, Exception | None]


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What has become of a batch so far."""

    name: str
    tasks: int
    succeeded: int
    failed: int
    retried: int
    """Tasks that took more than one attempt."""
    created: float
    """Unix seconds."""


class _Job(NamedTuple):
    work: _Work
    future: asyncio.Future[Any]


class Journal:
    """Batches, their tasks and their results; an async context manager.

    Whatever a call has changed is on the disk when it returns. A call may be cancelled;
    its change may be made all the same. One program has the file at a time.
    """

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall = wall
        self._thread = SerialThread("journal")
        self._database: sqlite3.Connection | None = None
        self._jobs: list[_Job] = []
        self._writer: asyncio.Task[None] | None = None
        self.run_id = ""
        """Made with the file and kept in it: what an orchestrator goes on with."""

    async def __aenter__(self) -> Self:
        """Open or make the file.

        Raises:
            StorageError: It cannot be opened, is damaged, is in use, or a newer
                program wrote it.
        """
        try:
            self._database = await self._thread.run(_open, self._path)
            self.run_id = await self._do(_run_id)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what was asked for, then close the file."""
        database, self._database = self._database, None
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        if database is not None:
            await self._thread.run(database.close)
        await self._thread.aclose()

    async def add(
        self, batch: str, lines: Sequence[TaskLine], *, most: int = sys.maxsize
    ) -> int:
        """Add tasks to a batch, which is made if it is new; return how many were new.

        All or none of them. The same lines again change nothing, so a caller that lost
        the answer may repeat the call. Results wait for a long call: 10,000 lines take
        about 0.2 s.

        Args:
            batch: The batch.
            lines: The tasks.
            most: How many may be new; those that the batch has do not count.

        Raises:
            InvalidArgument: A line is not one that may be given.
            AlreadyExists: The id of a line stands for another task of the batch.
            Busy: Too many are new.
        """
        for line in lines:
            line.check()
        now = self._wall()
        return await self._do(
            lambda database: _add(database, batch, lines, now=now, most=most)
        )

    async def pending(self) -> list[tuple[str, TaskLine]]:
        """Return batch and line of all tasks without a result.

        Higher priorities come first, then older tasks. Deadlines are what is left.
        All of them are in memory then: :meth:`iter_pending` takes them by the page.
        """
        return [row async for row in self.iter_pending()]

    async def iter_pending(self) -> AsyncGenerator[tuple[str, TaskLine], None]:
        """Yield what :meth:`pending` returns; what is added meanwhile is left out."""
        last = await self._do(_last_task)
        place = (-MAX_PRIORITY - 1, 0)
        while True:
            page = await self._do(_page_of_pending(place, last, self._wall()))
            for _, batch, line in page:
                yield batch, line
            if len(page) < PAGE:
                return
            place = page[-1][0]

    async def finish(self, batch: str, result: TaskResult) -> bool:
        """Keep a result; False when the task has one, or was forgotten."""
        return (await self.finish_all([(batch, result)]))[0]

    async def finish_all(self, results: Sequence[tuple[str, TaskResult]]) -> list[bool]:
        """Do the same for results of any batches, all or none of them."""
        return await self._do(lambda database: _finish_all(database, results))

    async def results(
        self, batch: str, after: int = 0, limit: int = 1000
    ) -> list[tuple[int, TaskResult]]:
        """Return results in the order in which they came, each with its number.

        Args:
            batch: An unknown one has no results.
            after: The number of the last result that is known already.
            limit: The most to return; fewer, when they are long. None when there are
                no more at present.
        """
        return await self._do(lambda database: _results(database, batch, after, limit))

    async def batches(self) -> list[BatchInfo]:
        """Return all batches, the oldest first."""
        return await self._do(_batches)

    async def forget(self, batch: str) -> None:
        """Forget a batch with its tasks and results, and give the space back."""
        await self._do(lambda database: _forget(database, batch))
        while await self._do(_forget_some):
            continue
        while await self._thread.run(self._shrink):
            continue

    async def _do(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Have the thread do something, in a transaction with what else there is."""
        if self._database is None:
            raise Closed("the journal is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()
        self._jobs.append(_Job(work, future))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write(self._database), name="journal")
        return await future

    async def _write(self, database: sqlite3.Connection) -> None:
        while self._jobs:
            group, self._jobs = self._jobs[:MAX_GROUP], self._jobs[MAX_GROUP:]
            for future, answer, error in await self._thread.run(_run, database, group):
                if future.done():
                    continue
                if error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(_translated(error, self._path))

    def _shrink(self) -> bool:
        """Give some free pages back to the file system; False when there are none."""
        if self._database is None:
            return False
        try:
            # As a script: this takes all steps of the statement, and each step frees
            # one page.
            self._database.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES});")
            rest = self._database.execute("PRAGMA freelist_count").fetchone()[0]
            if not rest:
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error
        return bool(rest)


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = open_database(path)
    except StorageError as error:
        raise _translated(error, path) from error
    try:
        # Kept until the end: two fleets with one journal would do each task twice.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"journal {path} was written by a newer version",
                hint="run it with the version of pilotfleet that wrote it, or a later",
            )
        if version == 0:
            # Only an empty file takes this over, and only when it is written anew.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("VACUUM")
        database.execute("PRAGMA journal_size_limit = 4194304")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        while _forget_some(database):
            continue
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.Error):
            raise _translated(error, path) from error
        raise
    return database


def _translated(error: Exception, path: Path) -> Exception:
    """Return what a person can do something about."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    if not isinstance(cause, sqlite3.Error):
        return error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGED:
        return StorageError(
            f"journal {path} is damaged: {cause}",
            hint="put a copy of it back, or move it away together with its -wal file"
            " and submit its batches again",
        )
    if code == sqlite3.SQLITE_BUSY:
        return StorageError(
            f"journal {path} is used by another program",
            hint="a fleet runs with it already: stop that one, or use another --home",
        )
    return StorageError(
        f"journal {path}: {cause}",
        hint="check the free space and the permissions of its directory",
    )


def _run(database: sqlite3.Connection, group: list[_Job]) -> list[_Answered]:
    """Do all work of a group in one transaction."""
    try:
        database.execute("BEGIN IMMEDIATE")
        answers: list[_Answered] = [
            (job.future, job.work(database), None) for job in group
        ]
        database.execute("COMMIT")
    except Exception as error:
        # Whatever one piece of work raises, the others go on.
        if database.in_transaction:
            database.execute("ROLLBACK")
        if len(group) > 1:
            return [answer for job in group for answer in _run(database, [job])]
        return [(group[0].future, None, error)]
    return answers


def _run_id(database: sqlite3.Connection) -> str:
    row = database.execute("SELECT run_id FROM journal").fetchone()
    if row is not None:
        return str(row[0])
    run_id = os.urandom(16).hex()
    database.execute("INSERT INTO journal (run_id) VALUES (?)", (run_id,))
    return run_id


def _add(
    database: sqlite3.Connection,
    batch: str,
    lines: Sequence[TaskLine],
    *,
    now: float,
    most: int,
) -> int:
    database.execute(
        "INSERT INTO batches (name, created) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (batch, now),
    )
    number = _number(database, batch)
    # Looked up one by one: a lookup costs less than an insert that finds a conflict,
    # and that would use up a number.
    known = "SELECT digest FROM tasks WHERE batch = ? AND task_id = ?"
    insert = (
        "INSERT INTO tasks (batch, task_id, digest, added, rank, line)"
        " VALUES (?, ?, ?, ?, ?, ?)"
    )
    added = 0
    for line in lines:
        content = msgspec.json.encode(line)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        row = database.execute(known, (number, line.id)).fetchone()
        if row is None:
            values = (number, line.id, digest, now, -line.priority, content)
            database.execute(insert, values)
            added += 1
        elif row[0] != digest:
            raise AlreadyExists(
                f"batch {batch!r} has another task {line.id!r}",
                hint="use another id, or another batch",
            )
    if added > most:
        raise Busy(
            f"{added} tasks are more than the {most} that the fleet can take on now",
            hint="submit again when it has worked some off",
        )
    database.execute(
        "UPDATE batches SET tasks = tasks + ? WHERE id = ?", (added, number)
    )
    return added


def _number(database: sqlite3.Connection, batch: str) -> int | None:
    row = database.execute("SELECT id FROM batches WHERE name = ?", (batch,)).fetchone()
    return None if row is None else int(row[0])


def _last_task(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT ifnull(max(id), 0) FROM tasks").fetchone()[0])


def _page_of_pending(
    place: tuple[int, int], last: int, now: float
) -> Callable[[sqlite3.Connection], list[tuple[tuple[int, int], str, TaskLine]]]:
    """Return the work of reading what comes after a rank and a number."""
    values = {"rank": place[0], "after": place[1], "last": last, "limit": PAGE}
    decoder = msgspec.json.Decoder(TaskLine)

    def read(
        database: sqlite3.Connection,
    ) -> list[tuple[tuple[int, int], str, TaskLine]]:
        return [
            ((rank, number), batch, _left(decoder.decode(line), now - added))
            for rank, number, added, batch, line in database.execute(_PENDING, values)
        ]

    return read


def _left(line: TaskLine, age_s: float) -> TaskLine:
    """Return the line with what is left of its deadline."""
    deadline_s = line.deadline_s
    if deadline_s is None:
        return line
    left_s = max(min(deadline_s, deadline_s - age_s), LEAST_DEADLINE_S)
    return msgspec.structs.replace(line, deadline=f"{left_s:.3f}s")


def _finish_all(
    database: sqlite3.Connection, results: Sequence[tuple[str, TaskResult]]
) -> list[bool]:
    numbers: dict[str, int | None] = {}
    counts: defaultdict[int | None, list[int]] = defaultdict(lambda: [0, 0, 0])
    kept = []
    for batch, result in results:
        if batch not in numbers:
            numbers[batch] = _number(database, batch)
        number = numbers[batch]
        is_new = _keep_result(database, number, result)
        kept.append(is_new)
        if is_new:
            has_succeeded = result.status == "SUCCEEDED"
            count = counts[number]
            count[0] += has_succeeded
            count[1] += not has_succeeded
            count[2] += result.attempts > 1
    database.executemany(_COUNT, [(*count, number) for number, count in counts.items()])
    return kept


def _keep_result(
    database: sqlite3.Connection, number: int | None, result: TaskResult
) -> bool:
    # The text is not needed any more, and a batch may have a million of them.
    changed = database.execute(
        "UPDATE tasks SET line = NULL"
        " WHERE batch = ? AND task_id = ? AND line IS NOT NULL",
        (number, result.id),
    )
    if changed.rowcount == 0:
        return False
    database.execute(
        "INSERT INTO results (batch, content) VALUES (?, ?)",
        (number, msgspec.json.encode(result)),
    )
    return True


def _results(
    database: sqlite3.Connection, batch: str, after: int, limit: int
) -> list[tuple[int, TaskResult]]:
    decoder = msgspec.json.Decoder(TaskResult)
    rows = database.execute(
        "SELECT id, content FROM results WHERE batch = ? AND id > ?"
        " ORDER BY id LIMIT ?",
        (_number(database, batch), after, limit),
    )
    page: list[tuple[int, TaskResult]] = []
    size = 0
    for number, content in rows:
        size += len(content)
        if page and size > MAX_PAGE_BYTES:
            break
        page.append((number, decoder.decode(content)))
    return page


def _batches(database: sqlite3.Connection) -> list[BatchInfo]:
    rows = database.execute(
        "SELECT name, tasks, succeeded, failed, retried, created FROM batches"
        " ORDER BY id"
    )
    return [BatchInfo(*row) for row in rows]


def _forget(database: sqlite3.Connection, batch: str) -> None:
    """Take a batch's name away; what it had is nobody's from now on."""
    number = _number(database, batch)
    if number is not None:
        database.execute("DELETE FROM batches WHERE id = ?", (number,))
        database.execute("INSERT INTO forgotten (batch) VALUES (?)", (number,))


def _forget_some(database: sqlite3.Connection) -> bool:
    """Delete a part of what was forgotten; False when there is nothing left."""
    row = database.execute("SELECT batch FROM forgotten LIMIT 1").fetchone()
    if row is None:
        return False
    deleted = 0
    for table in ("tasks", "results"):
        deleted += database.execute(
            f"DELETE FROM {table} WHERE id IN"
            f" (SELECT id FROM {table} WHERE batch = ? LIMIT ?)",
            (row[0], FORGET_STEP),
        ).rowcount
    if not deleted:
        database.execute("DELETE FROM forgotten WHERE batch = ?", row)
    return True
