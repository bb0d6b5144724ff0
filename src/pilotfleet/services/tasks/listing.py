"""The operations of the daemon's socket that show tasks and change nothing."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.tasks.params import fitting, read_params
from pilotfleet.services.tasks.record import TaskKey, TaskRecord, rfc3339, task_row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.polo.receiptrows import ReceiptRow
    from pilotfleet.services.tasks.service import TaskService
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["TaskListing"]

MAX_LISTED: Final = 1_000
"""Rows in one reply."""
_PREFIX: Final = re.compile(r"[A-Za-z0-9-]{0,64}", re.ASCII)


class _List(msgspec.Struct):
    type: str = ""


class _Open(msgspec.Struct):
    prefix: str = ""
    cursor: str = ""


class _TaskId(msgspec.Struct):
    task_id: str


class TaskListing:
    """Shows the tasks of a :class:`TaskService`."""

    def __init__(self, service: TaskService) -> None:
        self._service = service

    def table(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the operations by name."""
        return {
            "task.list": self.list,
            "task.queue": self.queue,
            "task.open": self.open,
            "task.show": self.show,
        }

    async def list(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """List the newest tasks, newest last."""
        kind = read_params(params, _List).type
        if kind not in ("", *Role):
            raise InvalidArgument(f"type {kind!r} is not received or submitted")
        records: list[TaskRecord] = []
        for role in (Role(kind),) if kind else tuple(Role):
            records += await self._service.tasks_of(agent.name, role, MAX_LISTED)
        records.sort(key=lambda record: record.created, reverse=True)
        return {"tasks": fitting([task_row(record) for record in records])[::-1]}

    async def queue(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """List the accepted tasks in the order of execution."""
        records = self._service.received.queue(agent.name)
        rows = [
            {
                "task_id": record.task_id,
                "description": record.description,
                "from": record.from_addr,
                "created_at": rfc3339(record.created),
            }
            for record in records
        ]
        return {"queue": fitting(rows), "count": len(records)}

    async def open(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """List submitted tasks that have not ended, or ended and not collected.

        Those whose id has a prefix, in pages; how a program that was started again
        finds what it has given away.
        """
        wanted = read_params(params, _Open)
        if not all(map(_PREFIX.fullmatch, (wanted.prefix, wanted.cursor))):
            raise InvalidArgument("prefix or cursor is not part of a task id")
        kept = await self._service.store.unsettled(
            agent.name, wanted.prefix, wanted.cursor, MAX_LISTED
        )
        rows = []
        for record in kept:
            now = self._service.submitted.find(agent.name, record.task_id) or record
            rows.append(
                {
                    "task_id": record.task_id,
                    "status": str(now.status),
                    "to": record.to_addr,
                }
            )
        has_more = len(kept) == MAX_LISTED
        return {"tasks": rows, "next_cursor": kept[-1].task_id if has_more else ""}

    async def show(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Return all that is known of a task, as one or both of its sides."""
        task_id = read_params(params, _TaskId).task_id
        answer: dict[str, Any] = {"task_id": task_id}
        for role in Role:
            key = TaskKey(agent.name, role, task_id)
            kept = await self._service.store.get(key)
            record = self._service.table.find(*key) or kept
            if record is not None:
                find = functools.partial(receiptrows.find, key=key)
                receipt = await self._service.store.run(find)
                answer[str(role)] = _details(record, receipt)
        if len(answer) == 1:
            raise NotFound(f"task not found: {task_id[:80]}")
        return answer


def _details(record: TaskRecord, receipt: ReceiptRow | None) -> dict[str, Any]:
    """Return a row with what a list leaves out; what is not known yet is empty or 0."""
    return {
        **task_row(record),
        "accepted_at": rfc3339(record.accepted),
        "staged_at": rfc3339(record.staged),
        "execute_started_at": rfc3339(record.executing),
        "completed_at": rfc3339(record.completed),
        "delivered_at": rfc3339(record.delivered),
        "deadline": rfc3339(record.deadline),
        "priority": record.priority,
        "time_idle_ms": record.idle_ms,
        "time_staged_ms": record.staged_ms,
        "time_cpu_ms": record.cpu_ms,
        "result_type": record.result_type,
        "result_name": record.result_name,
        "result_size": record.result_size,
        "retryable": record.retryable,
        "collected": record.collected,
        "reward": 0 if receipt is None else receipt.receipt.reward,
        "receipt": "" if receipt is None else str(receipt.state),
        "receipt_reason": "" if receipt is None else receipt.reason,
    }
