"""The open tasks of a daemon: in memory for deciding, in the store for keeping.

A record is here from the moment somebody is told about it until it has ended and the
other side knows. A change is made in memory first, so that the next decision sees
it, and taken back if the store refuses it.
"""

from __future__ import annotations

import asyncio
import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pilotfleet.protocol.services.taskstate import Input, Role
    from pilotfleet.services.tasks.record import TaskKey, TaskRecord
    from pilotfleet.services.tasks.store import TaskStore, Work

__all__ = ["Bounds", "TaskTable", "when_done"]

# Of our choosing.
SOON_S: Final = 1.0
"""What nobody waits for is written after this time: most tasks have ended by then,
and the end is written anyway."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many open tasks a daemon keeps."""

    open_per_agent: int = 10_000
    """Per agent and role. A submitter that runs into it waits for its workers."""
    open_bytes: int = 256 * 1024 * 1024
    """Descriptions of all open tasks of the host, in memory."""
    cached_result_bytes: int = 64 * 1024 * 1024
    """Results on their way stay in memory up to this; the rest is read again."""


class TaskTable:
    """Open task records by agent, role and id."""

    def __init__(self, store: TaskStore, *, bounds: Bounds | None = None) -> None:
        self.store = store
        self._bounds = bounds or Bounds()
        self._tables: dict[tuple[str, Role], dict[str, TaskRecord]] = {}
        self._bytes = 0
        self._results: dict[TaskKey, bytes] = {}
        self._result_bytes = 0
        self._with_deadline: dict[TaskKey, TaskRecord] = {}
        self._unwritten: dict[TaskKey, TaskRecord] = {}
        """What was changed in memory only."""
        self._writing: asyncio.TimerHandle | None = None

    async def load(self) -> list[TaskRecord]:
        """Take over what an earlier run of the daemon left open."""
        records = await self.store.open_tasks()
        for record in records:
            self._put(record)
        return records

    def find(self, agent: str, role: Role, task_id: str) -> TaskRecord | None:
        """Return an open task."""
        table = self._tables.get((agent, role))
        return None if table is None else table.get(task_id)

    def of(self, agent: str, role: Role) -> list[TaskRecord]:
        """Return the open tasks of an agent, oldest first."""
        return list(self._tables.get((agent, role), {}).values())

    def overdue(self, wall: float) -> list[TaskRecord]:
        """Return the open tasks whose deadline has passed."""
        waiting = self._with_deadline.values()
        return [record for record in waiting if record.is_overdue(wall)]

    def __iter__(self) -> Iterator[TaskRecord]:
        for table in list(self._tables.values()):
            yield from list(table.values())

    def add(self, record: TaskRecord) -> asyncio.Future[bool]:
        """Keep a new task; the answer is False when the store knows its id already.

        Raises:
            Busy: The agent or the host has too many open tasks.
        """
        self.take(record)
        future = self.store.insert(record)
        future.add_done_callback(functools.partial(self._inserted, record))
        return future

    def take(self, record: TaskRecord) -> None:
        """Take a new task into memory; :meth:`keep` has to follow.

        Raises:
            Busy: The agent or the host has too many open tasks.
        """
        table = self._tables.get((record.agent, record.role), {})
        if len(table) >= self._bounds.open_per_agent:
            raise Busy(f"{record.agent} has {len(table)} open tasks")
        if self._bytes + len(record.description) > self._bounds.open_bytes:
            raise Busy("the open tasks of this daemon fill their memory")
        self._put(record)

    def keep(self, records: Sequence[TaskRecord]) -> asyncio.Future[list[bool]]:
        """Keep tasks that were taken; False stands for an id that the store knows."""
        future = self.store.insert_all(records)

        def check(future: asyncio.Future[list[bool]]) -> None:
            is_lost = future.cancelled() or future.exception() is not None
            kept = [False] * len(records) if is_lost else future.result()
            for record, is_new in zip(records, kept, strict=True):
                if not is_new:
                    self._drop(record)

        future.add_done_callback(check)
        return future

    def change(
        self,
        record: TaskRecord,
        event: Input,
        justification: str,
        *,
        content: bytes | None = None,
        also: Work[None] | None = None,
        **fields: Any,
    ) -> asyncio.Future[None] | None:
        """Move a task on and set fields; None, and nothing done, if it may not move.

        ``content`` is its result; ``also`` is done in the same transaction.
        """
        before = copy.copy(record)
        if not record.move(event, justification):
            return None
        self._apply(record, fields, content)
        done = self.store.update(record, content, also)
        done.add_done_callback(functools.partial(self._updated, record, before))
        return done

    def set(
        self,
        record: TaskRecord,
        *,
        also: Work[None] | None = None,
        unhurried: bool = False,
        **fields: Any,
    ) -> asyncio.Future[None]:
        """Set fields of a task that stays in its state.

        ``unhurried``: nobody waits for it to be durable.
        """
        before = copy.copy(record)
        self._apply(record, fields, None)
        done = self.store.update(record, also=also, unhurried=unhurried)
        done.add_done_callback(functools.partial(self._updated, record, before))
        return done

    def set_soon(self, record: TaskRecord, **fields: Any) -> None:
        """Set fields of an open task; on the disk with its next change, or soon."""
        for name, value in fields.items():
            setattr(record, name, value)
        self._unwritten[record.key] = record
        if self._writing is None:
            loop = asyncio.get_running_loop()
            self._writing = loop.call_later(SOON_S, self.write_all)

    def write_all(self) -> None:
        """Have the store write what was to be written soon."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        unwritten, self._unwritten = self._unwritten, {}
        for record in unwritten.values():
            # Nobody was told of it: should the disk refuse, the next change brings it.
            self.store.update(record).add_done_callback(lambda done: done.exception())

    def remove(self, record: TaskRecord) -> None:
        """Forget a task as if it had never been."""
        self._drop(record)
        # Where the store refuses even this, the task is merely delivered after all.
        self.store.delete(record.key).add_done_callback(lambda done: done.exception())

    async def result(self, record: TaskRecord) -> bytes:
        """Return the result of a task; empty if there is none."""
        if not record.result_size:
            return b""
        cached = self._results.get(record.key)
        if cached is not None:
            return cached
        return await self.store.result(record.key) or b""

    def _apply(
        self, record: TaskRecord, fields: dict[str, Any], content: bytes | None
    ) -> None:
        for name, value in fields.items():
            setattr(record, name, value)
        if content is not None:
            self._cache(record.key, content)
        if record.is_open:
            self._put(record)
        else:
            self._drop(record)
        self._unwritten.pop(record.key, None)

    def _inserted(self, record: TaskRecord, future: asyncio.Future[bool]) -> None:
        if future.cancelled() or future.exception() or not future.result():
            self._drop(record)

    def _updated(
        self, record: TaskRecord, before: TaskRecord, future: asyncio.Future[None]
    ) -> None:
        if future.cancelled() or future.exception() is None:
            return
        for name in record.__struct_fields__:
            setattr(record, name, getattr(before, name))
        if record.is_open:
            self._put(record)
            # There may have been something to write soon that was to go with this.
            self.set_soon(record)

    def _put(self, record: TaskRecord) -> None:
        table = self._tables.setdefault((record.agent, record.role), {})
        if record.task_id not in table:
            table[record.task_id] = record
            self._bytes += len(record.description)
            if record.deadline:
                self._with_deadline[record.key] = record

    def _drop(self, record: TaskRecord) -> None:
        table = self._tables.get((record.agent, record.role))
        if table is not None and table.get(record.task_id) is record:
            del table[record.task_id]
            self._with_deadline.pop(record.key, None)
            self._unwritten.pop(record.key, None)
            self._bytes -= len(record.description)
            if not table:
                del self._tables[record.agent, record.role]
        self._result_bytes -= len(self._results.pop(record.key, b""))

    def _cache(self, key: TaskKey, content: bytes) -> None:
        if self._result_bytes + len(content) <= self._bounds.cached_result_bytes:
            self._result_bytes += len(content) - len(self._results.pop(key, b""))
            self._results[key] = content


def when_done(done: asyncio.Future[Any], action: Callable[[], None]) -> None:
    """Call ``action`` once a write is durable, whoever has stopped waiting for it.

    Effects that must follow a write hang on it here, not behind an ``await`` that a
    closing connection may cancel. For the same reason writes are awaited shielded.
    """

    def check(done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None:
            action()

    done.add_done_callback(check)
