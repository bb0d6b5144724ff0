"""The last events and tasks: as little of each as is kept, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.figures import RecentEvent, RecentTask
from pilotfleet.fleet.monitor.view.intake import clean
from pilotfleet.protocol.services.fleetevents import (
    BROKER_TOPIC,
    HEALTH_TOPIC,
    NODE_TOPIC,
    TASK_TOPIC,
)

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.samples import EventRecord, TaskRecord
    from pilotfleet.fleet.monitor.view.intake import TaskRow

__all__ = [
    "MAX_TOPIC",
    "event_record",
    "shown_event",
    "shown_task",
    "task_record",
]

MAX_EVENT_TEXT: Final = 300
"""Characters of an event, and four bytes each, that are kept."""
MAX_TASK_TEXT: Final = 200
MAX_TOPIC: Final = 128

_WORDS: Final = {
    word: word
    for word in (
        BROKER_TOPIC,
        HEALTH_TOPIC,
        NODE_TOPIC,
        TASK_TOPIC,
        "SUCCEEDED",
        "FAILED",
    )
}
"""Texts that come again and again are kept once."""


def event_record(topic: str, payload: bytes, at: float) -> EventRecord:
    """Return what is kept of an event."""
    topic = _WORDS.get(topic) or clean(topic, MAX_TOPIC)
    return at, topic, payload[: 4 * MAX_EVENT_TEXT]


def task_record(row: TaskRow, at: float) -> TaskRecord:
    """Return what is kept of a task, of which an event told ``at``."""
    ended = at if row.at is None else row.at
    text = clean(row.text.strip(), MAX_TASK_TEXT)
    status = _WORDS.get(row.status) or clean(row.status, MAX_TASK_TEXT)
    return ended, row.task_id, status, row.ms, text


def shown_event(record: EventRecord) -> RecentEvent:
    """Return an event as it is shown."""
    at, topic, data = record
    text = data.decode(errors="replace")
    return RecentEvent(at=at, topic=topic, data=clean(text, MAX_EVENT_TEXT))


def shown_task(agent: str, record: TaskRecord) -> RecentTask:
    """Return a task of an agent as it is shown."""
    at, task_id, status, ms, text = record
    return RecentTask(
        at=at, agent=agent, task_id=task_id, status=status, ms=ms, text=text
    )
