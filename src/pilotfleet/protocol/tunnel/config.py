"""Numbers of the tunnel: those the specification fixes, and those we choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "BLACKHOLE_PROBE",
    "BLACKHOLE_SENDS",
    "BLACKHOLE_SILENCE",
    "COOLDOWN_AFTER_GIVING_UP",
    "DEFAULT_CONFIG",
    "DIRECT_HOLD",
    "DIRECT_HOLD_MAX",
    "DIRECT_OPENS",
    "DUPLICATE_EXCHANGE",
    "EXCHANGE_INTERVAL",
    "EXCHANGE_SENDS",
    "FAILURES_BEFORE_REQUEST",
    "FIRST_UPGRADE",
    "FORGET_AFTER",
    "IN_USE",
    "KEEPALIVE_INTERVAL",
    "KEY_REQUEST_INTERVAL",
    "PATH_PROBES",
    "PATH_PROBE_INTERVAL",
    "PATH_SILENCE",
    "PUNCH_REPEAT",
    "RELAY_COPY_DELAY",
    "RELAY_OPENS",
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
BLACKHOLE_SENDS: Final = 3
DIRECT_OPENS: Final = 3
"""Frames opened directly before a relayed peer counts as reachable (9.3)."""
UPGRADE_INTERVAL: Final = 15.0
UPGRADE_PROBES: Final = 5
UPGRADE_SPACING: Final = 0.2
PATH_PROBES: Final = 3
RESET_INTERVAL: Final = 120.0
RESET_INTERVAL_AFTER_GIVING_UP: Final = 30.0
KEEPALIVE_INTERVAL: Final = 25.0
IN_USE: Final = 120.0
"""A peer is in use this long after the last application traffic (10.1)."""
FORGET_AFTER: Final = 300.0

# Ours, where the reference has none or another value.
RELAY_COPY_DELAY: Final = 0.4
"""What the direct way gets before a first greeting goes by relay as well. 1.18.0
sends both at once; the relayed one then nearly always wins, and its receiver keeps to
the relay for minutes."""
PUNCH_REPEAT: Final = 0.1
"""Between two greetings through a hole that the peer may be slower to open."""
FIRST_UPGRADE: Final = 0.3
"""Until a peer that just moved to the relay is probed directly."""
RELAY_OPENS: Final = 3
"""Frames by relay, with none directly for a second, after which we answer by relay."""
BLACKHOLE_PROBE: Final = 2.0
"""Silence after which a sender asks whether the peer is there: it may just listen."""
BLACKHOLE_SILENCE: Final = 5.0
"""Silence after which the path is given up; 8 s in 1.18.0, which asks nobody."""
DIRECT_HOLD: Final = 60.0
"""A direct path that died this soon after its return is not trusted for as long, and
twice as long each further time: frames may pass in one direction only."""
DIRECT_HOLD_MAX: Final = 960.0
PATH_SILENCE: Final = 35.0
"""Silence of a peer in use before the path is probed. It sends a keepalive after 25 to
30 s. 1.18.0 waits for 55 s."""
PATH_PROBE_INTERVAL: Final = 4.0
"""Between two probes of a silent path; 10 s in 1.18.0."""


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
    reply_whitelist: frozenset[int] = frozenset()
    """Nodes whose key exchange frames no rate limits. Anybody can claim to be one of
    them, so the list takes their protection away."""
    rekey_whitelist: frozenset[int] = frozenset()
    """Nodes that may be asked for their keys at any time, without the pause of 3 s."""
    resolve_timeout: float = 20.0
    """Seconds until a path that nobody resolved counts as not found."""
    lookup_timeout: float = 10.0
    """Seconds until a key that nobody looked up may be asked for again."""
    previous_session: float = 5.0
    """Seconds a replaced session still opens frames (6.2, notes): long enough to
    notice that the replacement came from a recorded key exchange."""


DEFAULT_CONFIG: Final = TunnelConfig()
