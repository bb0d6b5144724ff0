"""Many submissions or outcomes in one call of the daemon's socket.

A call costs as much as the work that it asks for, so programs with many tasks say at
once what they have. Each item does what the single operation would do, and has its
own error; all share a write.
"""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from pilotfleet.errors import (
    DecodeError,
    InvalidArgument,
    NotFound,
    PilotError,
    error_to_fields,
)
from pilotfleet.protocol.address import BACKBONE, BROADCAST_NODE, Address
from pilotfleet.protocol.services.tasks import (
    MAX_PRIORITY,
    MAX_RESULT_TEXT,
    MAX_TEXT,
    format_task_id,
)
from pilotfleet.protocol.services.taskstate import Role, Status
from pilotfleet.services.tasks.params import read_params
from pilotfleet.services.tasks.received import Outcome
from pilotfleet.services.tasks.record import MAX_MS, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.tasks.service import TaskService
    from pilotfleet.services.tasks.serving import PushSession

__all__ = [
    "Finish",
    "GroupOperations",
    "Submission",
    "outcome_of",
    "resolve",
    "submitted_record",
]

MAX_ITEMS: Final = 1_000
"""In one call."""


class Submission(msgspec.Struct):
    """A task that a program gives to a peer."""

    target: str | int
    task: str
    task_id: str = ""
    deliver_within_s: float = 3600.0
    priority: int = 0
    deadline_s: float | None = None


class Finish(msgspec.Struct):
    """What came of a task that a program was offered."""

    task_id: str
    ok: bool
    result: str = ""
    error: str = ""
    retryable: bool = False
    cpu_ms: int = 0


class _Outcome(Finish):
    agent: str = ""


class _SubmitAll(msgspec.Struct):
    tasks: Annotated[list[Submission], msgspec.Meta(max_length=MAX_ITEMS)]


class _FinishAll(msgspec.Struct):
    outcomes: Annotated[list[_Outcome], msgspec.Meta(max_length=MAX_ITEMS)]


class GroupOperations:
    """What local programs may ask of a :class:`TaskService` for many tasks at once."""

    def __init__(self, service: TaskService) -> None:
        self._service = service

    def table(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the operations by name."""
        return {"task.submit-all": self.submit_all, "task.finish-all": self.finish_all}

    async def submit_all(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Give tasks to peers. What is not refused is durable when answered."""
        wanted = read_params(params, _SubmitAll).tasks
        now = self._service.wall()
        records: list[TaskRecord] = []
        refused: dict[str, PilotError] = {}
        for each in wanted:
            try:
                if not each.task_id:
                    raise InvalidArgument("each task needs a task_id")
                peer = await resolve(agent, each.target)
                records.append(submitted_record(agent, peer, each, now=now))
            except PilotError as error:
                refused[each.task_id] = error
        refused |= await self._service.submitted.submit_all(records)
        return {"refused": _fields(refused)}

    async def finish_all(
        self, session: PushSession, agent: Any, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Take the outcomes of offered tasks. Durable when answered.

        What is wrong with one is told under its place in the list.
        """
        wanted = read_params(params, _FinishAll).outcomes
        received, serving = self._service.received, self._service.serving
        refused: dict[str, PilotError] = {}
        records: list[TaskRecord] = []
        under_way: dict[str, asyncio.Future[None]] = {}
        for place, each in enumerate(wanted):
            try:
                record = received.find(each.agent or agent.name, each.task_id)
                outcome = outcome_of(each)
                records.append(record)
                under_way[str(place)] = received.finish_soon(record, outcome)
            except PilotError as error:
                refused[str(place)] = error
        if under_way:
            # Waited for, and not gathered: a caller that leaves takes nothing back.
            await asyncio.wait(under_way.values())
        for place_text, done in under_way.items():
            error_of = done.exception()
            if isinstance(error_of, PilotError):
                refused[place_text] = error_of
            elif error_of is not None:
                raise error_of
        for record in records:
            if record.status is not Status.EXECUTING:
                serving.finished(record)
        return {"refused": _fields(refused)}


def submitted_record(
    agent: Any, peer: int, wanted: Submission, *, now: float
) -> TaskRecord:
    """Return the record of a task that an agent gives to a peer.

    Raises:
        InvalidArgument: Priority or deadline are not possible.
    """
    if abs(wanted.priority) > MAX_PRIORITY:
        raise InvalidArgument(
            f"priority {wanted.priority} is not -{MAX_PRIORITY} to {MAX_PRIORITY}"
        )
    if wanted.deadline_s is not None and not 0 < wanted.deadline_s < math.inf:
        raise InvalidArgument(f"deadline_s {wanted.deadline_s} is not above zero")
    return TaskRecord(
        agent=agent.name,
        role=Role.SUBMITTED,
        task_id=wanted.task_id or format_task_id(os.urandom(16)),
        peer=peer,
        from_addr=str(Address(BACKBONE, agent.node_id)),
        to_addr=str(Address(BACKBONE, peer)),
        description=wanted.task,
        created=now,
        priority=wanted.priority,
        deadline=now + wanted.deadline_s if wanted.deadline_s else 0.0,
        deliver_by=now + wanted.deliver_within_s,
    )


def outcome_of(wanted: Finish, uploaded: bytes | None = None) -> Outcome:
    """Return what a worker program says came of a task.

    Raises:
        InvalidArgument: The result is too long.
    """
    content = wanted.result.encode() if uploaded is None else uploaded
    if len(content) > MAX_RESULT_TEXT:
        raise InvalidArgument(f"result of {len(content)} bytes > {MAX_RESULT_TEXT}")
    return Outcome(
        content=content,
        error=wanted.error[:MAX_TEXT],
        is_ok=wanted.ok,
        retryable=wanted.retryable,
        cpu_ms=min(max(wanted.cpu_ms, 0), MAX_MS),
    )


async def resolve(agent: Any, target: str | int) -> int:
    """Return the node that an address, a number or a hostname means.

    Raises:
        NotFound: There is none of that name.
        InvalidArgument: It is no node.
    """
    if isinstance(target, str) and target.isascii() and target.isdigit():
        target = int(target[:11])
    if isinstance(target, int):
        if not 0 < target < BROADCAST_NODE:
            raise InvalidArgument(f"{target} is not a node")
        return target
    with suppress(DecodeError):
        return Address.parse(target).node
    answer = await agent.resolve_hostname(target)
    node = answer.get("node_id")
    if not isinstance(node, int):
        raise NotFound(f"cannot resolve {target!r}")
    return node


def _fields(errors: dict[str, PilotError]) -> dict[str, Any]:
    return {key: error_to_fields(error) for key, error in errors.items()}
