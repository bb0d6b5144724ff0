"""Rates per key, with a bound on the keys that are remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["RateLimit"]

MAX_KEYS: Final = 50_000
"""Sources that are tracked; registry.md section 10 has the same number."""


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
