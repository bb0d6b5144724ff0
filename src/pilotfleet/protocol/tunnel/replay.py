"""Replay protection: one sliding window per session key and nonce prefix (wire.md 7).

A 1.18.0 peer that derives the same session again restarts its counter at 1 under a
new random prefix. One window per prefix takes that as the fresh start it is, where
a window over the counter alone would call every frame a replay.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["WINDOW_SIZE", "ReplayFilter", "ReplayWindow", "Verdict"]

# From the specification.
WINDOW_SIZE: Final = 256
_PREFIXES: Final = 4
"""Windows kept per session key."""
_EVICTED: Final = 64
"""Older prefixes remembered, whose frames are refused."""

_MASK: Final = (1 << WINDOW_SIZE) - 1


class Verdict(Enum):
    """What the window says of a counter."""

    ACCEPT = "accept"
    REPLAY = "replay"
    TOO_OLD = "too_old"


class ReplayWindow:
    """The last 256 counters of one nonce prefix."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0
        # Bit i stands for the counter newest - i.

    def accept(self, counter: int) -> Verdict:
        """Record an authenticated counter, unless it was there or is too old."""
        age = self._newest - counter
        if age < 0:
            self._seen = (self._seen << -age | 1) & _MASK if age > -WINDOW_SIZE else 1
            self._newest = counter
            return Verdict.ACCEPT
        if age >= WINDOW_SIZE:
            return Verdict.TOO_OLD
        if self._seen >> age & 1:
            return Verdict.REPLAY
        self._seen |= 1 << age
        return Verdict.ACCEPT


class ReplayFilter:
    """The windows of one session key, for as long as both its X25519 keys live."""

    __slots__ = ("_evicted", "_older", "_prefix", "_window")

    def __init__(self) -> None:
        # Almost all sessions see one prefix: the rest is made when needed.
        self._prefix = b""
        self._window = ReplayWindow()
        self._older: dict[bytes, ReplayWindow] | None = None
        self._evicted: set[bytes] | None = None

    @property
    def is_exhausted(self) -> bool:
        """No further prefix can be told from an old one: take another key."""
        return self._evicted is not None and len(self._evicted) >= _EVICTED

    def accept(self, prefix: bytes, counter: int) -> Verdict:
        """Record the nonce of a frame that has been authenticated."""
        if prefix == self._prefix:
            return self._window.accept(counter)
        if self._older is not None and prefix in self._older:
            return self._older[prefix].accept(counter)
        if self._evicted is not None and prefix in self._evicted:
            return Verdict.TOO_OLD
        if self.is_exhausted:
            return Verdict.TOO_OLD
        self._begin(prefix)
        return self._window.accept(counter)

    def _begin(self, prefix: bytes) -> None:
        if self._prefix:
            older = self._older = self._older or {}
            older[self._prefix] = self._window
            if len(older) >= _PREFIXES:
                self._evict(next(iter(older)), older)
        self._prefix = prefix
        self._window = ReplayWindow()

    def _evict(self, prefix: bytes, older: dict[bytes, ReplayWindow]) -> None:
        del older[prefix]
        evicted = self._evicted = self._evicted or set()
        evicted.add(prefix)
