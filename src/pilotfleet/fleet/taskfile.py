"""Task files and result files: one JSON object per line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.protocol.durations import parse_duration

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_PRIORITY", "MAX_TASK_BYTES", "TaskLine", "load_tasks"]

MAX_TASK_BYTES: Final = 16_384
"""Longest task text (tasks-and-polo.md section 2.1)."""
MAX_PRIORITY: Final = 100
"""Priorities run from minus this to this."""


class TaskLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One task: an ID of the caller's choosing, the text, the tags it needs."""

    id: str
    task: str
    tags: tuple[str, ...] = ()
    priority: int = 0
    """-100 to 100. Of the tasks that wait, the one with the highest goes first."""
    deadline: str = ""
    """A duration like ``90s`` or ``1h30m``, counted from when the batch takes the task.
    One that has no result by then fails. Empty for none."""

    @property
    def deadline_s(self) -> float | None:
        """The deadline in seconds.

        Raises:
            InvalidArgument: It is not a duration above zero.
        """
        if not self.deadline:
            return None
        seconds = parse_duration(self.deadline, "deadline", needs_unit=True)
        if seconds <= 0:
            raise InvalidArgument(
                f'the deadline "{self.deadline}" is not above zero',
                hint="leave the deadline out, or give the task some time, like 90s",
            )
        return seconds

    def check(self) -> None:
        """Refuse values that no task may have.

        Raises:
            InvalidArgument: What is wrong, with the remedy as its hint.
        """
        if not self.id:
            raise InvalidArgument("the id is empty", hint="give each task its own id")
        if len(self.task.encode(errors="replace")) > MAX_TASK_BYTES:
            raise InvalidArgument(
                f"the task is longer than {MAX_TASK_BYTES} bytes",
                hint="put long input where the workers can read it, and its name here",
            )
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidArgument(
                f"priority {self.priority} is not -{MAX_PRIORITY} to {MAX_PRIORITY}",
                hint=f"use -{MAX_PRIORITY} (last) to {MAX_PRIORITY} (first)",
            )
        _ = self.deadline_s


def load_tasks(path: Path) -> list[TaskLine]:
    """Read a task file; empty lines are skipped.

    Raises:
        ConfigError: The file cannot be read, or a line is not a task, has a value
            that is not allowed or repeats an ID; the message has the line number.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read task file {path}: {error.strerror}") from None
    decoder = msgspec.json.Decoder(TaskLine)
    tasks: dict[str, TaskLine] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = decoder.decode(line)
            task.check()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _refuse(path, number, str(error))
        except InvalidArgument as error:
            _refuse(path, number, str(error), error.hint)
        if task.id in tasks:
            _refuse(path, number, f"id {task.id!r} stands in an earlier line too")
        tasks[task.id] = task
    if not tasks:
        raise ConfigError(f"task file {path} holds no task")
    return list(tasks.values())


def _refuse(path: Path, number: int, reason: str, hint: str | None = None) -> NoReturn:
    raise ConfigError(
        f"task file {path}, line {number}: {reason}",
        hint=hint
        or 'a line looks like {"id": "1", "task": "text", "tags": ["worker"]}',
    )
