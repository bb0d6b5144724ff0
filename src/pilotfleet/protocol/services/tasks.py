"""Frames of the task service (tasks-and-polo.md section 2) and of our task session.

A frame is a type, a length and JSON. On the official port 1003 a connection
carries one frame and is closed by the receiver; a SUBMIT is answered by one frame
of the same type. On our port 1010 the same frames flow in both directions, any
number per write, and three types are added: ACK, CANCEL and PING. Fields that only
our nodes write are left out when they say nothing, so a port-1003 frame is byte for
byte what the official program writes.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar

import msgspec

from pilotfleet.errors import DecodeError, InvalidArgument

__all__ = [
    "ACCEPTED_STATUS",
    "MAX_DESCRIPTION",
    "MAX_FILENAME",
    "MAX_FRAME",
    "MAX_PRIORITY",
    "MAX_RESULT_TEXT",
    "MAX_SENT_FILE",
    "MAX_TEXT",
    "REJECTED_STATUS",
    "SESSION_PORT",
    "TASK_PORT",
    "Ack",
    "Cancel",
    "FrameType",
    "Message",
    "Ping",
    "Results",
    "StatusUpdate",
    "Submit",
    "SubmitResponse",
    "TaskFrameDecoder",
    "base_name",
    "decode_message",
    "encode_frame",
    "encode_message",
    "format_task_id",
    "is_task_id",
    "refusal_of",
]

# From the specification.
TASK_PORT: Final = 1003
MAX_FRAME: Final = 16_777_216
MAX_DESCRIPTION: Final = 16_384
"""Bytes of UTF-8."""
MAX_RESULT_TEXT: Final = 1_048_576
"""Bytes of UTF-8."""
MAX_FILENAME: Final = 256
ACCEPTED_STATUS: Final = 200
REJECTED_STATUS: Final = 400

# Ours.
SESSION_PORT: Final = 1010
"""Where a pilotfleet node accepts task sessions; refused by any other node."""
MAX_SENT_FILE: Final = (MAX_FRAME - 65_536) // 4 * 3
"""Longest file that fits a frame as base64, beside the other fields: 12 MiB. The
specification's limit of 15 MiB lies beyond what a frame can hold."""
MAX_PRIORITY: Final = 100
"""Priorities lie between minus this and this; the higher one is done first."""
MAX_TEXT: Final = 4_096
"""Justifications, messages and errors are cut to this many characters."""

_HEADER: Final = struct.Struct("!II")
_TASK_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


class FrameType(IntEnum):
    """The first number of a frame."""

    SUBMIT = 1
    RESULT = 2
    """A legacy shape that nobody sends."""
    STATUS_UPDATE = 3
    SEND_RESULTS = 4
    ACK = 5
    """Session only."""
    CANCEL = 6
    """Session only."""
    PING = 7
    """Session only."""


class Submit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task on its way from submitter to worker."""

    task_id: str
    task_description: str
    from_addr: str = ""
    to_addr: str = ""
    priority: int = 0
    """Session only."""
    deadline_ms: int = 0
    """Session only: how long it may still take; 0 for as long as it likes."""
    patient: bool = False
    """Session only: nobody waits for the answer, which may come with the result."""


class SubmitResponse(msgspec.Struct, frozen=True):
    """Whether the worker's node stored the task; accepting comes later."""

    task_id: str
    status: int
    message: str = ""

    @property
    def is_accepted(self) -> bool:
        """True when the worker's node keeps the task."""
        return self.status == ACCEPTED_STATUS


class StatusUpdate(msgspec.Struct, frozen=True):
    """The worker tells how far the task is."""

    task_id: str
    status: str
    justification: str = ""


