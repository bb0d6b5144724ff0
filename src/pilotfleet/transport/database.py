"""Open a SQLite file the way all of our stores need it."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["open_database", "storage_errors"]

BUSY_TIMEOUT_S: Final = 5.0
"""How long a commit waits for another process's commit."""
BUSY_PAUSE_S: Final = 0.02


def open_database(
    path: Path, *, synchronous: Literal["FULL", "NORMAL"] = "FULL"
) -> sqlite3.Connection:
    """Open or make a file in WAL mode that nobody else may read. Blocks.

    The connection is in autocommit mode and may move between threads.

    Args:
        path: The file; missing folders are made.
        synchronous: ``FULL`` survives a power cut, ``NORMAL`` a killed process.

    Raises:
        StorageError: It cannot be opened, or is no database; names the file.
    """
    with storage_errors("open", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here, because SQLite would make it readable for everybody.
        # Its side files take over the mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _switch_to_wal(database)
            database.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            database.close()
            raise
        return database


@contextmanager
def storage_errors(verb: str, path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into an error that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(
            f"cannot {verb} {path}: {reason}",
            hint="check the free space and the permissions of its directory",
        ) from error


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """Switch, however many processes open the new file at this moment.

    SQLite does not wait for its busy timeout here, but fails at once.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_S)
        else:
            return
