"""What a worker is given to do, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["MAX_RESULT_BYTES", "UNWANTED", "Job", "Outcome", "RunTask"]

MAX_RESULT_BYTES: Final = 1_048_576
"""Longest result text (tasks-and-polo.md section 2.3)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One task that an agent was given."""

    agent: str
    """Name of the hosted agent that does it."""
    task_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run of a task."""

    ok: bool
    result: str = ""
    error: str = ""
    retryable: bool = False
    """The run was cut short from outside: another one may well succeed."""
    wall_ms: int = 0
    on_kept: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    """Called when the daemon has the outcome, or wants it no more: nothing that led to
    it is needed again."""


UNWANTED: Final = "nobody wants the result any more"
"""Message of the cancellation of a task that its submitter gave up. Without it, a
cancelled task has only been taken from this program: it will be offered again."""

RunTask: TypeAlias = Callable[[Job], Awaitable[Outcome]]
"""Does the work on a task. May be cancelled at any time."""
