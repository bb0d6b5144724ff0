"""Numbers of the tunnel: those the specification fixes, and those we choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "BLACKHOLE_SENDS",
    "BLACKHOLE_SILENCE",
    "COOLDOWN_AFTER_GIVING_UP",
    "DEFAULT_CONFIG",
    "DIRECT_OPENS",
    "DUPLICATE_EXCHANGE",
    "EXCHANGE_INTERVAL",
    "EXCHANGE_SENDS",
    "FAILURES_BEFORE_REQUEST",
    "FORGET_AFTER",
    "IN_USE",
    "KEEPALIVE_INTERVAL",
    "KEY_REQUEST_INTERVAL",
    "PATH_PROBES",
    "PATH_PROBE_INTERVAL",
    "PATH_SILENCE",
    "RESET_INTERVAL",
    "RESET_INTERVAL_AFTER_GIVING_UP",
    "SEGMENT_SIZE",
    "TABLE_SIZE",
    "UPGRADE_INTERVAL",
    "UPGRADE_PROBES",
    "UPGRADE_SPACING",
    "TunnelConfig",
]

# From the specification (wire.md). Times are seconds.
SEGMENT_SIZE: Final = 1152
"""Payload that every path and every peer takes (section 11.1)."""
DUPLICATE_EXCHANGE: Final = 0.25
"""A second copy of an accepted PILA within this time is ignored (6.2 rule 9)."""
EXCHANGE_INTERVAL: Final = 4.0
EXCHANGE_SENDS: Final = 6
COOLDOWN_AFTER_GIVING_UP: Final = 5.0
KEY_REQUEST_INTERVAL: Final = 3.0
"""Between two reactions to frames that one peer seals under no key of ours (6.4)."""
FAILURES_BEFORE_REQUEST: Final = 5
"""Frames in a row that do not open before keys are asked for again (7.3)."""
TABLE_SIZE: Final = 4096
"""Entries of each rate-limit table (section 15)."""
BLACKHOLE_SILENCE: Final = 8.0
BLACKHOLE_SENDS: Final = 3
DIRECT_OPENS: Final = 3
"""Frames opened directly before a relayed peer counts as reachable (9.3)."""
UPGRADE_INTERVAL: Final = 15.0
UPGRADE_PROBES: Final = 5
UPGRADE_SPACING: Final = 0.2
PATH_SILENCE: Final = 55.0
PATH_PROBE_INTERVAL: Final = 10.0
PATH_PROBES: Final = 3
RESET_INTERVAL: Final = 120.0
RESET_INTERVAL_AFTER_GIVING_UP: Final = 30.0
KEEPALIVE_INTERVAL: Final = 25.0
IN_USE: Final = 120.0
"""A peer is in use this long after the last application traffic (10.1)."""
FORGET_AFTER: Final = 300.0


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """Bounds and rates of one `TunnelEndpoint`."""

    max_peers: int = 16384
    """Peers kept. Each costs up to 8 KB; further ones are refused."""
    max_queued_per_peer: int = 64
    """Packets that wait for one peer's key; the next one is refused."""
    max_queued: int = 16384
    """Packets that wait for keys in all, about 1.2 KB each."""
    max_lookups: int = 1024
    """Key lookups under way for peers that greet us."""
    max_events: int = 8192
    """Inbound packets the owner has not taken yet; further ones are dropped."""
    exchanges_per_second: float = 500.0
    """Key exchange frames looked at per source IP. Each may cost a signature check
    (0.1 ms) and a registry lookup. The reference takes 5; a fleet puts thousands of
    nodes behind one IP, and they all start at once."""
    exchange_burst: int = 5000
    """Key exchange frames taken at once per source IP. The reference takes 5."""
    relayed_exchanges_per_second: float = 5.0
    """The same per relayed sender, which is one node."""
    relayed_exchange_burst: int = 5
    resolve_timeout: float = 20.0
    """Seconds until a path that nobody resolved counts as not found."""
    lookup_timeout: float = 10.0
    """Seconds until a key that nobody looked up may be asked for again."""
    previous_session: float = 5.0
    """Seconds a replaced session still opens frames (6.2, notes): long enough to
    notice that the replacement came from a recorded key exchange."""


DEFAULT_CONFIG: Final = TunnelConfig()
