"""The last tasks and events of agents in the history's file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.fleet.monitor.samples import EventRecord, Recent, TaskRecord

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_RECORDS", "merge_recent", "read_recent", "write_recent"]

MAX_RECORDS: Final = 20_000
"""Tasks, and events, of all agents of a fleet."""
PRUNE_STEP: Final = 2_000
"""Of the oldest beyond that one transaction removes so many, and as many as it adds."""
_TASKS: Final = ("recent_tasks", "at, task_id, status, ms, text")
_EVENTS: Final = ("recent_events", "at, topic, data")


def merge_recent(one: Recent, other: Recent) -> Recent:
    """Return both, without the oldest if they are too many."""
    tasks, events = [*one.tasks, *other.tasks], [*one.events, *other.events]
    return Recent(tasks[-MAX_RECORDS:], events[-MAX_RECORDS:], other.keep)


def write_recent(database: sqlite3.Connection, fleet: str, recent: Recent) -> None:
    """Add what came, and remove what is too much; in the caller's transaction."""
    _write(database, _TASKS, fleet, recent.tasks, recent.keep)
    _write(database, _EVENTS, fleet, recent.events, recent.keep)


def read_recent(database: sqlite3.Connection, fleet: str) -> Recent:
    """Return what is there, oldest first. A damaged row is left out."""
    return Recent(
        _sound(_rows(database, _TASKS, fleet), TaskRecord),
        _sound(_rows(database, _EVENTS, fleet), EventRecord),
        keep=0,
    )


def _write(
    database: sqlite3.Connection,
    place: tuple[str, str],
    fleet: str,
    records: Sequence[tuple[str, tuple[Any, ...]]],
    keep: int,
) -> None:
    if not records:
        return
    table, columns = place
    marks = ", ".join("?" * (2 + len(records[0][1])))
    database.executemany(
        f"INSERT INTO {table} (fleet, agent, {columns}) VALUES ({marks})",
        ((fleet, agent, *record) for agent, record in records),
    )
    # Of who has something new; the others have no more than before.
    database.executemany(
        f"DELETE FROM {table} WHERE fleet = :fleet AND agent = :agent AND id <="
        f" (SELECT id FROM {table} WHERE fleet = :fleet AND agent = :agent"
        " ORDER BY id DESC LIMIT 1 OFFSET :keep)",
        [
            {"fleet": fleet, "agent": agent, "keep": keep}
            for agent in dict.fromkeys(agent for agent, _ in records)
        ],
    )
    query = f"SELECT count(*) FROM {table} WHERE fleet = ?"
    excess = int(database.execute(query, (fleet,)).fetchone()[0]) - MAX_RECORDS
    if excess > 0:
        database.execute(
            f"DELETE FROM {table} WHERE id IN"
            f" (SELECT id FROM {table} WHERE fleet = ? ORDER BY id LIMIT ?)",
            (fleet, min(excess, len(records) + PRUNE_STEP)),
        )


def _rows(
    database: sqlite3.Connection, place: tuple[str, str], fleet: str
) -> Iterable[tuple[Any, ...]]:
    table, columns = place
    query = f"SELECT agent, {columns} FROM {table} WHERE fleet = ?"
    return database.execute(f"{query} ORDER BY id DESC LIMIT ?", (fleet, MAX_RECORDS))


def _sound(rows: Iterable[tuple[Any, ...]], kind: Any) -> list[tuple[str, Any]]:
    records: list[tuple[str, Any]] = []
    for agent, *row in rows:
        try:
            # SQLite keeps any type in any column.
            records.append((msgspec.convert(agent, str), msgspec.convert(row, kind)))
        except msgspec.ValidationError:
            continue
    records.reverse()
    return records
