"""Frames of data exchange on port 1001 (services.md section 4).

A frame is a type and a payload, in both directions::

    u32 type | u32 length | payload

Each frame of the sender is answered by one frame, in order. Messages and files
are answered by a TEXT frame that begins with ``ACK`` or ``ERR``; the payload of
FILESTREAM frames is the subject of :mod:`pilotfleet.protocol.services.filestream`.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from pilotfleet.errors import DecodeError, InvalidArgument

__all__ = [
    "DATA_EXCHANGE_PORT",
    "MAX_FILENAME",
    "MAX_FRAME",
    "MAX_MAX_FRAME",
    "MAX_MESSAGE_ID",
    "MAX_TAGS",
    "MESSAGE_ID_SIZE",
    "MESSAGE_TYPES",
    "MIN_MAX_FRAME",
    "STORED_TYPES",
    "Answer",
    "FilePayload",
    "Frame",
    "FrameDecoder",
    "FrameType",
    "Tagged",
    "Tags",
    "Trace",
    "TraceAnswer",
    "ack_text",
    "decode_file",
    "decode_tagged",
    "decode_trace",
    "decode_trace_answer",
    "duplicate_text",
    "encode_file",
    "encode_frame",
    "encode_tagged",
    "encode_trace",
    "encode_trace_answer",
    "failure_text",
    "is_filename",
    "is_message_id",
    "new_message_id",
    "parse_answer",
    "type_name",
    "unsupported_text",
]

# From the specification.
DATA_EXCHANGE_PORT: Final = 1001
MAX_FRAME: Final = 64 << 20
"""Longest payload, unless the receiver sets another limit."""
MIN_MAX_FRAME: Final = 65_536
MAX_MAX_FRAME: Final = (1 << 31) - 1
"""Limits of the limit."""
MAX_FILENAME: Final = 255
"""Bytes of UTF-8."""
MAX_TAGS: Final = 1024
"""Longest header of a tagged frame."""
MAX_MESSAGE_ID: Final = 128
MESSAGE_ID_SIZE: Final = 16
"""Random bytes of a new message ID."""

_HEADER: Final = struct.Struct("!II")
_NAME_SIZE: Final = struct.Struct("!H")
_TAGS_SIZE: Final = struct.Struct("!H")
_INNER_TYPE: Final = struct.Struct("!I")
_TRACE: Final = struct.Struct("!IQ")
_MESSAGE_ID: Final = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_MESSAGE_ID}}}", re.ASCII)
_DUPLICATE: Final = " (duplicate)"


class FrameType(IntEnum):
    """The first number of a frame."""

    TEXT = 1
    BINARY = 2
    JSON = 3
    FILE = 4
    TRACE = 5
    FILESTREAM = 7
    GOVERNED = 8
    """Refused; existed between official releases."""
    GOVERNED_FILESTREAM = 9
    """Refused as well."""
    TAGGED = 10


MESSAGE_TYPES: Final = frozenset({FrameType.TEXT, FrameType.BINARY, FrameType.JSON})
"""What goes to the inbox."""
STORED_TYPES: Final = MESSAGE_TYPES | {FrameType.FILE}
"""What is answered by an ACK once it is stored."""

_NAMES: Final = {int(frame_type): frame_type.name for frame_type in FrameType}
_UNKNOWN_TAGGED: Final = f"UNKNOWN({FrameType.TAGGED})"
"""What receivers before 1.13.10 call type 10."""


def type_name(frame_type: int) -> str:
    """Return what answers call a frame type, such as ``TEXT`` or ``UNKNOWN(6)``."""
    return _NAMES.get(frame_type) or f"UNKNOWN({frame_type})"


# Frames.


class Frame(NamedTuple):
    """A type, perhaps one that nobody knows, and its payload."""

    type: int
    payload: bytes


def encode_frame(
    frame_type: int, *parts: bytes | memoryview, max_frame: int = MAX_FRAME
) -> bytes:
    """Return the frame whose payload is the parts in a row.

    Raises:
        InvalidArgument: The payload is longer than ``max_frame``.
    """
    length = sum(map(len, parts))
    if length > max_frame:
        raise InvalidArgument(f"frame of {length} bytes (max {max_frame})")
    return b"".join((_HEADER.pack(frame_type, length), *parts))


class FrameDecoder:
    """Cuts one direction of a connection into frames.

    Memory grows with what arrives, never with what a frame declares.
    """

    __slots__ = ("_buffer", "_max_frame")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._max_frame = max_frame

    @property
    def buffered(self) -> int:
        """Bytes of the incomplete frame at the end."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes and return the frames that are complete now.

        Raises:
            DecodeError: A frame declares more than the limit; nothing that follows
                can be understood. Frames before it are returned first: then the
                next call raises.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            frame_type, length = _HEADER.unpack_from(buffer, start)
            if length > self._max_frame:
                if frames:
                    break
                raise DecodeError(f"frame of {length} bytes (max {self._max_frame})")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            # A view, so that a payload of many megabytes is copied once.
            with memoryview(buffer) as view:
                frames.append(
                    Frame(frame_type, bytes(view[start + _HEADER.size : end]))
                )
            start = end
        if start:
            del buffer[:start]
        return frames


