"""The worker's side of tasks: its records and its queue.

Deviations from the reference (section 3.2 lists its defects): a task is queued when
it is accepted, the most urgent and then the oldest accepted task is executed first,
and the head limit counts from the moment a task becomes head.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Busy, Expired, InvalidState, NotFound
from pilotfleet.protocol.services.tasks import (
    ACCEPTED_STATUS,
    MAX_DESCRIPTION,
    MAX_PRIORITY,
    REJECTED_STATUS,
    Submit,
    SubmitResponse,
)
from pilotfleet.protocol.services.taskstate import FINAL, Input, Role, Status
from pilotfleet.services.tasks.queue import TaskQueue
from pilotfleet.services.tasks.record import (
    ACCEPT_LIMIT_S,
    LONGEST_S,
    MAX_MS,
    NO_RESPONSE,
    OVERDUE,
    Pending,
    TaskRecord,
)
from pilotfleet.services.tasks.table import when_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pilotfleet.services.polo.receipts import Receipts
    from pilotfleet.services.tasks.table import TaskTable

__all__ = ["Outcome", "Received", "already", "received_record"]

# From the specification (section 3.1).
HEAD_LIMIT_S: Final = 3600.0
DEADLINE_SLACK_S: Final = 2.0
"""The submitter's deadline is the earlier one by the time that a task travelled."""
TAKEN: Final = "Task received with status NEW"
ACCEPTED: Final = "Task accepted"
STARTED: Final = "Task execution started"
COMPLETED: Final = "Task completed successfully"
HEAD_EXPIRED: Final = "Task expired: at head of queue for over 1 hour"
TOO_OLD: Final = "Task cancelled: no results within a week"

_REFUSED: Final = {
    Input.SUCCEED: "cannot receive results (status: {})",
    Input.FAIL: "cannot receive results (status: {})",
}


class Outcome:
    """What came of executing a task."""

    __slots__ = ("content", "cpu_ms", "error", "filename", "is_ok", "retryable")

    def __init__(
        self,
        *,
        content: bytes = b"",
        filename: str = "",
        error: str = "",
        is_ok: bool = True,
        retryable: bool = False,
        cpu_ms: int = 0,
    ) -> None:
        self.content = content
        self.filename = filename
        """Empty for a text."""
        self.error = error
        self.is_ok = is_ok
        self.retryable = retryable
        self.cpu_ms = cpu_ms
        """0 = measure from the start of execution."""


