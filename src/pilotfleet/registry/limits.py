"""Rates per key, with a bound on the keys that are remembered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["MAX_SLOT_S", "RateLimit", "SlotLimit"]

MAX_KEYS: Final = 50_000
"""Sources that are tracked; registry.md section 10 has the same number."""
MAX_SLOT_S: Final = 30.0
"""Nobody is asked to wait for longer. Who is told so much may be told it again."""


class RateLimit:
    """So many per second and key, after a burst that is free.

    Keeps one number per key: when its last use is paid for (the generic cell
    rate algorithm). Keys that owe nothing are forgotten first; if all owe, all
    are forgotten, which an attacker with that many addresses must be granted.
    """

    __slots__ = ("_burst_s", "_max_keys", "_paid_until", "_step_s", "denied")

    def __init__(
        self, rate: float, *, burst: float | None = None, max_keys: int = MAX_KEYS
    ) -> None:
        self._step_s = 1 / rate
        # A key may be this far behind with its payments.
        self._burst_s = (rate if burst is None else burst) * self._step_s
        self._max_keys = max_keys
        self._paid_until: dict[Hashable, float] = {}
        self.denied = 0

    def allow(self, key: Hashable, now: float, *, count: int = 1) -> bool:
        """Count so many uses, unless it is too early for all of them."""
        start = max(self._paid_until.get(key, now), now)
        end = start + count * self._step_s
        # The tolerance keeps rounding from denying the last of a burst.
        if end - now > self._burst_s + self._step_s * 1e-6:
            self.denied += 1
            return False
        self._remember(key, end, now)
        return True

    def charge(self, key: Hashable, count: int, now: float) -> float:
        """Count ``count`` uses that have happened; return the wait in seconds
        after which the key owes nothing beyond its burst."""
        end = max(self._paid_until.get(key, now), now) + count * self._step_s
        self._remember(key, end, now)
        wait = end - now - self._burst_s
        if wait > 0:
            self.denied += 1
            return wait
        return 0.0

    def _remember(self, key: Hashable, end: float, now: float) -> None:
        paid = self._paid_until
        if len(paid) >= self._max_keys and key not in paid:
            self._paid_until = paid = {k: t for k, t in paid.items() if t > now}
            if len(paid) >= self._max_keys:
                paid.clear()
        paid[key] = end


class SlotLimit(RateLimit):
    """A rate that tells those who come too early when there will be room.

    Each of them is given the slot after the last one that was given out, so they come
    back as fast as there is room. A slot is a hint and nothing is reserved: some never
    come back, and who comes first is let in. Whoever then finds no room is given a new
    slot, behind the others.
    """

    __slots__ = ("_told_until",)

    def __init__(
        self, rate: float, *, burst: float | None = None, max_keys: int = MAX_KEYS
    ) -> None:
        super().__init__(rate, burst=burst, max_keys=max_keys)
        self._told_until: dict[Hashable, float] = {}
        """Per key, the last slot that was given out, if it is still to come."""

    def missing(self, key: Hashable, count: int, now: float) -> float:
        """Return in how many seconds so many uses would be allowed; 0: now."""
        start = max(self._paid_until.get(key, now), now)
        late = start + count * self._step_s - now - self._burst_s
        return late if late > self._step_s * 1e-6 else 0.0

    def room(self, key: Hashable, now: float, most: int) -> int:
        """Return how many uses would be allowed now, one after the other."""
        free_s = self._burst_s - max(self._paid_until.get(key, now) - now, 0.0)
        return max(0, min(most, int(free_s / self._step_s + 1e-6)))

    def slot(self, key: Hashable, count: int, now: float) -> float:
        """Return in how many seconds ``count`` uses, refused now, should come back."""
        self.denied += 1
        told = self._told_until
        # The first slot is when there is room for anybody, those after it follow at
        # the rate.
        first = now + self.missing(key, count, now)
        last = told.get(key, -math.inf)
        slot = max(first, last + count * self._step_s)
        if slot - now > MAX_SLOT_S:
            return MAX_SLOT_S
        if len(told) >= self._max_keys and key not in told:
            self._told_until = told = {k: t for k, t in told.items() if t > now}
            if len(told) >= self._max_keys:
                told.clear()
        told[key] = slot
        return slot - now
