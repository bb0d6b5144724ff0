"""Task files as the official programs keep them (tasks-and-polo.md sections 2.3, 4).

A mirror for people and scripts that look into ``~/.pilot/tasks``::

    received/<id>.json  submitted/<id>.json  results/<id>_result.txt
                                             results/<id>_<file name>

The database is the truth and nothing is ever read back from here, so a file is
replaced whole but not forced to the disk, and one that cannot be written is reported
once and harms no task. The store calls from its own thread, after the commit. Unless
many tasks change at once, whoever is told of a change finds it in the file.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from pilotfleet.protocol.services.tasks import base_name, is_task_id
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.tasks.record import rfc3339
from pilotfleet.transport.files import write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from pilotfleet.services.tasks.record import TaskKey, TaskRecord

__all__ = ["TaskFiles", "task_file"]

ResultOf: TypeAlias = "Callable[[TaskKey], bytes | None]"

logger = logging.getLogger(__name__)

# From the specification.
TEXT_NAME: Final = "result.txt"
RESULTS: Final = "results"

# Of our choosing.
FEW: Final = 4
"""Files that are written before anybody is told of the change."""
AT_ONCE: Final = 8
"""Of more, so many are written between two commits."""
LAG_S: Final = 0.25
"""How long a change may wait then, for the next one to the same task."""
MAX_WAITING: Final = 10_000
"""The store waits for the files beyond."""

# Of this system.
MAX_NAME: Final = 255
"""Bytes of a file name."""


class _Change(NamedTuple):
    record: TaskRecord
    has_new_result: bool
    at: float


class TaskFiles:
    """Mirrors the tasks of some agents into files. Used from the store's thread.

    Changes are noted while the store writes them, and reach the files after its
    commit: a few at once, before anybody is told of them, many of them later, when
    most tasks have changed again.

    Args:
        folders: The ``tasks`` folder of each agent by its name; the tasks of other
            agents are not mirrored.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = folders
        self._clock = clock
        self._noted: list[tuple[Path, _Change | None]] = []
        self._waiting: dict[Path, _Change | None] = {}
        """None is a file to delete."""
        self._has_failed = False

    @property
    def agents(self) -> list[str]:
        """The agents whose tasks are mirrored."""
        return list(self._folders)

    @property
    def pause(self) -> float | None:
        """Seconds until ``catch_up`` shall be called; None when nothing waits."""
        for change in self._waiting.values():
            if change is None:
                return 0.0
            return max(0.0, change.at + LAG_S - self._clock())
        return None

    def snapshot(self, record: TaskRecord) -> TaskRecord | None:
        """Return a record as it is now, or None if it is not mirrored."""
        return copy.copy(record) if self._has(record.agent, record.task_id) else None

    def changed(self, record: TaskRecord, *, has_new_result: bool) -> None:
        """Note a new state of a task."""
        change = _Change(record, has_new_result, self._clock())
        self._noted.append((self._path(record.key), change))

    def forgotten(self, key: TaskKey, result_type: str, result_name: str) -> None:
        """Note that a task is not kept any more."""
        if not self._has(key.agent, key.task_id):
            return
        self._noted.append((self._path(key), None))
        if key.role is Role.SUBMITTED and result_type:
            self._noted.append((self._result_path(key, result_name), None))

    def commit(self) -> None:
        """Bring what was noted to the files, soon."""
        for path, change in self._noted:
            earlier = self._waiting.get(path)
            if change is not None and earlier is not None:
                has_new_result = change.has_new_result or earlier.has_new_result
                change = _Change(change.record, has_new_result, earlier.at)
            self._waiting[path] = change
        self._noted.clear()

    def discard(self) -> None:
        """Forget what was noted: it was not committed."""
        self._noted.clear()

    def catch_up(self, result_of: ResultOf, *, wait: bool = True) -> None:
        """Write what waits: all if it is little, else some of what waits longest.

        Args:
            result_of: Finds the result of a task.
            wait: False to write everything.
        """
        count = len(self._waiting)
        if wait and count > FEW:
            due = AT_ONCE if self.pause == 0.0 else 0
            count = max(due, count - MAX_WAITING)
        for path in list(itertools.islice(self._waiting, count)):
            self._write(path, self._waiting.pop(path), result_of)

    def restore(self, records: Iterable[TaskRecord], result_of: ResultOf) -> None:
        """Write what an earlier run did not, killed between a commit and its files."""
        for record in records:
            if self._has(record.agent, record.task_id) and not self._is_current(record):
                self._write(
                    self._path(record.key), _Change(record, True, 0.0), result_of
                )

    def result_path(self, record: TaskRecord) -> str:
        """Return where the result of a submitted task is; empty if nowhere."""
        if not self._has(record.agent, record.task_id):
            return ""
        return str(self._result_path(record.key, record.result_name))

    def _write(self, path: Path, change: _Change | None, result_of: ResultOf) -> None:
        try:
            if change is None:
                path.unlink(missing_ok=True)
                return
            record = change.record
            if change.has_new_result and _has_result(record):
                result_path = self._result_path(record.key, record.result_name)
                _replace(result_path, result_of(record.key) or b"")
            _replace(path, task_file(record, self._text(record)))
        except (OSError, ValueError) as error:
            self._report(path, error)

    def _has(self, agent: str, task_id: str) -> bool:
        return agent in self._folders and is_task_id(task_id)

    def _path(self, key: TaskKey) -> Path:
        return self._folders[key.agent] / str(key.role) / f"{key.task_id}.json"

    def _result_path(self, key: TaskKey, result_name: str) -> Path:
        name = base_name(result_name) if result_name else TEXT_NAME
        room = MAX_NAME - len(key.task_id) - 1
        # The end of a long name is kept: there is the extension.
        name = name.encode(errors="ignore")[-room:].decode(errors="ignore")
        return self._folders[key.agent] / RESULTS / f"{key.task_id}_{name}"

    def _text(self, record: TaskRecord) -> bytes:
        """Return the text result of a task, which is written before its record."""
        if _has_result(record) and record.result_type != "file":
            with contextlib.suppress(FileNotFoundError):
                return self._result_path(record.key, "").read_bytes()
        return b""

    def _is_current(self, record: TaskRecord) -> bool:
        try:
            if _has_result(record):
                path = self._result_path(record.key, record.result_name)
                if path.stat().st_size != record.result_size:
                    return False
            wanted = task_file(record, self._text(record))
            return self._path(record.key).read_bytes() == wanted
        except (OSError, ValueError):
            return False

    def _report(self, path: Path, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "cannot write task file %s: %s (said once; tasks go on without)",
                path,
                error,
            )