class Received:
    """The records of tasks that were given to agents of this host."""

    def __init__(
        self, table: TaskTable, receipts: Receipts, *, wall: Callable[[], float]
    ) -> None:
        self._table = table
        self._receipts = receipts
        self._wall = wall
        self._queues: dict[str, TaskQueue] = {}
        self.on_taken: Callable[[TaskRecord], None] = lambda record: None
        """Called when a new task is on the disk."""
        self.is_served: Callable[[str], bool] = lambda agent: False
        """Whether a worker program takes the tasks of an agent by itself."""
        self.on_queued: Callable[[str], None] = lambda agent: None
        """Called when an agent has a task to execute."""
        self.on_pending: Callable[[TaskRecord], None] = lambda record: None
        """Called when the submitter has to be told how the task ended."""
        self.on_notice: Callable[[TaskRecord], None] = lambda record: None
        """Called when the submitter may be told how far the task is."""
        self.on_cancel: Callable[[TaskRecord], None] = lambda record: None
        """Called when a task that may be executing was cancelled."""

    def load(self, records: Iterable[TaskRecord]) -> None:
        """Take over records of an earlier run; what was executing starts again."""
        for record in sorted(records, key=lambda record: record.accepted):
            record.move(Input.RELEASE, "Task released: the daemon was restarted")
            self._enqueue(record)

    def find(self, agent: str, task_id: str) -> TaskRecord:
        """Return an open received task.

        Raises:
            NotFound: There is none with this id.
        """
        record = self._table.find(agent, Role.RECEIVED, task_id)
        if record is None:
            raise NotFound(f"task not found: {task_id}")
        return record

    def queue(self, agent: str) -> list[TaskRecord]:
        """Return the accepted tasks of an agent in the order of execution."""
        return list(self._queues.get(agent, ()))

    def head(self, agent: str) -> TaskRecord | None:
        """Return the accepted task that is executed next; expire those too late."""
        now = self._wall()
        while (queue := self._queues.get(agent)) and (record := queue.head):
            if not record.is_overdue(now):
                return record
            self._expire(record)
        return None

    async def take_submission(self, record: TaskRecord) -> SubmitResponse:
        """Keep a task that a peer submits; durable when it returns 200.

        The same submission again is answered the same again and executed once.
        """
        refusal = _refusal(record)
        if refusal is not None:
            return SubmitResponse(record.task_id, REJECTED_STATUS, refusal)
        if self._table.find(record.agent, Role.RECEIVED, record.task_id) is None:
            is_served = self.is_served(record.agent)
            if is_served:
                record.move(Input.ACCEPT, ACCEPTED)
                record.accepted = record.created
            try:
                added = self._table.add(record)
            except Busy as error:
                return SubmitResponse(record.task_id, REJECTED_STATUS, str(error))
            when_done(added, lambda: self._taken(record))
            if await asyncio.shield(added):
                return SubmitResponse(record.task_id, ACCEPTED_STATUS, TAKEN)
        if await self.is_repeat(record):
            return SubmitResponse(record.task_id, ACCEPTED_STATUS, TAKEN)
        text = f"task {record.task_id} exists already"
        return SubmitResponse(record.task_id, REJECTED_STATUS, text)

    async def is_repeat(self, record: TaskRecord) -> bool:
        """Return whether this very submission is on the disk already."""
        # The store answers after all earlier writes, so a record in it is durable.
        known = await self._table.store.get(record.key)
        return known is not None and record.is_repeat_of(known)

    async def accept(self, record: TaskRecord) -> None:
        """Accept a new task.

        Raises:
            InvalidState: It is not new any more.
            Expired: It is over a minute old.
        """
        now = self._wall()
        self._check_new(record, now)
        done = self._move(
            record,
            Input.ACCEPT,
            ACCEPTED,
            {"accepted": now, "idle_ms": _ms(record.created, now)},
        )
        when_done(done, lambda: self._accepted(record))
        await asyncio.shield(done)

    async def decline(self, record: TaskRecord, justification: str) -> None:
        """Decline a new task.

        Raises:
            InvalidState: It is not new any more.
            Expired: It is over a minute old.
        """
        now = self._wall()
        self._check_new(record, now)
        fields = {
            "accepted": now,
            "idle_ms": _ms(record.created, now),
            "pending": Pending.STATUS,
        }
        done = self._move(record, Input.DECLINE, justification, fields)
        when_done(done, lambda: self.on_pending(record))
        await asyncio.shield(done)

    async def execute(self, agent: str) -> TaskRecord:
        """Start the accepted task that is next.

        Raises:
            NotFound: No task is accepted.
        """
        record = self.head(agent)
        if record is None:
            raise NotFound("no accepted tasks to execute")
        self.start(record)
        await asyncio.shield(self._table.set(record))
        return record

    def start(self, record: TaskRecord) -> None:
        """Mark an accepted task as executing, in memory.

        Nothing is lost when this is not on the disk: after a crash the task is
        offered again in either state.
        """
        now = self._wall()
        if record.move(Input.EXECUTE, STARTED):
            self._dequeue(record)
            record.executing = now
            record.staged_ms = _ms(record.staged, now)
            self.on_notice(record)

    def release(self, record: TaskRecord, justification: str) -> None:
        """Give an executing task back to the front of the queue."""
        if record.move(Input.RELEASE, justification):
            self._enqueue(record, first=True)
            self.on_notice(record)
            self.on_queued(record.agent)

    async def finish(self, record: TaskRecord, outcome: Outcome) -> None:
        """Keep what came of a task. Durable when it returns.

        Raises:
            InvalidState: The task is not accepted, or has ended.
        """
        await asyncio.shield(self.finish_soon(record, outcome))

    def finish_soon(self, record: TaskRecord, outcome: Outcome) -> asyncio.Future[None]:
        """Do the same without waiting; durable when the future is done.

        Raises:
            InvalidState: The task is not accepted, or has ended.
        """
        now = self._wall()
        event = Input.SUCCEED if outcome.is_ok else Input.FAIL
        fields = {
            "completed": now,
            "cpu_ms": outcome.cpu_ms or _ms(record.executing, now),
            "result_type": "file" if outcome.filename else "text",
            "result_name": outcome.filename,
            "result_size": len(outcome.content),
            "error": outcome.error,
            "retryable": outcome.retryable,
            "pending": Pending.RESULTS,
        }
        reason = COMPLETED if outcome.is_ok else outcome.error or "task failed"
        done = self._move(record, event, reason, fields, outcome.content)
        when_done(done, lambda: self.on_pending(record))
        return done

    async def cancel(self, agent: str, peer: int, task_id: str) -> None:
        """End a task at its submitter's wish. A task that has ended stays as it is."""
        record = self._table.find(agent, Role.RECEIVED, task_id)
        if record is None or record.peer != peer:
            return
        event, reason = Input.CANCEL, "Task cancelled by submitter"
        if record.is_overdue(self._wall() + DEADLINE_SLACK_S):
            # Its submitter's clock came first: this is how it tells of the deadline.
            event, reason = Input.EXPIRE, OVERDUE
        done = self._change(record, event, reason, {})
        if done is not None:
            self.on_cancel(record)
            await asyncio.shield(done)

    async def told(self, agent: str, task_id: str, signature: str = "") -> None:
        """Note that the submitter knows how a task ended, and what it signed."""
        record = self._table.find(agent, Role.RECEIVED, task_id)
        if record is None or record.pending is Pending.NOTHING:
            return
        receipt = None
        if signature and record.pending is Pending.RESULTS:
            content = await self._table.result(record)
            receipt = self._receipts.countersigned(record, content, signature)
        # After a crash the submitter is told again, and gives the same answer.
        self._table.set(record, also=receipt, unhurried=True, pending=Pending.NOTHING)

    def accept_waiting(self, agent: str) -> None:
        """Accept what is new: a worker program has begun to serve the agent."""
        now = self._wall()
        for record in self._table.of(agent, Role.RECEIVED):
            if record.status is not Status.NEW:
                continue
            fields = {"accepted": now, "idle_ms": _ms(record.created, now)}
            done = self._move(record, Input.ACCEPT, ACCEPTED, fields)
            when_done(done, functools.partial(self._accepted, record))

    def check_limits(self, record: TaskRecord) -> None:
        """Apply the time limits to one open task."""
        now = self._wall()
        if now - record.created > LONGEST_S:
            self._give_up(record)
        elif record.is_overdue(now) and record.status not in FINAL:
            self._expire(record)
        elif record.status is Status.NEW and now - record.created > ACCEPT_LIMIT_S:
            waited = _ms(record.created, now)
            self._end(record, Input.CANCEL, NO_RESPONSE, accepted=now, idle_ms=waited)
        elif self.head(record.agent) is record and now - record.staged > HEAD_LIMIT_S:
            self._end(record, Input.EXPIRE, HEAD_EXPIRED)

    def _accepted(self, record: TaskRecord) -> None:
        # It may have been cancelled while this was written.
        if record.status is Status.ACCEPTED:
            self._enqueue(record)
            self.on_notice(record)
            self.on_queued(record.agent)

    def _taken(self, record: TaskRecord) -> None:
        self.on_taken(record)
        if self._table.find(record.agent, Role.RECEIVED, record.task_id) is not record:
            return
        if record.status is Status.NEW and self.is_served(record.agent):
            # The worker program came while the task was being written.
            self.accept_waiting(record.agent)
        else:
            self._accepted(record)

    def _check_new(self, record: TaskRecord, now: float) -> None:
        if record.status is not Status.NEW:
            raise already(record)
        if now - record.created > ACCEPT_LIMIT_S:
            raise Expired(
                f"task {record.task_id} has expired"
                " (accept deadline was 1 minute after creation)"
            )

    def _move(
        self,
        record: TaskRecord,
        event: Input,
        justification: str,
        fields: Mapping[str, Any],
        content: bytes | None = None,
    ) -> asyncio.Future[None]:
        done = self._change(record, event, justification, fields, content)
        if done is None:
            reason = _REFUSED.get(event, "is already {}").format(record.status)
            raise InvalidState(f"task {record.task_id} {reason}")
        return done

    def _change(
        self,
        record: TaskRecord,
        event: Input,
        justification: str,
        fields: Mapping[str, Any],
        content: bytes | None = None,
    ) -> asyncio.Future[None] | None:
        done = self._table.change(
            record, event, justification, content=content, **fields
        )
        if done is not None:
            self._dequeue(record)
            done.add_done_callback(functools.partial(self._changed, record))
        return done

    def _changed(self, record: TaskRecord, done: asyncio.Future[None]) -> None:
        """Queue a task again that did not leave after all: the store refused it."""
        if not done.cancelled() and done.exception() is not None:
            self._enqueue(record, first=True)

    def _end(
        self, record: TaskRecord, event: Input, justification: str, **fields: object
    ) -> None:
        """End a task by a time limit; our submitters are told, official ones not."""
        fields["pending"] = Pending.STATUS
        done = self._change(record, event, justification, fields)
        if done is not None:
            when_done(done, lambda: self.on_pending(record))

    def _expire(self, record: TaskRecord) -> None:
        is_executing = record.status is Status.EXECUTING
        self._end(record, Input.EXPIRE, OVERDUE)
        if is_executing:
            self.on_cancel(record)

    def _give_up(self, record: TaskRecord) -> None:
        if record.status in FINAL:
            self._table.set(record, pending=Pending.NOTHING)
        else:
            self._end(record, Input.CANCEL, TOO_OLD)
            self.on_cancel(record)

    def _enqueue(self, record: TaskRecord, *, first: bool = False) -> None:
        if record.status is not Status.ACCEPTED:
            return
        queue = self._queues.setdefault(record.agent, TaskQueue())
        queue.put(record, wall=self._wall(), first=first)

    def _dequeue(self, record: TaskRecord) -> None:
        queue = self._queues.get(record.agent)
        if queue is not None:
            queue.remove(record, wall=self._wall())
            if not queue:
                del self._queues[record.agent]


def already(record: TaskRecord) -> InvalidState:
    """Return the error for what can be done with a new or open task only."""
    return InvalidState(f"task {record.task_id} is already {record.status}")


def received_record(
    agent: str, peer: int, message: Submit, *, now: float
) -> TaskRecord:
    """Return the record of a task that arrives."""
    return TaskRecord(
        agent=agent,
        role=Role.RECEIVED,
        task_id=message.task_id,
        peer=peer,
        from_addr=message.from_addr[:64],
        to_addr=message.to_addr[:64],
        description=message.task_description,
        created=now,
        priority=min(max(message.priority, -MAX_PRIORITY), MAX_PRIORITY),
        deadline=now + min(message.deadline_ms, MAX_MS) / 1000
        if message.deadline_ms > 0
        else 0.0,
    )


def _refusal(record: TaskRecord) -> str | None:
    size = len(record.description.encode(errors="replace"))
    if size > MAX_DESCRIPTION:
        return f"submit: task_description {size} > {MAX_DESCRIPTION} bytes"
    return None


def _ms(start: float, end: float) -> int:
    return max(0, int((end - start) * 1000)) if start else 0
