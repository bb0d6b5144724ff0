"""What a schedule is told, and what it asks for::

Submit    give an attempt to a worker
Cancel    tell a worker that an attempt is not wanted any more
Inspect   find out how an attempt ended in an earlier life of the run
Collect   the daemon may forget an attempt
Finished  a task is done
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Action",
    "Cancel",
    "Collect",
    "Finished",
    "Inspect",
    "Submit",
    "TaskResult",
    "Update",
]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of a task."""

    id: str
    status: str
    """``SUCCEEDED`` or ``FAILED``."""
    agent: str
    """Name of the worker; empty when none had it."""
    result: str
    attempts: int
    wall_ms: float
    error: str = ""
    retryable: bool = False
    """It failed because of workers that were lost, killed it or were not there; the
    task itself is not to blame."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Give an attempt to a worker."""

    wire_id: str
    address: str
    task: str
    priority: int = 0
    deadline: float | None = None
    """When its result is too late, by the schedule's clock."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """An attempt is not wanted any more."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """An attempt of an earlier life has ended: give the update that says how."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Collect:
    """The daemon may forget an attempt."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A task is done."""

    result: TaskResult


Action: TypeAlias = Submit | Cancel | Inspect | Collect | Finished


@dataclass(frozen=True, slots=True)
class Update:
    """What the daemon says about an attempt."""

    wire_id: str
    status: str
    result: str = ""
    reason: str = ""
    is_retryable: bool = False
    is_reachable: bool = True
    is_delivered: bool = True
    """False when it ended before the worker's node had it."""
