"""The accepted tasks of one agent in the order of execution.

The highest priority goes first, and among equals the oldest. The time a task becomes
the head is its ``staged`` (tasks-and-polo.md section 3.2); a head that another task
overtakes is none any more, and waits without being staged.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.services.tasks.record import TaskRecord

__all__ = ["TaskQueue"]


class TaskQueue:
    """Accepted tasks by priority and age."""

    __slots__ = ("_bands", "_head")

    def __init__(self) -> None:
        # Few priorities are in use at a time, so the highest one is soon found.
        self._bands: dict[int, OrderedDict[str, TaskRecord]] = {}
        self._head: TaskRecord | None = None

    @property
    def head(self) -> TaskRecord | None:
        """The task that is executed next."""
        return self._head

    def __bool__(self) -> bool:
        return bool(self._bands)

    def __iter__(self) -> Iterator[TaskRecord]:
        for priority in sorted(self._bands, reverse=True):
            yield from self._bands[priority].values()

    def put(self, record: TaskRecord, *, wall: float, first: bool = False) -> None:
        """Add a task behind, or before, all others of its priority."""
        # The head limit counts from now: the time it was executing is not waiting.
        record.staged = 0.0
        band = self._bands.setdefault(record.priority, OrderedDict())
        band[record.task_id] = record
        if first:
            band.move_to_end(record.task_id, last=False)
        self._stage(wall)

    def remove(self, record: TaskRecord, *, wall: float) -> None:
        """Take a task out, if it is in."""
        band = self._bands.get(record.priority, OrderedDict())
        if band.pop(record.task_id, None) is None:
            return
        if not band:
            del self._bands[record.priority]
        if record is self._head:
            self._head = None
        self._stage(wall)

    def _stage(self, wall: float) -> None:
        head = next(iter(self._bands[max(self._bands)].values())) if self else None
        if self._head is not None and self._head is not head:
            self._head.staged = 0.0
        if head is not None and not head.staged:
            head.staged = wall
        self._head = head