# Files.


class FilePayload(NamedTuple):
    """What a FILE frame holds."""

    name: str | None
    """None when the payload has no name; then nothing is stored."""
    data: memoryview
    """A view into the payload."""


def is_filename(name: str) -> bool:
    """Return whether a FILE frame may carry this name."""
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        return False
    try:
        return len(name.encode()) <= MAX_FILENAME
    except UnicodeEncodeError:
        return False


def encode_file(name: str, data: bytes) -> bytes:
    """Return the payload of a FILE frame.

    Raises:
        InvalidArgument: The name is not a plain file name of at most 255 bytes.
    """
    if not is_filename(name):
        raise InvalidArgument(f"file name {name!r} cannot be sent; rename the file")
    encoded = name.encode()
    return b"".join((_NAME_SIZE.pack(len(encoded)), encoded, data))


def decode_file(payload: bytes) -> FilePayload:
    """Read the payload of a FILE frame.

    A payload too short for its name is valid and has no name: the official
    receiver then counts all of it as data and stores nothing.

    Raises:
        DecodeError: The name is not allowed (services.md section 4.2).
    """
    view = memoryview(payload)
    if len(payload) < _NAME_SIZE.size:
        return FilePayload(None, view)
    (size,) = _NAME_SIZE.unpack_from(payload)
    end = _NAME_SIZE.size + size
    if end > len(payload):
        return FilePayload(None, view)
    if size == 0:
        return FilePayload(None, view[end:])
    try:
        name = str(view[_NAME_SIZE.size : end], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError("file name is not UTF-8") from error
    if not is_filename(name):
        raise DecodeError(f"file name {name[:80]!r} is not allowed")
    return FilePayload(name, view[end:])


# Trace.


class Trace(NamedTuple):
    """A message that asks when each step happened."""

    inner_type: int
    sent_at_ns: int
    payload: bytes


class TraceAnswer(msgspec.Struct, frozen=True):
    """When each step happened, in nanoseconds since 1970; fields in wire order."""

    ack_sent_at_ns: int
    inbox_written_at_ns: int
    inner_ack: str
    received_at_ns: int
    sent_at_ns: int


_trace_decoder: Final = msgspec.json.Decoder(TraceAnswer)


def encode_trace(trace: Trace) -> bytes:
    """Return the payload of a TRACE frame."""
    return _TRACE.pack(trace.inner_type, trace.sent_at_ns) + trace.payload


def decode_trace(payload: bytes) -> Trace:
    """Read the payload of a TRACE frame.

    Raises:
        DecodeError: It is too short; the receiver answers the error's text behind
            ``ERR trace parse:``.
    """
    if len(payload) < _TRACE.size:
        raise DecodeError(f"trace payload too short: {len(payload)} bytes")
    inner_type, sent_at_ns = _TRACE.unpack_from(payload)
    return Trace(inner_type, sent_at_ns, payload[_TRACE.size :])


def encode_trace_answer(answer: TraceAnswer) -> bytes:
    """Return the payload of the JSON frame that answers a TRACE frame."""
    return msgspec.json.encode(answer)


def decode_trace_answer(payload: bytes) -> TraceAnswer:
    """Read the answer to a TRACE frame.

    Raises:
        DecodeError: It is not valid.
    """
    try:
        return _trace_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"trace answer is not valid: {error}") from error


# Message IDs.


class Tags(msgspec.Struct, frozen=True, omit_defaults=True):
    """The IDs that a tagged frame carries; empty means none."""

    message_id: str | None = None
    reply_to: str | None = None
    """The ``message_id`` of the message that this one answers."""


class Tagged(NamedTuple):
    """A frame inside a frame, with its IDs."""

    tags: Tags
    inner_type: int
    payload: bytes


_tags_encoder: Final = msgspec.json.Encoder()
_tags_decoder: Final = msgspec.json.Decoder(Tags | None)


def is_message_id(text: str) -> bool:
    """Return whether this may be a message ID (section 4.5)."""
    return _MESSAGE_ID.fullmatch(text) is not None


