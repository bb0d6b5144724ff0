"""Events or figures as lines of JSON, for any program that reads lines."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.outputs.lines import LineOutput
    from pilotfleet.fleet.monitor.source import MonitorSource

__all__ = ["LineKind", "event_line", "write_figures"]

INTERVAL_S: Final = 10.0


class LineKind(StrEnum):
    """What the lines are."""

    EVENTS = "events"
    FIGURES = "figures"


def event_line(topic: str, payload: bytes, *, at: float, broker: str) -> bytes:
    """Return the line of an event.

    Args:
        topic: As it was published.
        payload: What is no JSON becomes a text.
        at: Wall time at which it was published or came.
        broker: The name of the agent whose broker had it.
    """
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    line = {"time": moment, "topic": topic, "data": None, "broker": broker}
    try:
        return _line({**line, "data": json.loads(payload)})
    # No JSON, nested too deeply, or a number that JSON does not have.
    except (ValueError, RecursionError):
        return _line({**line, "data": payload.decode(errors="replace")})


async def write_figures(
    source: MonitorSource, output: LineOutput, *, interval_s: float = INTERVAL_S
) -> None:
    """Write the figures of every fleet at each interval, until it is cancelled."""
    while output.is_open:
        for fleet in source.fleets():
            output.write(_line(msgspec.to_builtins(source.figures(fleet))))
        await asyncio.sleep(interval_s)


def _line(value: Any) -> bytes:
    # Escapes, so that nothing in an event reaches a terminal as a command.
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"
