"""Between task records and what is said about them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from msgspec import structs

from pilotfleet.protocol.services.tasks import (
    Ack,
    Cancel,
    FrameType,
    Message,
    Results,
    StatusUpdate,
    Submit,
    SubmitResponse,
)
from pilotfleet.protocol.services.taskstate import Status
from pilotfleet.services.tasks.record import Pending, rfc3339

if TYPE_CHECKING:
    from pilotfleet.protocol.services.tasksession import Key
    from pilotfleet.services.polo.receipts import Receipts
    from pilotfleet.services.tasks.record import TaskRecord

__all__ = [
    "acknowledged_key",
    "acknowledgement",
    "message_of",
    "official_messages",
    "session_message",
    "status_update",
]


def session_message(
    record: TaskRecord,
    content: bytes,
    receipts: Receipts,
    *,
    wall: float,
    patient: bool,
) -> Message | None:
    """Return what one of our own nodes has to be told; None for nothing.

    Args:
        record: The task.
        content: Its result.
        receipts: Sign for results.
        wall: The time.
        patient: Nobody waits for the answer to a submission.
    """
    message = message_of(record, content)
    match message:
        case Submit() if record.priority or record.deadline or patient:
            # What is left, and not a time: the two clocks may differ.
            left_ms = max(int((record.deadline - wall) * 1000), 1)
            return structs.replace(
                message,
                priority=record.priority,
                deadline_ms=left_ms if record.deadline else 0,
                patient=patient,
            )
        case Results():
            offer = receipts.offer(record, content)
            if offer is not None:
                return structs.replace(
                    message,
                    completed_unix=offer.receipt.completed_at,
                    reward=offer.receipt.reward,
                    receipt=offer.signature,
                )
    return message


def message_of(record: TaskRecord, content: bytes) -> Message | None:
    """Return what the other side still has to be told; None for nothing."""
    match record.pending:
        case Pending.SUBMIT:
            return Submit(
                task_id=record.task_id,
                task_description=record.description,
                from_addr=record.from_addr,
                to_addr=record.to_addr,
            )
        case Pending.STATUS:
            return status_update(record)
        case Pending.RESULTS:
            return _results(record, content)
        case Pending.CANCEL:
            return Cancel(record.task_id)
    return None


def official_messages(record: TaskRecord, content: bytes) -> list[Message]:
    """Return the same for an official peer.

    It knows no cancel, expects a status after the results (tasks-and-polo.md section
    3), and takes a failure only as a status, which it stores as it is.
    """
    message = message_of(record, content)
    if message is None or isinstance(message, Cancel):
        return []
    if not isinstance(message, Results):
        # Time limits run on both sides; the official one is told of no expiry.
        silent = record.status in (Status.CANCELLED, Status.EXPIRED)
        return [] if silent and record.pending is Pending.STATUS else [message]
    if record.status is Status.FAILED:
        return [status_update(record)]
    return [message, status_update(record)]


def status_update(record: TaskRecord) -> StatusUpdate:
    """Return how far a task is."""
    return StatusUpdate(record.task_id, str(record.status), record.justification)


def acknowledgement(record: TaskRecord) -> Ack:
    """Return what acknowledges the pending message of a record."""
    types = {
        Pending.STATUS: FrameType.STATUS_UPDATE,
        Pending.CANCEL: FrameType.CANCEL,
    }
    return Ack(record.task_id, types.get(record.pending, FrameType.SEND_RESULTS))


def acknowledged_key(message: Message) -> Key | None:
    """Return which sent frame a received message acknowledges."""
    match message:
        case SubmitResponse():
            return FrameType.SUBMIT, message.task_id
        case Ack():
            return FrameType(message.of), message.task_id
    return None


def _results(record: TaskRecord, content: bytes) -> Results:
    is_file = record.result_type == "file"
    failed = record.status is Status.FAILED
    return Results(
        task_id=record.task_id,
        result_type=record.result_type,
        result_text="" if is_file else content.decode(errors="replace"),
        filename=record.result_name,
        file_data=base64.b64encode(content).decode() if is_file else "",
        completed_at=rfc3339(record.completed),
        time_idle_ms=record.idle_ms,
        time_staged_ms=record.staged_ms,
        time_cpu_ms=record.cpu_ms,
        status=str(Status.FAILED) if failed else "",
        error=record.error if failed else "",
        retryable=record.retryable,
    )
