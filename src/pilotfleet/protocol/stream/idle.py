"""Keeping idle connections open, and noticing dead ones (wire.md section 11.11).

A reference daemon closes a connection on which it receives nothing for two
minutes, and never answers an empty ACK. So we send one of our own on every idle
connection. It tells us nothing about the peer; when the peer is silent too long,
a one-byte segment that it has already taken makes a live peer answer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["IdleStep", "IdleWatch"]

# From the specification.
PROBE_GAP_S: Final = 15.0
MAX_MISSES: Final = 3


class IdleStep(Enum):
    """What an idle connection should do."""

    NOTHING = "nothing"
    SEND_ACK = "send an empty ACK"
    SEND_PROBE = "send a probe"
    GIVE_UP = "give up"


class IdleWatch:
    """When the peer was heard last; a packet only stores a time here."""

    __slots__ = (
        "_interval",
        "_misses",
        "_probe_idle",
        "deadline",
        "heard_at",
    )

    def __init__(self, now: float, *, interval_s: float, probe_idle_s: float) -> None:
        self.heard_at = now
        self.deadline = now + interval_s
        self._interval = interval_s
        self._probe_idle = probe_idle_s
        self._misses = 0

    def take_step(self, now: float, sent_at: float, *, is_waiting: bool) -> IdleStep:
        """Return what to do now.

        ``sent_at`` is when we last sent anything; ``is_waiting`` says that other
        timers watch the peer.
        """
        if self.deadline > now:
            return IdleStep.NOTHING
        if is_waiting:
            self.deadline = now + self._interval
            return IdleStep.NOTHING
        if now - self.heard_at >= self._probe_idle:
            return self._probe(now)
        self._misses = 0
        due = sent_at + self._interval
        if due > now:
            self.deadline = due
            return IdleStep.NOTHING
        self.deadline = now + self._interval
        return IdleStep.SEND_ACK

    def _probe(self, now: float) -> IdleStep:
        if self._misses == MAX_MISSES:
            return IdleStep.GIVE_UP
        self._misses += 1
        self.deadline = now + PROBE_GAP_S
        return IdleStep.SEND_PROBE
