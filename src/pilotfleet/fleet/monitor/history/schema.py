"""The file of the history: its tables, and how it is opened.

Three tables of one form hold seconds, minutes and hours. A row is what is known of a
subject (a fleet, or its agents that have a tag) in such a time: sums, the last value
of each level, the sums of rates with their number, and the task times as a histogram.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import StorageError
from pilotfleet.transport.database import open_database, storage_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "COUNTS",
    "HOURS",
    "LEVELS",
    "MINUTES",
    "RATES",
    "RESOLUTIONS",
    "SECONDS",
    "SUBJECT",
    "Resolution",
    "open_history",
    "transaction",
    "translated",
]

APPLICATION_ID: Final = 0x50664D31
"""Marks the file as ours, so that no other program's is taken for a history."""
SCHEMA_VERSION: Final = 1
CHECK_TIMEOUT_S: Final = 2.0
"""How long the first look at the file waits for another program that has it."""

COUNTS: Final = ("completed", "failed", "trust_linked", "trust_revoked")
"""What adds up over time."""
LEVELS: Final = (
    "agents_alive",
    "agents_late",
    "agents_lost",
    "trust_links",
    "polo_p50",
    "polo_p90",
    "tunnels",
)
"""What is at a moment; of a longer time the last value counts."""
RATES: Final = ("sent_per_s", "received_per_s")
"""Of a longer time the average counts."""


SUBJECT: Final = 1 << 33
"""The number of a row is that of its subject, times this, and when it begins. So the
rows of a subject lie together, and without an index of their own."""


class Resolution(NamedTuple):
    """One of the three tables."""

    table: str
    unit_s: int


SECONDS: Final = Resolution("seconds", 1)
MINUTES: Final = Resolution("minutes", 60)
HOURS: Final = Resolution("hours", 3600)
RESOLUTIONS: Final = (SECONDS, MINUTES, HOURS)

_NUMBERS: Final = ", ".join(f"{name} INTEGER NOT NULL" for name in COUNTS)
_VALUES: Final = ", ".join(f"{name} REAL" for name in LEVELS)
_TOTALS: Final = ", ".join(f"{name} REAL NOT NULL" for name in RATES)


def _table(name: str) -> str:
    return f"""
CREATE TABLE IF NOT EXISTS {name} (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, samples INTEGER NOT NULL,
    newest INTEGER NOT NULL, {_NUMBERS}, {_VALUES}, rated INTEGER NOT NULL, {_TOTALS},
    times BLOB
);
CREATE INDEX IF NOT EXISTS {name}_by_time ON {name} (at);
"""


_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS fleets (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    state BLOB NOT NULL, positions BLOB NOT NULL, saved_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS subjects (
    id INTEGER PRIMARY KEY AUTOINCREMENT, fleet TEXT NOT NULL, tag TEXT NOT NULL,
    UNIQUE (fleet, tag)
);
{"".join(_table(resolution.table) for resolution in RESOLUTIONS)}
CREATE TABLE IF NOT EXISTS recent_tasks (
    id INTEGER PRIMARY KEY, fleet TEXT NOT NULL, agent TEXT NOT NULL, at REAL NOT NULL,
    task_id TEXT NOT NULL, status TEXT NOT NULL, ms REAL NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS recent_tasks_by_agent ON recent_tasks (fleet, agent, id);
CREATE TABLE IF NOT EXISTS recent_events (
    id INTEGER PRIMARY KEY, fleet TEXT NOT NULL, agent TEXT NOT NULL, at REAL NOT NULL,
    topic TEXT NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS recent_events_by_agent ON recent_events (fleet, agent, id);
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL
);
"""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def open_history(path: Path) -> sqlite3.Connection:
    """Open or make the file, for this program alone. Blocks.

    Raises:
        StorageError: It cannot be opened, is damaged, is in use, belongs to another
            program, or a newer version wrote it. The file is as it was.
    """
    try:
        is_new = _is_new(path)
        # What a power cut takes, the broker's log gives back: the position in it is
        # written together with everything else.
        database = open_database(path, synchronous="NORMAL")
    except (sqlite3.Error, StorageError) as error:
        raise translated(error, path) from error
    try:
        # Kept until the end: two monitors with one history would count all twice.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        if is_new:
            # Only an empty file takes this over, and only when it is written anew.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("VACUUM")
        database.execute("PRAGMA journal_size_limit = 8388608")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.Error):
            raise translated(error, path) from error
        raise
    return database


def translated(error: Exception, path: Path) -> StorageError:
    """Return what a person can do something about."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGED:
        return StorageError(
            f"history {path} is damaged: {cause}",
            hint="put a copy of it back, or move it away together with its -wal file:"
            " the monitor then begins a new one",
        )
    if code == sqlite3.SQLITE_BUSY:
        return StorageError(
            f"history {path} is used by another program",
            hint="a monitor runs with it already: stop that one, or use another --home",
        )
    if isinstance(error, StorageError):
        return error
    return StorageError(
        f"history {path}: {cause}",
        hint="check the free space and the permissions of its directory",
    )


class transaction:
    """All or nothing; ``with database`` alone begins too late, and may deadlock."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            # A full disk ends some transactions, and leaves others open.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")


def _is_new(path: Path) -> bool:
    """Tell whether the file has no tables yet, before anything in it is changed."""
    if not path.exists() or not path.stat().st_size:
        return True
    database = sqlite3.connect(path, timeout=CHECK_TIMEOUT_S, isolation_level=None)
    try:
        with storage_errors("open", path):
            application = _pragma(database, "application_id")
            version = _pragma(database, "user_version")
            query = "SELECT count(*) FROM sqlite_master"
            tables = int(database.execute(query).fetchone()[0])
    finally:
        database.close()
    # A monitor that was killed early left a file without anything.
    if tables and application != APPLICATION_ID:
        raise StorageError(
            f"{path} is the database of another program, not a monitor's history",
            hint="name another folder with --home, or move the file away",
        )
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"history {path} was written by a newer version",
            hint="run it with the version of pilotfleet that wrote it, or a later",
        )
    return not tables


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