def task_file(record: TaskRecord, text: bytes = b"") -> bytes:
    """Return the contents of a task's file.

    Args:
        record: The task, as one side sees it.
        text: What came back, on the submitter's side; unless it is a file.
    """
    fields: dict[str, Any] = {
        "task_id": record.task_id,
        "task_description": record.description,
        "created_at": _precise(record.created),
        "status": str(record.status),
        "status_justification": record.justification,
        "from": record.from_addr,
        "to": record.to_addr,
    }
    optional: dict[str, Any] = {"accepted_at": rfc3339(record.accepted)}
    if record.role is Role.RECEIVED:
        optional |= {
            "staged_at": rfc3339(record.staged),
            "execute_started_at": rfc3339(record.executing),
            "completed_at": rfc3339(record.completed),
            "time_idle_ms": record.idle_ms,
            "time_staged_ms": record.staged_ms,
            "time_cpu_ms": record.cpu_ms,
        }
    elif record.result_type:
        results = record.result_name or text.decode(errors="replace")
        optional |= {"result_type": record.result_type, "results": results}
    fields |= {name: value for name, value in optional.items() if value}
    return _escaped(msgspec.json.format(msgspec.json.encode(fields), indent=2))


def _has_result(record: TaskRecord) -> bool:
    """Return whether a result file belongs to a record: it is the submitter's."""
    return record.role is Role.SUBMITTED and record.result_type != ""


def _escaped(text: bytes) -> bytes:
    """Write the characters so that the official encoder escapes."""
    for character in "<>&\u2028\u2029":
        escape = f"\\u{ord(character):04x}".encode()
        text = text.replace(character.encode(), escape)
    return text


def _precise(wall: float) -> str:
    """Return a time in UTC with the fraction that is known, without trailing zeros."""
    moment = datetime.fromtimestamp(wall, UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return f"{text}Z"


def _replace(path: Path, data: bytes) -> None:
    """Replace a file for readers to find either old or new; its folder is made."""
    temporary = path.parent / ".writing"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, flags, 0o600)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
