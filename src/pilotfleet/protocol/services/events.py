"""Frames of the event stream on port 1002 (services.md section 5).

A frame is a topic and a payload, each after its length, in both directions::

    u16 topic length | topic, UTF-8 | u32 payload length | payload

The first frame that a client sends subscribes it to the frame's topic; every
later one publishes. A broker forwards a publication as the same frame.
"""

from __future__ import annotations

import json
import struct
from typing import Final, NamedTuple

from pilotfleet.errors import DecodeError, InvalidArgument

__all__ = [
    "EVENT_PORT",
    "GOVERNED_TOPIC",
    "MAX_PAYLOAD",
    "MAX_TOPIC",
    "PUBLISHER_TOPIC",
    "Event",
    "EventDecoder",
    "decode_since",
    "encode_event",
    "encode_since",
]

# From the specification.
EVENT_PORT: Final = 1002
MAX_TOPIC: Final = 1024
MAX_PAYLOAD: Final = 16 << 20
GOVERNED_TOPIC: Final = "\0pilot.governed.v1"
"""Reserved: a publication to it is dropped."""

# Of our choosing.
PUBLISHER_TOPIC: Final = "\0pilotfleet.publisher"
"""What a connection that only publishes subscribes to, as it must subscribe.

With the topic it publishes to, as the official client does it, every publisher
of a fleet would receive the events of all the others.
"""
_MAX_SUBSCRIPTION: Final = 4096
"""Longest subscription payload looked at; the official client sends none."""

_TOPIC_SIZE: Final = struct.Struct("!H")
_PAYLOAD_SIZE: Final = struct.Struct("!I")


class Event(NamedTuple):
    """A topic and what was published to it.

    A named tuple: brokers make one for every frame.
    """

    topic: str
    payload: bytes


def encode_event(topic: str, payload: bytes = b"") -> bytes:
    """Return the frame of an event.

    Raises:
        InvalidArgument: The topic or the payload is longer than allowed, or the
            topic has no UTF-8 form.
    """
    try:
        name = topic.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"topic {topic!r} is not valid text") from error
    if len(name) > MAX_TOPIC:
        raise InvalidArgument(f"topic of {len(name)} bytes (max {MAX_TOPIC})")
    if len(payload) > MAX_PAYLOAD:
        raise InvalidArgument(f"event of {len(payload)} bytes (max {MAX_PAYLOAD})")
    return b"".join(
        (_TOPIC_SIZE.pack(len(name)), name, _PAYLOAD_SIZE.pack(len(payload)), payload)
    )


def encode_since(seconds: float) -> bytes:
    """Return the subscription payload that asks for past events.

    An extension: official brokers read the payload and throw it away.
    """
    return json.dumps({"since": seconds}).encode()


def decode_since(payload: bytes) -> float | None:
    """Return how many seconds of past events a subscription asks for.

    Anything that is not such a request counts as none, because the payload of a
    subscription has no meaning in the official protocol.
    """
    if not payload.startswith(b"{") or len(payload) > _MAX_SUBSCRIPTION:
        return None
    try:
        since = json.loads(payload).get("since")
    except (ValueError, RecursionError):
        return None
    is_number = isinstance(since, (int, float)) and not isinstance(since, bool)
    # The comparison refuses NaN as well, which json.loads accepts.
    return float(since) if is_number and 0 < since < 1e9 else None


class EventDecoder:
    """Takes the frames of one direction of a connection apart."""

    __slots__ = ("_buffer", "_offset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0

    def feed(self, data: bytes) -> list[Event]:
        """Take received bytes and return the events that are now complete.

        Raises:
            DecodeError: A limit is exceeded or a topic is not UTF-8; nothing
                that follows can be understood.
        """
        self._buffer += data
        events = []
        while (event := self._next()) is not None:
            events.append(event)
        # One move for all events of a read, not one for each.
        del self._buffer[: self._offset]
        self._offset = 0
        return events

    def _next(self) -> Event | None:
        buffer, start = self._buffer, self._offset
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


def _decode_topic(name: bytearray) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("topic is not UTF-8") from error
