"""When a dialler repeats its SYN (wire.md section 11.10)."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Dial", "DialStep"]

# From the specification.
DIRECT_SENDS: Final = 3
GAPS_S: Final = (0.25, 0.5, 1.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The wait after each SYN; the back-off starts again with the relay's first."""


class DialStep(Enum):
    """What a dial's timer asks for."""

    SEND = "send"
    SEND_BY_RELAY = "send by relay"
    NO_TUNNEL = "no tunnel"
    NO_ANSWER = "no answer"


class Dial:
    """The ladder of one connection attempt.

    The first SYN is always sent, since that is what makes the tunnel exchange
    keys. Time and number of the further ones count from the moment there is one.
    """

    __slots__ = ("_is_waiting", "_sends", "_started_at", "deadline")

    def __init__(self, now: float, *, has_tunnel: bool, tunnel_wait_s: float) -> None:
        self._sends = 1
        self._started_at = now
        self._is_waiting = not has_tunnel
        self.deadline = now + (GAPS_S[0] if has_tunnel else tunnel_wait_s)

    def start(self, now: float) -> None:
        """Begin the ladder: the tunnel has just delivered the first SYN.

        A dial that was under way loses nothing of its count. Its SYNs went into a
        tunnel that the peer had forgotten, so the next one follows soon.
        """
        if self._is_waiting:
            self._is_waiting = False
            self._started_at = now
            self.deadline = now + GAPS_S[0]
        else:
            self.deadline = min(self.deadline, now + GAPS_S[0])

    def round_trip(self, now: float) -> float | None:
        """Return how long the answer took, if it is clear which SYN it answers."""
        return now - self._started_at if self._sends == 1 else None

    def take_step(self, now: float) -> DialStep:
        """Return what to do now that the deadline has passed."""
        if self._is_waiting:
            return DialStep.NO_TUNNEL
        if self._sends == len(GAPS_S):
            return DialStep.NO_ANSWER
        self.deadline = now + GAPS_S[self._sends]
        self._sends += 1
        is_first_by_relay = self._sends == DIRECT_SENDS + 1
        return DialStep.SEND_BY_RELAY if is_first_by_relay else DialStep.SEND
