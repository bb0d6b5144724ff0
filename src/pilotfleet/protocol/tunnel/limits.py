"""Rate limits with bounded tables (wire.md section 15)."""

from __future__ import annotations

from typing import Final

__all__ = ["Cooldown", "TokenBuckets"]

# From the specification.
_IDLE: Final = 10.0
"""Seconds after which a bucket may be removed."""


class TokenBuckets:
    """One token bucket per source: an IP address or a node."""

    __slots__ = ("_buckets", "_burst", "_capacity", "_rate")

    def __init__(self, rate: float, burst: int, *, capacity: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._capacity = capacity
        # Tokens and time of last use; ordered by it, so only the first can be idle.
        self._buckets: dict[str | int, tuple[float, float]] = {}

    def allow(self, source: str | int, now: float) -> bool:
        """Take a token; False when there is none, or no room for the source."""
        tokens, last = self._buckets.pop(source, (self._burst, now))
        if len(self._buckets) >= self._capacity:
            oldest = next(iter(self._buckets))
            if now - self._buckets[oldest][1] < _IDLE:
                return False
            del self._buckets[oldest]
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        return allowed


class Cooldown:
    """At most one action per node and period."""

    __slots__ = ("_capacity", "_period", "_times")

    def __init__(self, period: float, *, capacity: int) -> None:
        self._period = period
        self._capacity = capacity
        self._times: dict[int, float] = {}

    def is_cooling(self, node: int, now: float) -> bool:
        """Tell whether the node acted within the period."""
        last = self._times.get(node)
        return last is not None and now - last < self._period

    def allow(self, node: int, now: float) -> bool:
        """Record an action; False within the period, or without room."""
        if self.is_cooling(node, now):
            return False
        self._times.pop(node, None)
        if len(self._times) >= self._capacity:
            oldest = next(iter(self._times))
            if self.is_cooling(oldest, now):
                return False
            del self._times[oldest]
        self._times[node] = now
        return True
