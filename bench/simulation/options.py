"""What one simulated run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One simulated run. The defaults are those of the programs."""

    agents: int = 10_000
    per_host: int = 1_000
    """Agents that share a host, its address and its connections."""
    links: int = 4
    """Registry connections of a host."""
    keepalive_s: float = 60.0
    duration_s: float = 60.0
    """Measured virtual time."""
    searches_per_s: float = 100.0
    watchers: bool = True
    """Whether each team of 1,000 agents has a watcher."""
    churn_per_h: float = 0.0
    """Share of the agents that restart or are replaced in an hour."""
    cold: bool = False
    """Everybody starts at the same instant; otherwise all are registered before."""
    spread_s: float = 0.0
    """With ``cold``: the hosts start over so many seconds."""
    restart_at_s: float = -1.0
    """When the rendezvous is killed, in measured time; negative: never."""
    down_s: float = 2.0
    """How long it is away then, its load of the directory included."""
    batch: bool = True
    """Whether the registry offers ``batch``."""
    refreshes: bool = True
    """Whether agents ask every five minutes what networks they are in. A real fleet
    does not begin with it for some minutes, so the check against one is without."""
    parallel_starts: int = 256
    """Agents of a host that register at a time (``HostConfig.parallel_starts``)."""
    seed: int = 1
    limit_s: float = 3_600.0
    """Virtual time after which a recovery is given up."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of its range, in which nothing could be simulated.
        """
        for name in ("agents", "per_host", "links", "parallel_starts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 at least")
        for name in ("duration_s", "searches_per_s", "churn_per_h", "spread_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, nor without end")
        if not (0 < self.keepalive_s < math.inf and 0 <= self.down_s < math.inf):
            raise ValueError("keepalive_s must be above 0, and down_s not below it")
        if not self.restart_at_s < math.inf:
            raise ValueError("restart_at_s must be a second of the run, or negative")

    @property
    def hosts(self) -> int:
        """How many hosts there are."""
        return -(-self.agents // self.per_host)
