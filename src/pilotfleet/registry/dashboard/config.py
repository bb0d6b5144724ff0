"""Configuration of the HTTP side of a rendezvous."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DashboardConfig"]


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    """What is shown, and to whom."""

    enabled: bool = True
    """Serve the pages and the directory's API. Without them there are health,
    public figures and metrics only."""
    token: str = field(default="", repr=False)
    """Asked for by the pages and the API; empty for everybody."""
    allow_hosts: tuple[str, ...] = ()
    """Names that the Host header may have besides those of loopback and the bound
    one; checked when bound to loopback, or when there are any."""
    requests_per_second: float = 30.0
    """Steady rate of API requests of one address. A row of the page's table costs a
    hundredth of one."""
    burst: float = 120.0
    """Requests of one address that are free before the rate counts."""
