"""The submitter's side of tasks: what its own record does, and when."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    AlreadyExists,
    DecodeError,
    InvalidArgument,
    PilotError,
    StorageError,
    TimedOut,
)
from pilotfleet.protocol.services.tasks import (
    ACCEPTED_STATUS,
    MAX_DESCRIPTION,
    MAX_FILENAME,
    MAX_RESULT_TEXT,
    MAX_TEXT,
    REJECTED_STATUS,
    Results,
    StatusUpdate,
    SubmitResponse,
    base_name,
    is_task_id,
)
from pilotfleet.protocol.services.taskstate import (
    FINAL,
    Input,
    Role,
    Status,
    next_status,
    report_input,
)
from pilotfleet.services.tasks.record import (
    ACCEPT_LIMIT_S,
    LONGEST_S,
    MAX_MS,
    NO_RESPONSE,
    OVERDUE,
    Pending,
    TaskKey,
    TaskRecord,
)
from pilotfleet.services.tasks.table import when_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pilotfleet.protocol.services.receipts import SignedReceipt
    from pilotfleet.services.polo.receipts import Receipts
    from pilotfleet.services.tasks.table import TaskTable

__all__ = ["Submitted"]

# From the specification (section 3.1), the longer one that it allows.
STALL_LIMIT_S: Final = 3600.0
STALLED: Final = "receiver did not return results within stall window"
COMPLETED: Final = "Task completed with results"
TOO_OLD: Final = "no results within a week"

Done = asyncio.Future[None]


class Submitted:
    """The records of tasks that agents of this host gave to others."""

    def __init__(
        self, table: TaskTable, receipts: Receipts, *, wall: Callable[[], float]
    ) -> None:
        self._table = table
        self._receipts = receipts
        self._wall = wall
        self._waiters: dict[TaskKey, asyncio.Future[SubmitResponse]] = {}
        self._arriving: dict[TaskKey, TaskRecord] = {}
        """Tasks whose results are being written."""
        self.is_held: Callable[[TaskRecord], bool] = lambda record: False
        """Whether a submission waits in our own queues for its turn to be sent."""
        self.on_pending: Callable[[TaskRecord], None] = lambda record: None
        """Called when the worker has to be told something."""
        self.on_update: Callable[[TaskRecord, bytes], None] = lambda record, text: None
        """Called after a change is durable; the second argument is the result."""
        self.on_asked_again: Callable[[TaskRecord, bytes], None] = self.on_update
        """Called when a task is submitted again that has ended long since."""
        self.on_settled: Callable[[TaskRecord], None] = lambda record: None
        """Called when nothing more is expected from the worker."""
        self.on_receipt: Callable[[TaskRecord, SignedReceipt], None] = (
            lambda record, receipt: None
        )
        """Called when a receipt is on the disk and may go to the registry."""

    def find(self, agent: str, task_id: str) -> TaskRecord | None:
        """Return an open submitted task."""
        return self._table.find(agent, Role.SUBMITTED, task_id)

    async def submit(self, record: TaskRecord) -> None:
        """Keep a new task and start its delivery. Durable when it returns.

        The same task again, to the same worker, is not an error: a caller that lost
        the answer may repeat the call. If it has ended, watchers are told again how.

        Raises:
            AlreadyExists: The id stands for another task.
            Busy: Too many open tasks.
        """
        _check(record)
        if self.find(record.agent, record.task_id) is None:
            record.pending = Pending.SUBMIT
            added = self._table.add(record)
            when_done(added, lambda: self._added(record))
            if await asyncio.shield(added):
                return
        await self._submit_again(record)

    async def submit_all(self, records: Sequence[TaskRecord]) -> dict[str, PilotError]:
        """Do the same for many tasks in one write; return what was wrong, by task."""
        errors: dict[str, PilotError] = {}
        new: list[TaskRecord] = []
        again: list[TaskRecord] = []
        for record in records:
            try:
                _check(record)
                if self.find(record.agent, record.task_id) is None:
                    record.pending = Pending.SUBMIT
                    self._table.take(record)
                    new.append(record)
                else:
                    again.append(record)
            except PilotError as error:
                errors[record.task_id] = error
        if new:
            kept = self._table.keep(new)
            when_done(kept, lambda: self._all_added(new))
            try:
                are_new = await asyncio.shield(kept)
            except StorageError as error:
                errors |= {record.task_id: error for record in new}
            else:
                found = zip(new, are_new, strict=True)
                again += [record for record, is_new in found if not is_new]
        for record in again:
            try:
                await self._submit_again(record)
            except PilotError as error:
                errors[record.task_id] = error
        return errors

    async def _submit_again(self, record: TaskRecord) -> None:
        """Look whether a task that is known is the one that is submitted."""
        # The store answers after all earlier writes, so a record in it is durable.
        known = await self._table.store.get(record.key)
        if known is None or not record.is_repeat_of(known):
            raise AlreadyExists(f"task {record.task_id} exists already")
        if known.status in FINAL:
            # Who asks again has not heard of the end; nothing else would tell of it.
            content = await self._table.store.result(known.key)
            self.on_asked_again(known, content or b"")

    async def submit_and_wait(self, record: TaskRecord) -> SubmitResponse:
        """Submit a task and wait for the worker's answer; a refused one is forgotten.

        Raises:
            PilotError: The worker's node could not be reached; nothing is kept.
        """
        waiter: asyncio.Future[SubmitResponse] = (
            asyncio.get_running_loop().create_future()
        )
        if self.find(record.agent, record.task_id) is None:
            self._waiters[record.key] = waiter
        try:
            await self.submit(record)
            if not waiter.done() and not self._is_open(record):
                text = "task is known already"
                return SubmitResponse(record.task_id, ACCEPTED_STATUS, text)
            return await waiter
        except asyncio.CancelledError:
            self._withdraw(record)
            raise
        finally:
            if self._waiters.get(record.key) is waiter:
                del self._waiters[record.key]

    def is_awaited(self, record: TaskRecord) -> bool:
        """Return whether a caller waits for the worker's answer."""
        return record.key in self._waiters

    def delivery_failed(self, record: TaskRecord, error: PilotError) -> None:
        """Note that a task could not be delivered; a waiting caller is told."""
        waiter = self._waiters.get(record.key)
        if waiter is not None and not waiter.done():
            self._withdraw(record)
            waiter.set_exception(error)
        elif record.deliver_by <= self._wall():
            self._end(record, Input.EXPIRE, f"not delivered: {error}", retryable=True)

    def take_response(
        self, agent: str, peer: int, message: SubmitResponse
    ) -> TaskRecord | None:
        """Apply the worker's answer to a submission; return the task if it is known."""
        record = self._known(agent, peer, message.task_id)
        if record is None or record.pending is not Pending.SUBMIT:
            return record
        waiter = self._waiters.get(record.key)
        if message.is_accepted:
            # Not waited for: after a crash the task is sent and answered again.
            self._table.set_soon(
                record, pending=Pending.NOTHING, delivered=self._wall()
            )
        elif waiter is not None:
            self._withdraw(record)
        else:
            self._end(record, Input.DECLINE, message.message)
        if waiter is not None and not waiter.done():
            waiter.set_result(message)
        return record

    async def take_status(self, agent: str, peer: int, message: StatusUpdate) -> None:
        """Apply a report of the worker. An end is durable when it returns."""
        record = self._known(agent, peer, message.task_id)
        event = report_input(message.status)
        if record is None or event is None:
            return
        text = message.justification[:MAX_TEXT]
        fields: dict[str, object] = {}
        match event:
            case Input.ACCEPT:
                fields["accepted"] = self._wall()
            case Input.EXECUTE:
                fields["executing"] = self._wall()
            case Input.FAIL:
                fields["error"] = text
        done = self._move(record, event, text, fields)
        if done is not None and record.status in FINAL:
            await asyncio.shield(done)

    async def take_results(self, agent: str, peer: int, message: Results) -> str:
        """Keep the results of a task, once. Durable when it returns.

        Results of unknown tasks, of other nodes and repeats change nothing. Returns
        our signature under the receipt, if there is one.
        """
        record = self._known(agent, peer, message.task_id)
        if record is None:
            record = await self._late(agent, peer, message.task_id)
        if record is None:
            return ""
        event = Input.FAIL if message.status == Status.FAILED else Input.SUCCEED
        try:
            kind, name, content = _content(message)
        except DecodeError as error:
            event, kind, name, content = Input.FAIL, "", "", b""
            message = Results(message.task_id, error=str(error))
        if next_status(Role.SUBMITTED, record.status, event) is None:
            return await self._receipts.signature_of(record)
        text = message.error[:MAX_TEXT]
        fields: dict[str, Any] = {
            "result_type": kind,
            "result_name": name,
            "result_size": len(content),
            "error": text,
            "retryable": message.retryable,
            "completed": self._wall(),
            "idle_ms": _clamped(message.time_idle_ms),
            "staged_ms": _clamped(message.time_staged_ms),
            "cpu_ms": _clamped(message.time_cpu_ms),
            "pending": Pending.NOTHING,
        }
        reason = COMPLETED if event is Input.SUCCEED else text or "task failed"
        receipt = None
        if event is Input.SUCCEED:
            receipt = self._receipts.co_sign(record, message, content)
        await self._keep_results(record, event, reason, fields, content, receipt)
        return "" if receipt is None else receipt.submitter_signature

    async def cancel(self, record: TaskRecord) -> None:
        """End a task that nobody wants any more. One that has ended stays as it is."""
        done = self._call_off(record, Input.CANCEL, "Task cancelled by submitter")
        if done is not None:
            await asyncio.shield(done)

    def told(self, agent: str, task_id: str) -> None:
        """Note that the worker knows of a cancellation."""
        record = self.find(agent, task_id)
        if record is not None and record.pending is Pending.CANCEL:
            self._table.set(record, pending=Pending.NOTHING)

    def prolong(self, records: Iterable[TaskRecord], lost_s: float) -> None:
        """Give deliveries the time back in which this process had no turn."""
        for record in records:
            if record.pending is Pending.SUBMIT:
                record.deliver_by += lost_s

    def check_limits(self, record: TaskRecord) -> None:
        """Apply the time limits to one open task."""
        now = self._wall()
        if now - record.created > LONGEST_S:
            self._give_up(record)
        elif record.is_overdue(now) and record.status not in FINAL:
            # Told to the worker as well: its clock may have stood still.
            self._call_off(record, Input.EXPIRE, OVERDUE)
        elif record.pending is Pending.SUBMIT:
            if now > record.deliver_by and not self.is_held(record):
                error = TimedOut(f"node {record.peer} does not answer")
                self.delivery_failed(record, error)
        elif record.status is Status.NEW:
            late = record.delivered and now - record.delivered > ACCEPT_LIMIT_S
            if late:
                self._end(record, Input.CANCEL, NO_RESPONSE, retryable=True)
        elif record.status is Status.ACCEPTED and now - record.accepted > STALL_LIMIT_S:
            self._end(record, Input.EXPIRE, STALLED, retryable=True)

    async def _keep_results(
        self,
        record: TaskRecord,
        event: Input,
        reason: str,
        fields: dict[str, Any],
        content: bytes,
        receipt: SignedReceipt | None,
    ) -> None:
        if receipt is not None:
            fields["also"] = self._receipts.keeping(record, receipt)
        done = self._move(record, event, reason, fields, content)
        assert done is not None, "the caller looked whether it may move"
        self._arriving[record.key] = record
        done.add_done_callback(lambda _: self._arriving.pop(record.key, None))
        if receipt is not None:
            when_done(done, lambda: self.on_receipt(record, receipt))
        await asyncio.shield(done)

    def _known(self, agent: str, peer: int, task_id: str) -> TaskRecord | None:
        record = self.find(agent, task_id)
        return record if record is not None and record.peer == peer else None

    async def _late(self, agent: str, peer: int, task_id: str) -> TaskRecord | None:
        """Find a task that this side has given up but whose results still count."""
        key = TaskKey(agent, Role.SUBMITTED, task_id)
        record = await self._table.store.get(key)
        # Two sessions may bring the results at once: the second to come finds what
        # the first has made of the task, which the store may not have known.
        record = self._arriving.get(key, record)
        is_ours = record is not None and record.peer == peer
        return record if is_ours else None

    def _withdraw(self, record: TaskRecord) -> None:
        """Forget a task that was never delivered."""
        if record.pending is Pending.SUBMIT and self._is_open(record):
            self._table.remove(record)
            record.pending = Pending.NOTHING
            self.on_settled(record)

    def _call_off(self, record: TaskRecord, event: Input, reason: str) -> Done | None:
        """End a task and stop the worker."""
        # A submission that is on its way right now is cancelled when it is answered.
        sent = record.pending is not Pending.SUBMIT
        pending = Pending.CANCEL if sent else Pending.NOTHING
        done = self._move(record, event, reason, {"pending": pending})
        if done is not None and sent:
            when_done(done, lambda: self.on_pending(record))
        return done

    def _give_up(self, record: TaskRecord) -> None:
        if record.status in FINAL:
            self._table.set(record, pending=Pending.NOTHING)
        else:
            self._end(record, Input.EXPIRE, TOO_OLD)

    def _end(
        self,
        record: TaskRecord,
        event: Input,
        justification: str,
        *,
        retryable: bool = False,
    ) -> None:
        fields = {"pending": Pending.NOTHING, "retryable": retryable}
        self._move(record, event, justification, fields)

    def _move(
        self,
        record: TaskRecord,
        event: Input,
        justification: str,
        fields: Mapping[str, Any],
        content: bytes | None = None,
    ) -> Done | None:
        done = self._table.change(
            record, event, justification, content=content, **fields
        )
        if done is None:
            return None
        if record.status in FINAL:
            self._answer_waiter(record)
            self.on_settled(record)
        when_done(done, lambda: self.on_update(record, content or b""))
        return done

    def _answer_waiter(self, record: TaskRecord) -> None:
        """Let go of a caller whose task ended before its submission was answered."""
        waiter = self._waiters.get(record.key)
        if waiter is not None and not waiter.done():
            was_taken = record.status in (Status.SUCCEEDED, Status.FAILED)
            status = ACCEPTED_STATUS if was_taken else REJECTED_STATUS
            text = record.justification
            waiter.set_result(SubmitResponse(record.task_id, status, text))

    def _all_added(self, records: Sequence[TaskRecord]) -> None:
        for record in records:
            self._added(record)

    def _added(self, record: TaskRecord) -> None:
        if self._is_open(record):
            self.on_pending(record)

    def _is_open(self, record: TaskRecord) -> bool:
        return self.find(record.agent, record.task_id) is record


