"""What history keeps of a second, and what the directory says of an agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = ["DirectoryAgent", "Sample"]


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


class DirectoryAgent(msgspec.Struct, frozen=True, array_like=True):
    """An agent as the registry's search shows it."""

    node_id: int
    address: str
    name: str
    """Its hostname; empty when it has none."""
    tags: tuple[str, ...] = ()
    polo: int | None = None
    is_online: bool = True
