"""How the registry service behaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from pilotfleet.registry.directory.directory import ONLINE_WINDOW_S
from pilotfleet.registry.directory.watches import WatchLimits

__all__ = ["ServiceConfig"]


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Choices of the operator. The defaults suit official 1.18.0 clients."""

    admin_token: str = field(default="", repr=False)
    """Authorises administration. Empty: nobody administers."""

    beacon_addr: str = ""
    """Where nodes reach the beacon, ``host:port``. Listed, and given out in the
    place of relay-only nodes. The service's attribute can be set later."""

    require_signed_registration: bool = False
    """Refuse registrations without a signature. Official daemons before
    1.18.0 send none."""

    max_nodes: int = 1_000_000
    """Live nodes; each takes up to 2 KB of memory."""

    stale_after_s: float = 1800.0
    """A node that is silent for so long is removed. Its ID stays reserved."""

    online_window_s: float = ONLINE_WINDOW_S
    """A node that is silent for so long is shown as offline."""

    sweep_interval_s: float = 10.0
    """Time between two steps of the search for stale nodes."""

    sweep_step: int = 10_000
    """Nodes looked at in one step. More make a step block others for longer:
    about 1 ms for 10,000."""

    flush_interval_s: float = 60.0
    """Time between two writes of last-seen times. What a crash loses of them
    is asked for again by the next heartbeat."""

    new_nodes_per_second: float = 5_000.0
    """Registrations from other hosts that are taken on; above it the sender is
    told to come back. Protects the store from a herd."""

    new_nodes_burst: float = 5_000.0
    """Registrations taken on at once after a quiet time. They queue inside, so with
    more of them the last ones wait for longer without knowing."""

    new_nodes_per_second_per_ip: float = 2_500.0
    """The same for one address; a whole fleet may share one."""

    new_nodes_burst_per_ip: float = 2_500.0
    """The burst of one address."""

    limit_local: bool = False
    """Whether these limits, and those of receipts, hold for programs on this host."""

    receipts_per_second: float = 4_000.0
    """Receipts from other hosts that are taken on; above it the sender is told
    to come back. Each costs two verifications, 0.13 ms of a core."""

    receipts_burst: float = 40_000.0
    """Receipts taken on at once after a quiet time."""

    receipts_per_second_per_ip: float = 2_500.0
    """The same for one address; a whole fleet may share one."""

    receipts_burst_per_ip: float = 25_000.0
    """The burst of one address."""

    max_receipts: int = 500_000
    """Receipts kept one by one, up to 1 KB of memory each. With more of them the
    oldest become a sum before their 31 days are over, and what was completed
    before that is not taken any more. At twice as many none are taken."""

    verified_signatures: int = 1 << 18
    """Signatures remembered as good, about 100 bytes each; with many nodes there are
    more, six for each. Too few, and every heartbeat costs a verification."""

    watches: WatchLimits = field(default_factory=WatchLimits)
    """How many watches are kept."""
