"""What history keeps, and what the directory says of an agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = [
    "NOTHING_RECENT",
    "DirectoryAgent",
    "EventRecord",
    "Recent",
    "Sample",
    "TaskRecord",
]

EventRecord: TypeAlias = tuple[float, str, bytes]
"""At, topic, beginning of the payload. Tens of thousands of these are kept, and few
are looked at: so they are tuples, and text only when they are shown."""
TaskRecord: TypeAlias = tuple[float, str, str, float, str]
"""At, id, status, milliseconds, text."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One whole second of a fleet, or of the agents of the fleet that have a tag."""

    second: int
    """It began so many seconds after 1970."""
    tag: str
    """Empty for the whole fleet."""
    completed: int = 0
    """Tasks that ended well in that second."""
    failed: int = 0
    times: TimeHistogram | None = None
    """How long the tasks of that second took; None without any."""
    gauges: dict[str, float] = field(default_factory=dict)
    """What was at the end of the second, by metric of ``source.SERIES``: of a tag
    ``agents_alive``, ``agents_late`` and ``agents_lost``; of a fleet also
    ``trust_links``, ``polo_p50``, ``polo_p90``, ``tunnels``, ``sent_per_s`` and
    ``received_per_s``."""
    trust_linked: int = 0
    """New links; of the whole fleet only, as the next."""
    trust_revoked: int = 0


class Recent(NamedTuple):
    """Tasks and events for the pages of agents; those of an agent as they came."""

    tasks: list[tuple[str, TaskRecord]]
    """With the agent's name."""
    events: list[tuple[str, EventRecord]]
    keep: int
    """How many of each are kept of one agent."""


NOTHING_RECENT: Final = Recent([], [], keep=0)


class DirectoryAgent(msgspec.Struct, frozen=True, array_like=True):
    """An agent as the registry's search shows it."""

    node_id: int
    address: str
    name: str
    """Its hostname; empty when it has none."""
    tags: tuple[str, ...] = ()
    polo: int | None = None
    is_online: bool = True