def _check(record: TaskRecord) -> None:
    if not is_task_id(record.task_id):
        raise InvalidArgument(
            f"task id {record.task_id[:80]!r} is not 1 to 64 of A-Z a-z 0-9 -"
        )
    size = len(record.description.encode(errors="replace"))
    if size > MAX_DESCRIPTION:
        raise InvalidArgument(
            f"submit: task_description {size} > {MAX_DESCRIPTION} bytes"
        )


def _clamped(time_ms: int) -> int:
    """Bound a time that is the worker's claim, and may be any integer."""
    return min(max(time_ms, 0), MAX_MS)


def _content(message: Results) -> tuple[str, str, bytes]:
    """Return type, file name and bytes of a result.

    Raises:
        DecodeError: It is over a limit, or the file is not base64.
    """
    if message.result_type == "file" and message.file_data:
        if len(message.filename.encode(errors="replace")) > MAX_FILENAME:
            raise DecodeError(f"results: filename over {MAX_FILENAME} bytes")
        try:
            data = base64.b64decode(message.file_data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DecodeError(f"results: file_data is not base64: {error}") from error
        return "file", base_name(message.filename), data
    text = message.result_text.encode(errors="replace")
    if len(text) > MAX_RESULT_TEXT:
        raise DecodeError(f"results: result_text {len(text)} > {MAX_RESULT_TEXT} bytes")
    return "text", "", text
