"""Settings and fixed numbers of the stream layer (wire.md section 11.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_SEGMENT", "NEVER", "SEGMENT", "StreamConfig"]

# From the specification.
SEGMENT: Final = 1152
"""Bytes in a full segment, and the unit of the window field."""
MAX_SEGMENT: Final = 0xFFFF
"""The packet header's length field holds no more."""

# Of our choosing.
NEVER: Final = math.inf
"""The deadline of a timer that is not running."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Bounds and times of one node's streams; the defaults are the wire's."""

    receive_window_units: int = 512
    """Units of 1152 bytes a reader may leave unread. More speeds up long paths and
    costs that much memory per slow reader."""
    large_receive_window_units: int = 2048
    """The same once a connection uses larger segments (at most 4096)."""
    send_buffer_bytes: int = 256 * 1024
    """Bytes taken from the application and not sent yet, per connection."""
    max_outstanding: int = 128
    """Segments under way; more would overflow the peer's out-of-order buffer."""
    max_cwnd_bytes: int = 1024 * 1024
    """Cap of the congestion window."""
    large_max_cwnd_bytes: int = 8 * 1024 * 1024
    """The same for segments above 1152 bytes."""
    max_held_segments: int = 128
    """Out-of-order segments kept per connection."""
    keepalive_s: float = 40.0
    """Longest silence of ours on an open connection. Above 45 s a reference daemon
    may close it; less costs a packet per connection more often."""
    probe_idle_s: float = 60.0
    """Silence of the peer after which we ask whether it still has the connection."""
    linger_s: float = 5.0
    """How long a close waits without progress for data to be acknowledged."""
    max_linger_s: float = 60.0
    """How long it waits in all."""
    fin_sends: int = 4
    """Times our FIN is sent while the peer stays silent. The reference sends one,
    and a reader whose FIN was lost then waits two minutes for the end."""
    residence_s: float = 10.0
    """How long a finished connection stays in the table."""
    max_finished: int = 4096
    """Finished connections kept; beyond it the oldest leave early."""
    max_connections: int = 65536
    max_connections_per_port: int = 1024
    max_connections_on: Mapping[int, int] = field(default_factory=dict)
    """The same for single ports that have another bound."""
    accept_backlog: int = 64
    """Accepted streams per port that nobody has taken over yet."""
    max_waiting_syns: int = 256
    """SYNs held while the admission of their sender is being decided."""
    admission_s: float = 10.0
    """How long such a SYN is held; the dialler repeats it anyway."""
    syn_rate: int = 100
    """SYNs per second that are looked at, from all peers together."""
    syn_whitelist: frozenset[int] = frozenset()
    """Nodes whose SYNs no rate limits."""
    idle_timeout_s: float = NEVER
    """Silence of the peer after which a connection is ended even if it may live.
    Dead peers are found by probes much earlier than any sensible value."""
    tunnel_wait_s: float = 10.0
    """How long a dial waits for the tunnel's key."""
