"""Frames of the event stream on port 1002 (services.md section 5).

A frame is a topic and a payload, each after its length, in both directions::

    u16 topic length | topic, UTF-8 | u32 payload length | payload

The first frame that a client sends subscribes it to the frame's topic; every
later one publishes. A broker forwards a publication as the same frame. Topics of
our extensions begin with a zero byte and our name, so that no publication means
one of them by accident; see :mod:`pilotfleet.protocol.services.eventoptions`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pilotfleet.errors import DecodeError, InvalidArgument

__all__ = [
    "CONFIRM_TOPIC",
    "EVENT_PORT",
    "GOVERNED_TOPIC",
    "MARK_TOPIC",
    "MAX_PAYLOAD",
    "MAX_TOPIC",
    "PUBLISHER_TOPIC",
    "Event",
    "EventDecoder",
    "check_topic",
    "encode_event",
    "is_reserved",
    "may_publish",
]

# From the specification.
EVENT_PORT: Final = 1002
MAX_TOPIC: Final = 1024
MAX_PAYLOAD: Final = 16 << 20
GOVERNED_TOPIC: Final = "\0pilot.governed.v1"
"""Reserved: a publication to it is dropped."""

# Of our choosing.
RESERVED_PREFIX: Final = "\0pilotfleet."
"""Topics that no publication may have and no pattern matches."""
MARK_TOPIC: Final = "\0pilotfleet.mark"
"""Frames of a broker that say how far a subscription has come."""
CONFIRM_TOPIC: Final = "\0pilotfleet.confirm"
"""Frames of a broker that say how many publications it has taken."""
PUBLISHER_TOPIC: Final = "\0pilotfleet.publisher"
"""What a connection that only publishes subscribes to, as it must subscribe.

With the topic it publishes to, as the official client does it, every publisher
of a fleet would receive the events of all the others.
"""

_TOPIC_SIZE: Final = struct.Struct("!H")
_PAYLOAD_SIZE: Final = struct.Struct("!I")


class Event(NamedTuple):
    """A topic and what was published to it.

    A named tuple: brokers make one for every frame.
    """

    topic: str
    payload: bytes


def is_reserved(topic: str) -> bool:
    """Tell whether a topic is one of our extensions, and never published."""
    return topic.startswith(RESERVED_PREFIX)


def may_publish(topic: str) -> bool:
    """Tell whether a broker passes publications to a topic on."""
    return topic != GOVERNED_TOPIC and not is_reserved(topic)


def check_topic(topic: str) -> bytes:
    """Return the bytes of a topic or pattern.

    Raises:
        InvalidArgument: It is longer than allowed, or has no UTF-8 form.
    """
    try:
        name = topic.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"topic {topic[:40]!r} is not valid text") from error
    if len(name) > MAX_TOPIC:
        raise InvalidArgument(f"topic of {len(name)} bytes (max {MAX_TOPIC})")
    return name


def encode_event(topic: str, payload: bytes = b"") -> bytes:
    """Return the frame of an event.

    Raises:
        InvalidArgument: The topic or the payload is longer than allowed, or the
            topic has no UTF-8 form.
    """
    name = check_topic(topic)
    if len(payload) > MAX_PAYLOAD:
        raise InvalidArgument(f"event of {len(payload)} bytes (max {MAX_PAYLOAD})")
    return b"".join(
        (_TOPIC_SIZE.pack(len(name)), name, _PAYLOAD_SIZE.pack(len(payload)), payload)
    )


class EventDecoder:
    """Takes the frames of one direction of a connection apart."""

    __slots__ = ("_buffer", "_error", "_offset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0
        self._error: DecodeError | None = None

    @property
    def unfinished_bytes(self) -> int:
        """Bytes kept of an event that is not complete yet."""
        return len(self._buffer)

    @property
    def error(self) -> DecodeError | None:
        """What is wrong with the bytes after the last event returned, if anything."""
        return self._error

    def feed(self, data: bytes) -> list[Event]:
        """Take received bytes and return the events that are now complete.

        What came whole before a broken frame is returned; the next call raises.

        Raises:
            DecodeError: A limit is exceeded or a topic is not UTF-8; nothing
                that follows can be understood.
        """
        if self._error is not None:
            raise self._error
        # Most reads end with an event, so mostly nothing has to be copied.
        if self._buffer:
            self._buffer += data
        buffer = self._buffer or data
        self._offset = 0
        events: list[Event] = []
        try:
            while (event := self._next(buffer)) is not None:
                events.append(event)
        except DecodeError as error:
            self._error = error
            self._buffer.clear()
            if not events:
                raise
            return events
        if buffer is self._buffer:
            # One move for all events of a read, not one for each.
            del self._buffer[: self._offset]
        else:
            self._buffer += memoryview(data)[self._offset :]
        return events

    def _next(self, buffer: bytes | bytearray) -> Event | None:
        start = self._offset
        available = len(buffer) - start
        if available < _TOPIC_SIZE.size:
            return None
        (topic_size,) = _TOPIC_SIZE.unpack_from(buffer, start)
        if topic_size > MAX_TOPIC:
            raise DecodeError(f"topic of {topic_size} bytes (max {MAX_TOPIC})")
        head = _TOPIC_SIZE.size + topic_size + _PAYLOAD_SIZE.size
        if available < head:
            return None
        payload_start = start + head
        (size,) = _PAYLOAD_SIZE.unpack_from(buffer, payload_start - _PAYLOAD_SIZE.size)
        if size > MAX_PAYLOAD:
            raise DecodeError(f"event of {size} bytes (max {MAX_PAYLOAD})")
        if available < head + size:
            return None
        topic = _decode_topic(
            buffer[start + _TOPIC_SIZE.size : payload_start - _PAYLOAD_SIZE.size]
        )
        self._offset = payload_start + size
        return Event(topic, bytes(buffer[payload_start : self._offset]))


def _decode_topic(name: bytes | bytearray) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("topic is not UTF-8") from error
