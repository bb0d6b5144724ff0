"""The states of a task and what moves it (tasks-and-polo.md section 3.1).

Worker and submitter each keep their own record of a task, so there are two tables.
The worker's is driven by its user or worker program, by its submitter's cancel and
by time limits. The submitter's follows the worker's reports, which may arrive
late, twice or out of order: it never moves on from an end, except that EXPIRED is
only the submitter's guess, which results replace whenever they come.

A pair that is missing from a table is refused, by construction. The one move back,
from EXECUTING to ACCEPTED, is a worker program that went away in the middle.

FAILED is ours; the official programs know success only.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

__all__ = [
    "FINAL",
    "SUBMITTER_TRANSITIONS",
    "WORKER_TRANSITIONS",
    "Input",
    "Role",
    "Status",
    "next_status",
    "report_input",
]


class Role(StrEnum):
    """Which side of a task a record belongs to."""

    RECEIVED = "received"
    """The worker's record."""
    SUBMITTED = "submitted"
    """The submitter's record."""


class Status(StrEnum):
    """How far a task is."""

    NEW = "NEW"
    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    EXECUTING = "EXECUTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


class Input(Enum):
    """What can happen to a task."""

    ACCEPT = "accept"
    DECLINE = "decline"
    EXECUTE = "execute"
    RELEASE = "release"
    SUCCEED = "send results"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


FINAL: Final = frozenset(
    (
        Status.DECLINED,
        Status.SUCCEEDED,
        Status.FAILED,
        Status.CANCELLED,
        Status.EXPIRED,
    )
)

WORKER_TRANSITIONS: Final = {
    (Status.NEW, Input.ACCEPT): Status.ACCEPTED,
    (Status.NEW, Input.DECLINE): Status.DECLINED,
    (Status.NEW, Input.CANCEL): Status.CANCELLED,
    (Status.NEW, Input.EXPIRE): Status.EXPIRED,
    (Status.ACCEPTED, Input.EXECUTE): Status.EXECUTING,
    (Status.ACCEPTED, Input.SUCCEED): Status.SUCCEEDED,
    (Status.ACCEPTED, Input.FAIL): Status.FAILED,
    (Status.ACCEPTED, Input.CANCEL): Status.CANCELLED,
    (Status.ACCEPTED, Input.EXPIRE): Status.EXPIRED,
    (Status.EXECUTING, Input.SUCCEED): Status.SUCCEEDED,
    (Status.EXECUTING, Input.FAIL): Status.FAILED,
    (Status.EXECUTING, Input.CANCEL): Status.CANCELLED,
    (Status.EXECUTING, Input.EXPIRE): Status.EXPIRED,
    (Status.EXECUTING, Input.RELEASE): Status.ACCEPTED,
}

SUBMITTER_TRANSITIONS: Final = {
    (Status.NEW, Input.ACCEPT): Status.ACCEPTED,
    (Status.NEW, Input.DECLINE): Status.DECLINED,
    (Status.NEW, Input.EXECUTE): Status.EXECUTING,
    (Status.NEW, Input.SUCCEED): Status.SUCCEEDED,
    (Status.NEW, Input.FAIL): Status.FAILED,
    (Status.NEW, Input.CANCEL): Status.CANCELLED,
    (Status.NEW, Input.EXPIRE): Status.EXPIRED,
    (Status.ACCEPTED, Input.DECLINE): Status.DECLINED,
    (Status.ACCEPTED, Input.EXECUTE): Status.EXECUTING,
    (Status.ACCEPTED, Input.SUCCEED): Status.SUCCEEDED,
    (Status.ACCEPTED, Input.FAIL): Status.FAILED,
    (Status.ACCEPTED, Input.CANCEL): Status.CANCELLED,
    (Status.ACCEPTED, Input.EXPIRE): Status.EXPIRED,
    (Status.EXECUTING, Input.ACCEPT): Status.ACCEPTED,
    (Status.EXECUTING, Input.SUCCEED): Status.SUCCEEDED,
    (Status.EXECUTING, Input.FAIL): Status.FAILED,
    (Status.EXECUTING, Input.CANCEL): Status.CANCELLED,
    (Status.EXECUTING, Input.EXPIRE): Status.EXPIRED,
    (Status.EXPIRED, Input.SUCCEED): Status.SUCCEEDED,
    (Status.EXPIRED, Input.FAIL): Status.FAILED,
}

_TABLES: Final = {
    Role.RECEIVED: WORKER_TRANSITIONS,
    Role.SUBMITTED: SUBMITTER_TRANSITIONS,
}

_REPORTS: Final = {
    "ACCEPTED": Input.ACCEPT,
    "DECLINED": Input.DECLINE,
    "EXECUTING": Input.EXECUTE,
    "FAILED": Input.FAIL,
    "CANCELLED": Input.CANCEL,
    "EXPIRED": Input.EXPIRE,
}


def next_status(role: Role, status: Status, event: Input) -> Status | None:
    """Return the status after an input, or None where it is not allowed."""
    return _TABLES[role].get((status, event))


def report_input(status: str) -> Input | None:
    """Return what a STATUS_UPDATE means for the submitter's record.

    SUCCEEDED means nothing by itself: the results say it, and in the reference they
    travel on a connection of their own, before or after it. FAILED stands for itself
    where no session can carry the error as a result.
    """
    return _REPORTS.get(status)
