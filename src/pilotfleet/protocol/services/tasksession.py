"""The task session of port 1010: frames both ways, acknowledged by task id.

Either node may open it; afterwards both ends are equal. A frame that must arrive
(SUBMIT, SEND_RESULTS, CANCEL, PING, and a STATUS_UPDATE that ends a task) stays in the
table of unacknowledged frames until the other side has stored it: a SUBMIT is
answered by a SUBMIT response, everything else by an ACK that names the type. The
owner looks at :attr:`TaskSession.waiting_since` to notice a peer that has stopped
answering, and on the end of a session sends again, on the next one, what was not
acknowledged. Receivers must therefore expect repeats. A STATUS_UPDATE that does not
end a task is not acknowledged.

Performs no I/O.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.services.tasks import (
    Ack,
    Cancel,
    FrameType,
    Message,
    Ping,
    Results,
    StatusUpdate,
    Submit,
    SubmitResponse,
    TaskFrameDecoder,
    decode_message,
    encode_message,
    refusal_of,
)
from pilotfleet.protocol.services.taskstate import FINAL

__all__ = ["WINDOW", "Key", "TaskSession", "key_of"]

WINDOW: Final = 256
"""Unacknowledged frames of one direction; more wait at the owner."""

_ACKNOWLEDGED: Final = frozenset(
    (
        FrameType.STATUS_UPDATE,
        FrameType.SEND_RESULTS,
        FrameType.CANCEL,
        FrameType.PING,
    )
)

Key: TypeAlias = tuple[FrameType, str]
"""What is acknowledged: frame type and task id."""


def key_of(message: Message) -> Key | None:
    """Return what acknowledges a message, or None when nothing does."""
    match message:
        case Submit():
            return FrameType.SUBMIT, message.task_id
        case Results():
            return FrameType.SEND_RESULTS, message.task_id
        case Cancel():
            return FrameType.CANCEL, message.task_id
        case Ping():
            return FrameType.PING, message.task_id
        case StatusUpdate() if message.status in FINAL:
            return FrameType.STATUS_UPDATE, message.task_id
    return None


class TaskSession:
    """One end of a session."""

    __slots__ = (
        "_decoder",
        "_unacknowledged",
        "_unsent",
        "unsent_bytes",
        "waiting_since",
    )

    def __init__(self) -> None:
        self._decoder = TaskFrameDecoder()
        self._unacknowledged: dict[Key, None] = {}
        self._unsent: list[bytes] = []
        self.unsent_bytes = 0
        """What :meth:`data_to_send` would return."""
        self.waiting_since: float | None = None
        """When the wait for an acknowledgement began, or last made progress."""

    @property
    def room(self) -> int:
        """How many more frames may be sent that want an acknowledgement."""
        return WINDOW - len(self._unacknowledged)

    def is_waiting_for(self, key: Key) -> bool:
        """Return whether a frame was sent and is not acknowledged yet."""
        return key in self._unacknowledged

    def send(self, message: Message, now: float) -> None:
        """Queue a message; the caller minds :attr:`room`."""
        key = key_of(message)
        if key is not None:
            self._unacknowledged[key] = None
            if self.waiting_since is None:
                self.waiting_since = now
        self._queue(message)

    def data_to_send(self) -> bytes:
        """Return what was queued since the last call, as one write."""
        unsent, self._unsent = self._unsent, []
        self.unsent_bytes = 0
        return unsent[0] if len(unsent) == 1 else b"".join(unsent)

    def receive_data(self, data: bytes, now: float) -> list[Message]:
        """Take bytes and return the messages that are complete now.

        An acknowledgement is returned only when it was waited for. A SUBMIT with an
        id that is not allowed is refused here and not returned.

        Raises:
            DecodeError: The peer broke the protocol; the session is over.
        """
        messages = []
        for frame_type, body in self._decoder.feed(data):
            message = self._decode(frame_type, body)
            if message is not None and self._settle(message, now):
                messages.append(message)
        return messages

    def _queue(self, message: Message) -> None:
        frame = encode_message(message)
        self._unsent.append(frame)
        self.unsent_bytes += len(frame)

    def _decode(self, frame_type: int, body: bytes) -> Message | None:
        try:
            return decode_message(frame_type, body)
        except DecodeError as error:
            refusal = refusal_of(frame_type, body, str(error))
            if refusal is None:
                raise
            self._queue(refusal)
            return None

    def _settle(self, message: Message, now: float) -> bool:
        """Note an acknowledgement; return whether the owner should see the message."""
        match message:
            case SubmitResponse():
                key = FrameType.SUBMIT, message.task_id
            case Ack() if message.of in _ACKNOWLEDGED:
                key = FrameType(message.of), message.task_id
            case Ack():
                return False
            case _:
                return True
        if key not in self._unacknowledged:
            return False
        del self._unacknowledged[key]
        self.waiting_since = now if self._unacknowledged else None
        return True