class Results(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a task, from worker to submitter."""

    task_id: str
    result_type: str = ""
    result_text: str = ""
    filename: str = ""
    file_data: str = ""
    """Standard base64."""
    completed_at: str = ""
    time_idle_ms: int = 0
    time_staged_ms: int = 0
    time_cpu_ms: int = 0
    status: str = ""
    """Session only: ``FAILED``; empty means SUCCEEDED."""
    error: str = ""
    """Session only: why it failed."""
    retryable: bool = False
    """Session only: the task itself is not to blame; another worker may succeed."""
    completed_unix: int = 0
    """Session only, as are the next two: the facts of the receipt that are not in
    other fields."""
    reward: int = 0
    receipt: str = ""
    """The worker's signature under the receipt, in base64."""


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """The receiver has stored a frame (session only)."""

    task_id: str
    of: int = FrameType.SEND_RESULTS
    """The type of the acknowledged frame."""
    receipt: str = ""
    """For results: the submitter's signature under the receipt, in base64."""


class Cancel(msgspec.Struct, frozen=True):
    """The submitter wants no result any more (session only)."""

    task_id: str


class Ping(msgspec.Struct, frozen=True):
    """Asks whether the peer is alive; an ACK answers it (session only)."""

    task_id: str = "ping"


Message: TypeAlias = (
    Submit | SubmitResponse | StatusUpdate | Results | Ack | Cancel | Ping
)

_TYPES: Final[dict[type[Message], FrameType]] = {
    Submit: FrameType.SUBMIT,
    SubmitResponse: FrameType.SUBMIT,
    StatusUpdate: FrameType.STATUS_UPDATE,
    Results: FrameType.SEND_RESULTS,
    Ack: FrameType.ACK,
    Cancel: FrameType.CANCEL,
    Ping: FrameType.PING,
}


class _SubmitOrResponse(msgspec.Struct):
    """Type 1 names two messages; only the response has a status."""

    task_id: str
    task_description: str = ""
    from_addr: str = ""
    to_addr: str = ""
    priority: int = 0
    deadline_ms: int = 0
    patient: bool = False
    status: int | None = None
    message: str = ""


_encoder: Final = msgspec.json.Encoder()
_Decoded = TypeVar("_Decoded")
_submit_decoder: Final = msgspec.json.Decoder(_SubmitOrResponse)
_status_decoder: Final = msgspec.json.Decoder(StatusUpdate)
_results_decoder: Final = msgspec.json.Decoder(Results)
_ack_decoder: Final = msgspec.json.Decoder(Ack)
_cancel_decoder: Final = msgspec.json.Decoder(Cancel)
_ping_decoder: Final = msgspec.json.Decoder(Ping)


class TaskFrameDecoder:
    """Cuts a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take bytes and return the frames that are complete now.

        Raises:
            DecodeError: A frame states a length over the limit.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            frame_type, length = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME:
                raise DecodeError(f"task frame of {length} bytes > {MAX_FRAME}")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((frame_type, bytes(buffer[start + _HEADER.size : end])))
            start = end
        if start:
            del buffer[:start]
        return frames


def encode_frame(frame_type: int, body: bytes) -> bytes:
    """Return type, length and body.

    Raises:
        InvalidArgument: The body is longer than a frame may be.
    """
    if len(body) > MAX_FRAME:
        raise InvalidArgument(f"task frame of {len(body)} bytes > {MAX_FRAME}")
    return _HEADER.pack(frame_type, len(body)) + body


def encode_message(message: Message) -> bytes:
    """Return the frame of a message."""
    body = _encoder.encode(message)
    # The official programs write these three escaped. They occur inside strings only.
    if b"<" in body or b">" in body or b"&" in body:
        body = body.replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
        body = body.replace(b"&", b"\\u0026")
    return encode_frame(_TYPES[type(message)], body)


def decode_message(frame_type: int, body: bytes) -> Message:
    """Read the message of a frame; unknown fields are ignored.

    Raises:
        DecodeError: Unknown type, invalid JSON, a task id that is not allowed.
    """
    message = _decode(frame_type, body)
    if _TASK_ID.fullmatch(message.task_id) is None:
        raise DecodeError(f"task id {message.task_id[:64]!r} is not allowed")
    return message


def is_task_id(text: str) -> bool:
    """Return whether a task may have this id: it must be safe as a file name."""
    return _TASK_ID.fullmatch(text) is not None


def refusal_of(frame_type: int, body: bytes, reason: str) -> SubmitResponse | None:
    """Return the answer to a SUBMIT whose task id is not allowed.

    None for any other frame that cannot be read: those are not answered.
    """
    if frame_type != FrameType.SUBMIT:
        return None
    try:
        message = _decode(frame_type, body)
    except DecodeError:
        return None
    if not isinstance(message, Submit):
        return None
    return SubmitResponse(message.task_id[:64], REJECTED_STATUS, reason)


def format_task_id(random: bytes) -> str:
    """Return 16 random bytes in the form that the official client makes."""
    digits = random.hex()
    cuts = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in pairwise(cuts))


def base_name(filename: str) -> str:
    """Return the last part of a file name, safe to use below our directory."""
    name = re.split(r"[/\\\0]", filename)[-1].strip()
    cut = name.encode(errors="ignore")[:MAX_FILENAME].decode(errors="ignore")
    return "result" if cut in ("", ".", "..") else cut


def _decode(frame_type: int, body: bytes) -> Message:
    match frame_type:
        case FrameType.SUBMIT:
            return _split(_read(_submit_decoder, body))
        case FrameType.STATUS_UPDATE:
            return _read(_status_decoder, body)
        case FrameType.SEND_RESULTS:
            return _read(_results_decoder, body)
        case FrameType.ACK:
            return _read(_ack_decoder, body)
        case FrameType.CANCEL:
            return _read(_cancel_decoder, body)
        case FrameType.PING:
            return _read(_ping_decoder, body)
    raise DecodeError(f"task frame of unknown type {frame_type}")


def _read(decoder: msgspec.json.Decoder[_Decoded], body: bytes) -> _Decoded:
    try:
        return decoder.decode(body)
    # Deep nesting in a field that we ignore ends as RecursionError.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"task frame is not valid: {error}") from error


def _split(both: _SubmitOrResponse) -> Submit | SubmitResponse:
    if both.status is not None:
        return SubmitResponse(both.task_id, both.status, both.message[:MAX_TEXT])
    return Submit(
        both.task_id,
        both.task_description,
        both.from_addr,
        both.to_addr,
        both.priority,
        both.deadline_ms,
        both.patient,
    )
