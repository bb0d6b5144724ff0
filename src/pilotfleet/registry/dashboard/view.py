"""What the HTTP side reads of a rendezvous."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pilotfleet.registry.directory.visibility import visible_bits
from pilotfleet.registry.metrics import WatchStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.registry.beacon_table import BeaconCounters
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node
    from pilotfleet.registry.metrics import ServerStats
    from pilotfleet.transport.clock import Clock

__all__ = ["RendezvousView"]


@dataclass(frozen=True, slots=True)
class RendezvousView:
    """Reads only; nothing here changes anything."""

    directory: Directory
    stats: ServerStats
    beacon: BeaconCounters
    connections: Callable[[], int]
    beacon_nodes: Callable[[], int]
    clock: Clock
    started: float
    """Monotonic time of the start."""
    watches: WatchStats = field(default_factory=WatchStats)

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return self.clock.now() - self.started

    @property
    def online(self) -> int:
        """Nodes heard lately."""
        self.directory.expire_online(self.clock.wall())
        return len(self.directory.online.nodes)

    @property
    def registered(self) -> int:
        """Nodes that are registered, silent ones included."""
        return len(self.directory.nodes.live)

    @property
    def networks(self) -> int:
        """Networks. The backbone is always there and is no network of anybody."""
        return len(self.directory.networks.by_id) - 1

    @property
    def public_bits(self) -> int:
        """The bitmap of the agents that anyone may see."""
        return visible_bits(self.directory, None)

    @property
    def public_online(self) -> int:
        """Public agents heard lately."""
        self.directory.expire_online(self.clock.wall())
        return (self.public_bits & self.directory.online.nodes.bits()).bit_count()

    def public_node(self, node: int) -> Node | None:
        """Return an agent that anyone may see."""
        found = self.directory.nodes.get_live(node)
        return found if found is not None and found.record.public else None
