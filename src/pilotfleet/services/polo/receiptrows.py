"""Receipts on disk: the statements on their table in the task store's file.

Each function is done by the store's thread inside a transaction, so that a receipt
is kept together with what it is for. A row is one side's: a host whose agents give
tasks to each other has two rows for each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.protocol.services.receipts import SignedReceipt
from pilotfleet.protocol.services.taskstate import Role

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from pilotfleet.services.tasks.record import TaskKey

__all__ = [
    "ABOVE_ALL",
    "MAX_KEPT",
    "RETENTION_S",
    "SCHEMA",
    "ReceiptRow",
    "State",
    "Sums",
    "find",
    "keep",
    "mark",
    "of_agent",
    "prune",
    "sums",
    "to_claim",
    "to_deliver",
]

# Of our choosing.
RETENTION_S: Final = 30 * 86_400.0
"""The registry takes none that are older."""
MAX_KEPT: Final = 500_000
"""Of all agents of a daemon, about 200 MB; the oldest go first."""

ABOVE_ALL: Final = 1 << 62
"""No row has a number as high."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS receipts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL, role TEXT NOT NULL, task_id TEXT NOT NULL,
    submitter INTEGER NOT NULL, worker INTEGER NOT NULL, digest TEXT NOT NULL,
    reward INTEGER NOT NULL,
    idle_ms INTEGER NOT NULL, staged_ms INTEGER NOT NULL, cpu_ms INTEGER NOT NULL,
    completed_at INTEGER NOT NULL,
    submitter_signature TEXT NOT NULL, worker_signature TEXT NOT NULL,
    stored REAL NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    UNIQUE (agent, role, task_id)
);
CREATE INDEX IF NOT EXISTS receipts_of_agent ON receipts (agent, number);
CREATE INDEX IF NOT EXISTS receipts_by_state
    ON receipts (agent, role, state, number, reward);
CREATE INDEX IF NOT EXISTS receipts_to_deliver ON receipts (number)
    WHERE role = 'submitted' AND state = 'pending';
"""

_FIELDS: Final = SignedReceipt.__struct_fields__
_COLUMNS: Final = f"number, role, stored, state, reason, {', '.join(_FIELDS)}"
_KEEP: Final = (
    f"INSERT INTO receipts (agent, role, stored, state, reason, {', '.join(_FIELDS)})"
    f" VALUES (?, ?, ?, 'pending', ''{', ?' * len(_FIELDS)}) ON CONFLICT DO NOTHING"
)


class State(StrEnum):
    """What the registry said of a receipt."""

    PENDING = "pending"
    """Nothing that this side knows of."""
    COUNTED = "counted"
    KNOWN = "known"
    """It had been counted before: an answer was lost, or the other side was faster."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt as one side keeps it."""

    number: int
    """Grows with every row of the daemon."""
    role: Role
    stored: float
    """Unix seconds."""
    state: State
    reason: str
    """Why it was refused."""
    receipt: SignedReceipt


@dataclass(frozen=True, slots=True)
class Sums:
    """What the kept receipts of an agent come to."""

    role: Role
    state: State
    count: int
    reward: int


def keep(
    database: sqlite3.Connection, key: TaskKey, receipt: SignedReceipt, wall: float
) -> None:
    """Keep a receipt; one that is there already stays as it is."""
    # Without enumerations, for which SQLite's module looks for adapters each time.
    values = msgspec.structs.astuple(receipt)
    database.execute(_KEEP, (key.agent, str(key.role), wall, *values))


def find(database: sqlite3.Connection, key: TaskKey) -> ReceiptRow | None:
    """Return the receipt of a task."""
    row = database.execute(
        f"SELECT {_COLUMNS} FROM receipts WHERE agent = ? AND role = ? AND task_id = ?",
        key,
    ).fetchone()
    return None if row is None else _row(row)


def of_agent(
    database: sqlite3.Connection, agent: str, before: int, limit: int
) -> list[ReceiptRow]:
    """Return an agent's receipts with numbers below ``before``, newest first."""
    return _select(
        database,
        "WHERE agent = ? AND number < ? ORDER BY number DESC LIMIT ?",
        (agent, before, limit),
    )


def sums(database: sqlite3.Connection, agent: str) -> list[Sums]:
    """Return what an agent's receipts come to, by role and state."""
    rows = database.execute(
        "SELECT role, state, count(*), sum(reward) FROM receipts"
        " WHERE agent = ? GROUP BY role, state",
        (agent,),
    )
    return [Sums(Role(role), State(state), *rest) for role, state, *rest in rows]


def to_deliver(database: sqlite3.Connection, limit: int) -> list[ReceiptRow]:
    """Return the oldest receipts that a submitter of this host owes the registry."""
    return _select(
        database,
        "WHERE role = 'submitted' AND state = 'pending' ORDER BY number LIMIT ?",
        (limit,),
    )


def to_claim(database: sqlite3.Connection, agent: str, limit: int) -> list[ReceiptRow]:
    """Return the oldest of a worker's receipts that the registry has not judged."""
    return _select(
        database,
        "WHERE agent = ? AND role = 'received' AND state = 'pending'"
        " ORDER BY number LIMIT ?",
        (agent, limit),
    )


def mark(database: sqlite3.Connection, marks: Iterable[tuple[int, State, str]]) -> None:
    """Note what the registry said: number, state and reason of each receipt."""
    database.executemany(
        "UPDATE receipts SET state = ?, reason = ? WHERE number = ?",
        [(str(state), reason, number) for number, state, reason in marks],
    )


def prune(database: sqlite3.Connection, wall: float) -> None:
    """Forget what is too old or too much."""
    # By number, in which their times grow as well: to look at the time of every row
    # would keep all tasks of the daemon waiting for a second.
    database.execute(
        "DELETE FROM receipts WHERE number <= (SELECT max(number) FROM receipts) - ?",
        (MAX_KEPT,),
    )
    database.execute(
        "DELETE FROM receipts WHERE number < coalesce((SELECT number FROM receipts"
        " WHERE stored >= ? ORDER BY number LIMIT 1), ?)",
        (wall - RETENTION_S, ABOVE_ALL),
    )


def _select(
    database: sqlite3.Connection, where: str, values: tuple[Any, ...]
) -> list[ReceiptRow]:
    query = f"SELECT {_COLUMNS} FROM receipts {where}"
    return [_row(row) for row in database.execute(query, values)]


def _row(row: tuple[Any, ...]) -> ReceiptRow:
    number, role, stored, state, reason, *fields = row
    receipt = SignedReceipt(*fields)
    return ReceiptRow(number, Role(role), stored, State(state), reason, receipt)
