"""One node's record of one task, as it is kept and shown."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec

from pilotfleet.protocol.services.taskstate import (
    FINAL,
    Input,
    Role,
    Status,
    next_status,
)

__all__ = [
    "ACCEPT_LIMIT_S",
    "LONGEST_S",
    "MAX_MS",
    "NO_RESPONSE",
    "OVERDUE",
    "Pending",
    "TaskKey",
    "TaskRecord",
    "rfc3339",
    "task_row",
]

# From the specification (section 3.1); both sides look at it.
ACCEPT_LIMIT_S: Final = 60.0
NEW_JUSTIFICATION: Final = "A new task was created"
NO_RESPONSE: Final = "Task cancelled: no response within 1 minute"

# Of our choosing.
OVERDUE: Final = "Task expired: its deadline has passed"
MAX_MS: Final = 10**12
"""What others claim of times is cut to 30 years."""
LONGEST_S: Final = 7 * 86_400.0
"""A task that is older is given up on this side, so that none stays open for ever."""


class TaskKey(NamedTuple):
    """What a record is found by. A node may be both sides of one task id."""

    agent: str
    """Name of the hosted agent."""
    role: Role
    task_id: str


class Pending(IntEnum):
    """What the other side still has to be told."""

    NOTHING = 0
    SUBMIT = 1
    STATUS = 2
    RESULTS = 3
    CANCEL = 4


class TaskRecord(msgspec.Struct):
    """A task as one of its two sides sees it. Times are unix seconds, 0 = not yet."""

    agent: str
    role: Role
    task_id: str
    peer: int
    """Node id of the other side."""
    from_addr: str
    to_addr: str
    description: str
    created: float
    priority: int = 0
    """Of accepted tasks, the one with the highest is done first."""
    deadline: float = 0.0
    """When it is too late for the result, by this side's clock; 0 = never."""
    status: Status = Status.NEW
    justification: str = NEW_JUSTIFICATION
    accepted: float = 0.0
    staged: float = 0.0
    executing: float = 0.0
    completed: float = 0.0
    delivered: float = 0.0
    """When the worker's node said that it keeps the task (submitter's record)."""
    deliver_by: float = 0.0
    """When the submitter gives up on delivering it."""
    idle_ms: int = 0
    staged_ms: int = 0
    cpu_ms: int = 0
    result_type: str = ""
    result_name: str = ""
    result_size: int = 0
    error: str = ""
    retryable: bool = False
    pending: Pending = Pending.NOTHING
    collected: bool = False

    @property
    def key(self) -> TaskKey:
        """The record's key in the store."""
        return TaskKey(self.agent, self.role, self.task_id)

    @property
    def is_open(self) -> bool:
        """True while something may still happen to it, or must still be told."""
        return self.status not in FINAL or self.pending is not Pending.NOTHING

    def is_overdue(self, wall: float) -> bool:
        """Return whether the deadline has passed."""
        return 0 < self.deadline < wall

    def is_repeat_of(self, known: TaskRecord) -> bool:
        """Return whether the same node is given the same task as in ``known``."""
        return self.peer == known.peer and self.description == known.description

    def move(self, event: Input, justification: str) -> bool:
        """Apply an input; return False, changing nothing, where it is not allowed."""
        status = next_status(self.role, self.status, event)
        if status is None:
            return False
        self.status = status
        self.justification = justification
        return True


def rfc3339(wall: float) -> str:
    """Return a time in UTC as the task files have it; empty for 0."""
    return f"{_second(int(wall))}Z" if wall else ""


@functools.lru_cache(maxsize=64)
def _second(wall: int) -> str:
    # Kept, because most of a burst of tasks end in the same second.
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def task_row(record: TaskRecord) -> dict[str, Any]:
    """Return the row of ``task list`` (tasks-and-polo.md section 5)."""
    row: dict[str, Any] = {
        "task_id": record.task_id,
        "description": record.description,
        "status": str(record.status),
        "status_justification": record.justification,
        "from": record.from_addr,
        "to": record.to_addr,
        "created_at": rfc3339(record.created),
        "category": str(record.role),
    }
    if record.role is Role.SUBMITTED and record.result_type:
        row["result_type"] = record.result_type
        # The text of another kind of result may be a megabyte: it is asked for.
        if record.result_name:
            row["results"] = record.result_name
    if record.error:
        row["error"] = record.error
    return row