def new_message_id(random: bytes) -> str:
    """Return the message ID for 16 random bytes."""
    return random.hex()


def encode_tagged(tags: Tags, inner_type: int, payload: bytes) -> bytes:
    """Return the payload of a TAGGED frame.

    Raises:
        InvalidArgument: An ID is not allowed, or the inner type is TAGGED.
    """
    for value in (tags.message_id, tags.reply_to):
        if value and not is_message_id(value):
            raise InvalidArgument(
                f"message id {value[:80]!r} is not allowed",
                hint="1 to 128 characters out of A-Z a-z 0-9 - _ . :",
            )
    if inner_type == FrameType.TAGGED:
        raise InvalidArgument("a tagged frame cannot hold another one")
    header = _tags_encoder.encode(tags)
    return b"".join(
        (_TAGS_SIZE.pack(len(header)), header, _INNER_TYPE.pack(inner_type), payload)
    )


def decode_tagged(payload: bytes) -> Tagged:
    """Read the payload of a TAGGED frame.

    Raises:
        DecodeError: The header or an ID is not valid, or the inner type is TAGGED.
    """
    if len(payload) < _TAGS_SIZE.size:
        raise DecodeError(f"tagged payload too short: {len(payload)} bytes")
    (size,) = _TAGS_SIZE.unpack_from(payload)
    if not 1 <= size <= MAX_TAGS:
        raise DecodeError(f"tag header of {size} bytes (1 to {MAX_TAGS})")
    header_end = _TAGS_SIZE.size + size
    start = header_end + _INNER_TYPE.size
    if start > len(payload):
        raise DecodeError(f"tagged payload too short: {len(payload)} bytes")
    tags = _decode_tags(payload[_TAGS_SIZE.size : header_end])
    (inner_type,) = _INNER_TYPE.unpack_from(payload, header_end)
    if inner_type == FrameType.TAGGED:
        raise DecodeError("a tagged frame inside a tagged frame")
    return Tagged(tags, inner_type, payload[start:])


def _decode_tags(header: bytes) -> Tags:
    try:
        # The official receiver takes null for an empty object, and replaces what
        # is not UTF-8; an ID with a replaced character is refused below.
        tags = _tags_decoder.decode(header.decode(errors="replace")) or Tags()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"tag header is not valid: {error}") from error
    for value in (tags.message_id, tags.reply_to):
        if value and not is_message_id(value):
            raise DecodeError(f"message id {value[:80]!r} is not allowed")
    # An empty ID says the same as none.
    return Tags(tags.message_id or None, tags.reply_to or None)


# Answers.


class Answer(NamedTuple):
    """What a receiver said about a frame of type 1 to 4."""

    text: str
    """Everything it said, such as ``ACK TEXT 2 bytes``."""
    is_ok: bool
    """It has the message."""
    is_duplicate: bool = False
    """It had the message already."""
    is_tagging_unknown: bool = False
    """An old receiver that knows no type 10 and stored nothing: send the same
    frame untagged on the same connection."""


def ack_text(frame_type: int, size: int) -> str:
    """Return the text that says that a frame is stored.

    Args:
        frame_type: Of the frame; for a tagged frame the inner type.
        size: Length of the payload; for FILE of the data without the name.
    """
    return f"ACK {type_name(frame_type)} {size} bytes"


def duplicate_text(first: str) -> str:
    """Return the answer to a repeated frame; ``first`` is that to the first copy."""
    return first + _DUPLICATE


def failure_text(frame_type: int, reason: str) -> str:
    """Return the text that says that a frame is not stored."""
    return f"ERR {type_name(frame_type)} save failed: {reason}"


def unsupported_text(frame_type: int) -> str:
    """Return the answer to a frame of a type that is not accepted."""
    return failure_text(frame_type, f"unsupported frame type {frame_type}")


def parse_answer(frame: Frame) -> Answer:
    """Read the answer to a frame of type 1 to 4, tagged or not.

    Text that begins in no known way counts as failure.

    Raises:
        DecodeError: The frame is not a TEXT frame.
    """
    if frame.type != FrameType.TEXT:
        raise DecodeError(f"answer of type {type_name(frame.type)} instead of TEXT")
    text = frame.payload.decode(errors="replace")
    if text.startswith((f"ACK {_UNKNOWN_TAGGED}", f"ERR {_UNKNOWN_TAGGED}")):
        return Answer(text, is_ok=False, is_tagging_unknown=True)
    is_ok = text.startswith("ACK ")
    return Answer(text, is_ok, is_duplicate=is_ok and text.endswith(_DUPLICATE))
