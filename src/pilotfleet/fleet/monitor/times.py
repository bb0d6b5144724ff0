"""How long tasks take: a histogram that tells any quantile within one per cent.

The buckets are those of DDSketch: each is 2 % wider than the one before, so that the
middle of a bucket is within 1 % of all that fell in it. Histograms add up: that of an
hour is the sum of its minutes'.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Self

import msgspec

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TimeHistogram"]

ACCURACY: Final = 0.01
GROWTH: Final = (1 + ACCURACY) / (1 - ACCURACY)
SHORTEST_MS: Final = 0.01
"""What is shorter counts as this."""
LONGEST_MS: Final = 31 * 86_400_000.0
_LOG_GROWTH: Final = math.log(GROWTH)
_LAST: Final = math.ceil(math.log(LONGEST_MS / SHORTEST_MS) / _LOG_GROWTH)

_decoder: Final = msgspec.msgpack.Decoder(tuple[float, dict[int, int]])


class TimeHistogram:
    """Durations in milliseconds. At most 1,317 buckets, whatever comes."""

    __slots__ = ("_buckets", "count", "total_ms")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.total_ms = 0.0

    def add(self, ms: float) -> None:
        """Count a duration; what is negative or no number counts as the shortest."""
        ms = min(ms, LONGEST_MS) if ms > SHORTEST_MS else SHORTEST_MS
        bucket = math.ceil(math.log(ms / SHORTEST_MS) / _LOG_GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.total_ms += ms

    def merge(self, other: TimeHistogram) -> None:
        """Add what another one counted."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count
        self.total_ms += other.total_ms

    def subtract(self, other: TimeHistogram) -> None:
        """Take away what another one counted, all of which was added before."""
        for bucket, count in other._buckets.items():
            left = self._buckets[bucket] - count
            if left:
                self._buckets[bucket] = left
            else:
                del self._buckets[bucket]
        self.count -= other.count
        self.total_ms = max(0.0, self.total_ms - other.total_ms) if self.count else 0.0

    def quantile(self, share: float) -> float | None:
        """Return the duration that this share (0 to 1) does not exceed; None if empty.

        The rank is ``ceil(share * count)``, as in the nearest-rank method.
        """
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return _middle_ms(bucket)
        raise AssertionError("the count is the sum of the buckets")

    def cumulated(self, bounds_ms: tuple[float, ...]) -> Iterator[int]:
        """Yield, for each ascending bound, how many durations do not exceed it.

        To the accuracy of the buckets.
        """
        waiting = sorted(self._buckets.items(), reverse=True)
        seen = 0
        for bound in bounds_ms:
            while waiting and _middle_ms(waiting[-1][0]) <= bound:
                seen += waiting.pop()[1]
            yield seen

    def encode(self) -> bytes:
        """Return it as bytes."""
        return msgspec.msgpack.encode((self.total_ms, self._buckets))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` wrote.

        Raises:
            DecodeError: It is something else.
        """
        try:
            total_ms, buckets = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeError(f"damaged histogram: {error}") from error
        is_sound = all(0 <= key <= _LAST and n > 0 for key, n in buckets.items())
        if not is_sound or not (math.isfinite(total_ms) and total_ms >= 0):
            raise DecodeError("damaged histogram: impossible bucket")
        histogram = cls()
        histogram._buckets = buckets
        histogram.count = sum(buckets.values())
        histogram.total_ms = total_ms
        return histogram


def _middle_ms(bucket: int) -> float:
    """Return what is within 1 % of everything in a bucket."""
    upper = SHORTEST_MS * GROWTH**bucket
    return upper * 2 / (1 + GROWTH)
