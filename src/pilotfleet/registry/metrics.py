"""What the registry's servers count, in plain numbers that cost little.

``http`` turns them into Prometheus text when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

__all__ = ["BUCKETS_S", "RequestStats", "ServerStats", "WatchStats"]

BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds of the histogram of request durations."""
MAX_TYPES: Final = 200
OTHER: Final = "other"


class RequestStats:
    """Requests of one type."""

    __slots__ = ("buckets", "count", "errors", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total_s = 0.0
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        """How many took up to each bound of BUCKETS_S; the last: longer."""


class ServerStats:
    """What one registry server has done since its start."""

    __slots__ = (
        "batched",
        "connections",
        "connections_refused",
        "garbage",
        "rate_limited",
        "requests",
        "timed_out",
    )

    def __init__(self) -> None:
        self.batched = 0
        """Requests and heartbeats that came in messages of many."""
        self.connections = 0
        """Connections that were accepted."""
        self.connections_refused = 0
        """Connections that were closed at once because of a limit."""
        self.garbage = 0
        """Connections that were closed because of bytes that are no message."""
        self.rate_limited = 0
        """Times that a connection had to wait."""
        self.timed_out = 0
        """Connections that were idle, or took no replies, for too long."""
        self.requests: dict[str, RequestStats] = {}

    @property
    def request_count(self) -> int:
        """Requests of all types."""
        return sum(stats.count for stats in self.requests.values())

    def record(self, kind: str, duration_s: float, *, failed: bool) -> None:
        """Count one request. ``kind`` must be one that the service knows."""
        stats = self.requests.get(kind)
        if stats is None:
            if len(self.requests) >= MAX_TYPES:
                kind = OTHER
            stats = self.requests.setdefault(kind, RequestStats())
        stats.count += 1
        stats.errors += failed
        stats.total_s += duration_s
        stats.buckets[bisect_left(BUCKETS_S, duration_s)] += 1


class WatchStats:
    """What watches take, and what they were told since the start."""

    __slots__ = ("deltas", "kept", "refused", "resets", "size_bytes", "waiting")

    def __init__(self) -> None:
        self.kept = 0
        """Watches that are remembered."""
        self.waiting = 0
        """Those of them that wait for something new."""
        self.size_bytes = 0
        """What is remembered of what they were told."""
        self.deltas = 0
        """Answers with something new."""
        self.resets = 0
        """Answers that began from nothing."""
        self.refused = 0
        """Questions for which there was no room, or whose node had gone."""
