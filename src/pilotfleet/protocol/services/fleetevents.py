"""What the events of a fleet have in common (docs/reference/events.md).

Rows of many agents or tasks go together in one event, but never so many that one
event fills the queue of a subscriber or of a small program that reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "BROKER_TOPIC",
    "HEALTH_TOPIC",
    "MAX_EVENT_BYTES",
    "MAX_EVENT_ROWS",
    "NODE_TOPIC",
    "STOPPED",
    "TASK_TOPIC",
    "split_rows",
]

HEALTH_TOPIC: Final = "fleet.health"
TASK_TOPIC: Final = "fleet.task"
NODE_TOPIC: Final = "fleet.node"
BROKER_TOPIC: Final = "fleet.broker"
STOPPED: Final = "stopped"
"""Status of an agent's last health event."""

MAX_EVENT_BYTES: Final = 64 << 10
MAX_EVENT_ROWS: Final = 200
HEAD_BYTES: Final = 2 << 10
"""For what an event says beside its rows."""


def split_rows(rows: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the rows, each encoded as JSON, as they fit into one event each."""
    batch: list[bytes] = []
    size = 0
    for row in rows:
        is_full = size + len(row) + 1 > MAX_EVENT_BYTES - HEAD_BYTES
        if batch and (is_full or len(batch) == MAX_EVENT_ROWS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row) + 1
    if batch:
        yield batch
