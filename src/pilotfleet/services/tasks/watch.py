"""Programs that want to know what becomes of submitted tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Busy
from pilotfleet.protocol.services.taskstate import FINAL, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.services.tasks.record import TaskRecord
    from pilotfleet.services.tasks.serving import PushSession

__all__ = ["Watchers", "is_inline", "update_push"]

MAX_INLINE: Final = 128 * 1024
"""Longest result in a push, in bytes; a longer one is fetched with ``task.result``.
JSON may write a byte as six, and a frame of the socket holds 1 MiB."""
MAX_WATCHERS: Final = 64
"""Per agent."""
MAX_BACKLOG: Final = 10_000
"""Ends that one connection has not been told; the oldest go, and stay in the store."""


class Watchers:
    """Local connections that watch the tasks an agent submits.

    Progress is dropped when a connection is full. The end of a task is not: it stays
    in the connection's backlog until there is room, and in the store until somebody
    collects it. What is pushed from a backlog comes without the result's text.
    """

    def __init__(self) -> None:
        self._watchers: dict[str, dict[PushSession, dict[str, TaskRecord]]] = {}

    @property
    def is_lagging(self) -> bool:
        """True while a full connection has not been told how a task ended."""
        return any(
            backlog
            for sessions in self._watchers.values()
            for backlog in sessions.values()
        )

    def has(self, agent: str) -> bool:
        """Return whether anybody is told about an agent's tasks."""
        return agent in self._watchers

    def add(self, agent: str, session: PushSession) -> bool:
        """Tell a connection about an agent's tasks; False when it is told already.

        Raises:
            Busy: Too many connections watch this agent.
        """
        sessions = self._watchers.setdefault(agent, {})
        if session in sessions:
            return False
        if len(sessions) >= MAX_WATCHERS:
            raise Busy(f"{len(sessions)} connections watch the tasks of {agent}")
        sessions[session] = {}
        session.on_close(lambda: self._remove(agent, session))
        return True

    def tell(self, record: TaskRecord, content: bytes) -> None:
        """Tell all connections about a change."""
        sessions = self._watchers.get(record.agent)
        if not sessions:
            return
        push = update_push(record, content)
        for session, backlog in sessions.items():
            if not session.push(push) and record.status in FINAL:
                _keep(backlog, record)

    def tell_unreachable(self, agent: str, records: Iterable[TaskRecord]) -> None:
        """Tell all connections that the worker of some tasks does not answer."""
        sessions = self._watchers.get(agent)
        for record in records if sessions else ():
            push = {**update_push(record, b""), "reachable": False}
            for session in sessions or ():
                session.push(push)

    def tell_one(
        self, agent: str, session: PushSession, record: TaskRecord, content: bytes
    ) -> None:
        """Tell one connection how a task ended."""
        backlog = self._watchers.get(agent, {}).get(session)
        if backlog is None:
            return
        if not session.push(update_push(record, content)):
            _keep(backlog, record)

    def catch_up(self) -> None:
        """Push what connections have missed, as far as they take it now."""
        for sessions in self._watchers.values():
            for session, backlog in sessions.items():
                while backlog:
                    task_id, record = next(iter(backlog.items()))
                    if not session.push(update_push(record, b"")):
                        break
                    del backlog[task_id]

    def collected(self, agent: str, task_ids: list[str]) -> None:
        """Never push these again."""
        for backlog in self._watchers.get(agent, {}).values():
            for task_id in task_ids:
                backlog.pop(task_id, None)

    def _remove(self, agent: str, session: PushSession) -> None:
        sessions = self._watchers.get(agent, {})
        sessions.pop(session, None)
        if not sessions:
            self._watchers.pop(agent, None)


def _keep(backlog: dict[str, TaskRecord], record: TaskRecord) -> None:
    if len(backlog) >= MAX_BACKLOG:
        del backlog[next(iter(backlog))]
    backlog[record.task_id] = record


def is_inline(record: TaskRecord) -> bool:
    """Return whether the result of a task goes into the push."""
    return record.result_type == "text" and record.result_size <= MAX_INLINE


def update_push(record: TaskRecord, content: bytes) -> dict[str, Any]:
    """Return what is pushed for a submitted task."""
    push: dict[str, Any] = {
        "push": "task.update",
        "agent": record.agent,
        "task_id": record.task_id,
        "status": str(record.status),
        "justification": record.justification,
    }
    if record.error:
        push["error"] = record.error
    if record.retryable:
        push["retryable"] = True
    if record.status is Status.EXPIRED and not record.delivered:
        push["delivered"] = False
    if record.result_type:
        push["result_type"] = record.result_type
        push["result_size"] = record.result_size
        push["cpu_ms"] = record.cpu_ms
        if record.result_type == "file":
            push["results"] = record.result_name
        elif is_inline(record) and len(content) == record.result_size:
            push["results"] = content.decode(errors="replace")
    return push
