"""What a worker is given to do, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["MAX_RESULT_BYTES", "Job", "Outcome", "RunTask"]

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


RunTask: TypeAlias = Callable[[Job], Awaitable[Outcome]]
"""Does the work on a task. May be cancelled at any time."""
