"""Task files and result files: one JSON object per line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from pilotfleet.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_TASK_BYTES", "TaskLine", "load_tasks"]

MAX_TASK_BYTES: Final = 16_384
"""Longest task text (tasks-and-polo.md section 2.1)."""


class TaskLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One task: an ID of the caller's choosing, the text, the tags it needs."""

    id: str
    task: str
    tags: tuple[str, ...] = ()


def load_tasks(path: Path) -> list[TaskLine]:
    """Read a task file; empty lines are skipped.

    Raises:
        ConfigError: The file cannot be read, or a line is not a task, is too long
            or repeats an ID; the message has the line number.
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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _refuse(path, number, str(error))
        if not task.id:
            _refuse(path, number, "the id is empty")
        if task.id in tasks:
            _refuse(path, number, f"id {task.id!r} stands in an earlier line too")
        if len(task.task.encode()) > MAX_TASK_BYTES:
            _refuse(path, number, f"the task is longer than {MAX_TASK_BYTES} bytes")
        tasks[task.id] = task
    if not tasks:
        raise ConfigError(f"task file {path} holds no task")
    return list(tasks.values())


def _refuse(path: Path, number: int, reason: str) -> NoReturn:
    raise ConfigError(
        f"task file {path}, line {number}: {reason}",
        hint='a line looks like {"id": "1", "task": "text", "tags": ["worker"]}',
    )
