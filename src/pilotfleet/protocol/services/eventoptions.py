"""Extensions of the event stream: subscription options, marks, confirmations.

They travel as ordinary frames (:mod:`pilotfleet.protocol.services.events`) whose
payload is a JSON object. Official brokers throw the payload of a subscription
away and never send the reserved topics, so each side finds out by itself what the
other one can do.

What cannot be understood here counts as not said: a decoder returns its default
instead of raising, because none of this is worth a broken connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from pilotfleet.protocol.services.events import CONFIRM_TOPIC, MARK_TOPIC, encode_event

__all__ = [
    "CONFIRM_REQUEST",
    "MarkFrame",
    "SubscribeOptions",
    "asks_for_confirmation",
    "decode_confirm",
    "decode_mark",
    "decode_options",
    "decode_roll_up",
    "encode_confirm",
    "encode_mark",
    "encode_options",
    "encode_roll_up",
]

CONFIRM_REQUEST: Final = b'{"confirm":true}'
"""Payload of a subscription to the publisher topic that wants confirmations."""

# Of our choosing.
_MAX_OBJECT: Final = 4096
"""Longest payload looked at; the official client sends none."""
_MAX_SINCE_S: Final = 1e9
_MAX_SECONDS: Final = 1e12
_MAX_NUMBER: Final = 1 << 63
"""Numbers of the log are those of SQLite, signed with 64 bits."""
_MAX_LOG: Final = 64
"""Characters of a log's identity; a UUID has 36."""


@dataclass(frozen=True, slots=True)
class SubscribeOptions:
    """What a subscriber asks for besides its topic."""

    since: float | None = None
    """Seconds of past events wanted, from the broker's log."""
    after: int | None = None
    """Past events with a greater number in the log, if it is the log named."""
    log: str = ""
    """Identity of the log that ``after`` is a number of."""
    marks: bool = False
    """Whether the broker shall say from time to time how far it has come."""


@dataclass(frozen=True, slots=True)
class MarkFrame:
    """How far a subscription has come. See extensions.md for when it is sent."""

    log: str = ""
    """Identity of the broker's log; empty when it keeps none."""
    id: int = 0
    """Everything of the log up to this number that fits came before."""
    time: float = 0.0
    """Wall time of what follows, in seconds since 1970."""
    lost: int = 0
    """Events of this connection lost so far because the subscriber was slow."""


def encode_options(options: SubscribeOptions) -> bytes:
    """Return the payload of a subscription; nothing if nothing is asked for."""
    fields: dict[str, Any] = {}
    if options.since is not None:
        fields["since"] = options.since
    if options.after is not None:
        fields["after"] = options.after
        fields["log"] = options.log
    if options.marks:
        fields["marks"] = True
    return _encode(fields) if fields else b""


def decode_options(payload: bytes) -> SubscribeOptions:
    """Return what a subscription asks for. Never raises.

    A field of another type or out of bounds counts as absent.
    """
    fields = _decode(payload)
    since, log = _seconds(fields.get("since")), fields.get("log")
    after = _number(fields.get("after"))
    if after is None or not isinstance(log, str) or not 0 < len(log) <= _MAX_LOG:
        # A number says nothing without the log that gave it.
        after, log = None, ""
    if since is not None and not 0 < since < _MAX_SINCE_S:
        since = None
    return SubscribeOptions(since, after, log, fields.get("marks") is True)


def encode_mark(mark: MarkFrame) -> bytes:
    """Return the whole frame of a mark."""
    fields = {"log": mark.log, "id": mark.id, "time": mark.time, "lost": mark.lost}
    return encode_event(MARK_TOPIC, _encode(fields))


def decode_mark(payload: bytes) -> MarkFrame | None:
    """Return what a mark says; None when it is not one."""
    fields = _decode(payload)
    log, time = fields.get("log"), _seconds(fields.get("time"))
    number, lost = _number(fields.get("id")), _number(fields.get("lost"))
    if not isinstance(log, str) or len(log) > _MAX_LOG:
        return None
    if time is None or number is None or lost is None:
        return None
    return MarkFrame(log, number, time, lost)


def asks_for_confirmation(payload: bytes) -> bool:
    """Tell whether a subscription to the publisher topic wants confirmations."""
    return _decode(payload).get("confirm") is True


def encode_roll_up(levels: int) -> bytes:
    """Return the payload of a broker that subscribes to the publisher topic above it.

    ``levels`` counts the brokers that its events have passed, with itself.
    """
    return _encode({"roll_up": levels})


def decode_roll_up(payload: bytes) -> int:
    """Return how many brokers events have passed; 0 for those of other publishers."""
    return _number(_decode(payload).get("roll_up")) or 0


def encode_confirm(count: int) -> bytes:
    """Return the whole frame that confirms the first ``count`` publications."""
    return encode_event(CONFIRM_TOPIC, b'{"count":%d}' % count)


def decode_confirm(payload: bytes) -> int | None:
    """Return how many publications are confirmed; None when it is not said."""
    return _number(_decode(payload).get("count"))


def _encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _decode(payload: bytes) -> dict[str, Any]:
    if not payload.startswith(b"{") or len(payload) > _MAX_OBJECT:
        return {}
    try:
        fields: dict[str, Any] = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return fields


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _MAX_NUMBER else None


def _seconds(value: object) -> float | None:
    """Return a time; the comparison refuses NaN, which json.loads accepts."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _MAX_SECONDS else None
