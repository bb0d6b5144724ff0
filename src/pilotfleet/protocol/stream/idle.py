"""Keeping idle connections open, and noticing dead ones (wire.md section 11.11).

A reference daemon closes a connection on which it receives nothing for two
minutes, and never answers an empty ACK. So we send one of our own on every idle
connection. It tells us nothing about the peer; when the peer is silent too long,
a one-byte segment that it has already taken makes a live peer answer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from pilotfleet.protocol.grid import on_grid
from pilotfleet.protocol.stream.config import NEVER

__all__ = ["IdleStep", "IdleWatch"]

# From the specification.
PROBE_GAP_S: Final = 15.0
MAX_MISSES: Final = 3

# Of our choosing.
DOUBT_GAP_S: Final = 1.0
MAX_DOUBTS: Final = 8
"""Probes of a peer that may have been restarted: enough for a path that loses a
quarter of its packets, and done long before its program gives up on us."""


class IdleStep(Enum):
    """What an idle connection should do."""

    NOTHING = "nothing"
    SEND_ACK = "send an empty ACK"
    SEND_PROBE = "send a probe"
    GIVE_UP = "give up"
    TIME_OUT = "end it as idle"


class IdleWatch:
    """When the peer was heard last; a packet only stores a time here."""

    __slots__ = (
        "_doubted_at",
        "_interval",
        "_misses",
        "_probe_idle",
        "_timeout",
        "deadline",
        "heard_at",
    )

    def __init__(
        self,
        now: float,
        *,
        interval_s: float,
        probe_idle_s: float,
        timeout_s: float = NEVER,
    ) -> None:
        self.heard_at = now
        # A deadline is never later than the timeout, which is then found in time.
        self._interval = min(interval_s, timeout_s)
        self._probe_idle = probe_idle_s
        self._timeout = timeout_s
        self._misses = 0
        self._doubted_at = -NEVER
        self._wait_until(now + self._interval)

    def doubt(self, now: float) -> None:
        """Find out soon whether the peer still has the connection.

        1.18.0 drops data of a connection that it does not know, so after a restart of
        the peer nothing but its silence tells.
        """
        self._doubted_at = self.deadline = now
        self._misses = 0

    def take_step(self, now: float, sent_at: float, *, is_waiting: bool) -> IdleStep:
        """Return what to do now.

        ``sent_at`` is when we last sent anything; ``is_waiting`` says that other
        timers watch the peer.
        """
        if self.deadline > now:
            return IdleStep.NOTHING
        if self.heard_at <= self._doubted_at:
            return self._probe(now, DOUBT_GAP_S, MAX_DOUBTS)
        if is_waiting:
            self.deadline = now + self._interval
            return IdleStep.NOTHING
        if now - self.heard_at >= self._timeout:
            return IdleStep.TIME_OUT
        if now - self.heard_at >= self._probe_idle:
            return self._probe(now, PROBE_GAP_S, MAX_MISSES)
        self._misses = 0
        due = sent_at + self._interval
        if due > now:
            self._wait_until(due)
            return IdleStep.NOTHING
        self._wait_until(now + self._interval)
        return IdleStep.SEND_ACK

    def _wait_until(self, deadline: float) -> None:
        # Idle connections are looked at together.
        self.deadline = min(on_grid(deadline), self.heard_at + self._timeout)

    def _probe(self, now: float, gap_s: float, limit: int) -> IdleStep:
        if self._misses == limit:
            return IdleStep.GIVE_UP
        self._misses += 1
        self._wait_until(now + gap_s)
        return IdleStep.SEND_PROBE
