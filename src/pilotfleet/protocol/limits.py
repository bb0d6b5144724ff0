"""Rate limits with bounded tables (wire.md section 15)."""

from __future__ import annotations

from typing import Final

__all__ = ["IDLE_S", "Cooldown", "TokenBucket", "TokenBuckets"]

# From the specification.
IDLE_S: Final = 10.0
"""Seconds without use after which a bucket may be removed."""


class TokenBucket:
    """Lets a burst through, and after it a steady rate per second."""

    __slots__ = ("_burst", "_rate", "_tokens", "used_at")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self.used_at = now

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        refill = (now - self.used_at) * self._rate
        self._tokens = min(self._tokens + refill, self._burst)
        self.used_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Take the last use back: it was one that costs nothing."""
        self._tokens = min(self._tokens + 1, self._burst)

    def delay(self, now: float) -> float:
        """Return the seconds until a token is there, which may be none."""
        missing = 1 - self._tokens - (now - self.used_at) * self._rate
        return max(0.0, missing / self._rate)


class TokenBuckets:
    """One token bucket per source: an IP address or a node."""

    __slots__ = ("_buckets", "_burst", "_capacity", "_rate")

    def __init__(self, rate: float, burst: int, *, capacity: int) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        # Ordered by the time of the last use, so only the first can be idle.
        self._buckets: dict[str | int, TokenBucket] = {}

    def allow(self, source: str | int, now: float) -> bool:
        """Take a token; False when there is none, or no room for the source."""
        buckets = self._buckets
        bucket = buckets.pop(source, None)
        if bucket is None:
            if len(buckets) >= self._capacity:
                oldest = next(iter(buckets))
                if now - buckets[oldest].used_at < IDLE_S:
                    return False
                del buckets[oldest]
            bucket = TokenBucket(self._burst, self._rate, now)
        buckets[source] = bucket
        return bucket.take(now)

    def give_back(self, source: str | int) -> None:
        """Take the last use by a source back: it was one that costs nothing."""
        bucket = self._buckets.get(source)
        if bucket is not None:
            bucket.give_back()


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
