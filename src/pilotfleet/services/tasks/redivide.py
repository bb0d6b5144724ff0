"""Divide the task databases of a daemon anew, when it gets more processes or fewer.

Every row belongs to an agent, and goes where that is hosted. The new files are made
from the old ones, which stay as they are: a run that is broken off is begun again.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.transport.database import open_database, storage_errors

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["redivide", "remove"]

_SIDE_FILES: Final = ("", "-wal", "-shm")
_OWNER: Final = "agent"


def redivide(
    sources: Iterable[Path], targets: Mapping[int, Path], place_of: Callable[[str], int]
) -> None:
    """Make new databases. Blocks.

    Args:
        sources: The databases there are; missing ones are left out.
        targets: The databases to make, by place; what is there is replaced.
        place_of: The place of an agent.

    Raises:
        StorageError: A file cannot be read or written, or holds what is no agent's.
    """
    existing = [path for path in sources if path.exists()]
    assert not set(existing) & set(targets.values())
    remove(targets.values())
    if not existing:
        return
    # Opened once, so that the attached ones need no write of their own.
    newest = max(existing, key=_version)
    for place, path in targets.items():
        with storage_errors("divide", path), closing(open_database(path)) as target:
            target.create_function("place_of", 1, place_of, deterministic=True)
            _copy_schema(target, newest)
            for source in existing:
                _copy_rows(target, source, place)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def remove(paths: Iterable[Path]) -> None:
    """Remove databases that do not count any more.

    Raises:
        StorageError: One stays.
    """
    for path in paths:
        for suffix in _SIDE_FILES:
            with storage_errors("remove", path), suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
        # Its folder may hold what we do not know, or be the daemon's own.
        with suppress(OSError):
            path.parent.rmdir()


def _version(path: Path) -> int:
    with storage_errors("read", path), closing(open_database(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _copy_schema(target: sqlite3.Connection, source: Path) -> None:
    target.execute("ATTACH ? AS old", (str(source),))
    (version,) = target.execute("PRAGMA old.user_version").fetchone()
    statements = target.execute(
        "SELECT sql FROM old.sqlite_schema WHERE sql IS NOT NULL"
        " AND name NOT LIKE 'sqlite#_%' ESCAPE '#' ORDER BY type = 'index'"
    ).fetchall()
    target.execute("DETACH old")
    target.execute("BEGIN IMMEDIATE")
    for (statement,) in statements:
        target.execute(statement)
    target.execute(f"PRAGMA user_version = {int(version)}")
    target.execute("COMMIT")


def _copy_rows(target: sqlite3.Connection, source: Path, place: int) -> None:
    target.execute("ATTACH ? AS old", (str(source),))
    target.execute("BEGIN IMMEDIATE")
    for (table,) in target.execute(
        "SELECT name FROM old.sqlite_schema WHERE type = 'table'"
        " AND name NOT LIKE 'sqlite#_%' ESCAPE '#'"
    ).fetchall():
        columns = _columns(target, table)
        if _OWNER not in columns:
            raise StorageError(f"cannot divide {source}: whose is what {table} holds?")
        names = ", ".join(columns)
        target.execute(
            f"INSERT INTO main.{table} ({names}) SELECT {names} FROM old.{table}"
            f" WHERE place_of({_OWNER}) = ? ORDER BY rowid",
            (place,),
        )
    target.execute("COMMIT")
    target.execute("DETACH old")


def _columns(target: sqlite3.Connection, table: str) -> list[str]:
    """Return the columns of an old table but its row number, which is given anew."""
    rows = target.execute(
        "SELECT name, type = 'INTEGER' AND pk = 1 FROM pragma_table_info(?, 'old')",
        (table,),
    ).fetchall()
    return [name for name, is_row_number in rows if not is_row_number]
