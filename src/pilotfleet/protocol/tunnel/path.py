"""How one peer is reached: directly or through the beacon (wire.md section 9).

A peer is *direct* or *relayed*; relayed is *pinned* when the registry says that the
peer takes relay only. We pin nothing else, where 1.18.0 also pins after a black hole
and after a first contact by relay: a pinned peer stays on the relay until its next
path reset, while an unpinned one comes back with three frames opened directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.tunnel.config import (
    BLACKHOLE_PROBE,
    BLACKHOLE_SENDS,
    BLACKHOLE_SILENCE,
    DIRECT_HOLD,
    DIRECT_HOLD_MAX,
    DIRECT_OPENS,
    RELAY_OPENS,
    UPGRADE_INTERVAL,
    UPGRADE_PROBES,
    UPGRADE_SPACING,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Path"]

_NEVER: Final = float("inf")
_ANSWER: Final = 2.0
"""What the answer to that question may take."""
_DIRECT_PAUSE: Final = 1.0
"""Frames by relay say nothing while direct ones still come."""


class Path:
    """The state of section 9.1."""

    __slots__ = (
        "_direct_from",
        "_direct_hold",
        "_direct_opens",
        "_probes_left",
        "_relay_opens",
        "_returned",
        "_unanswered",
        "_unanswered_since",
        "address",
        "asked_at",
        "candidate",
        "last_direct",
        "last_receive",
        "last_send",
        "next_upgrade",
        "pinned",
        "relayed",
    )

    def __init__(self, now: float) -> None:
        self.address: Endpoint | None = None
        self.candidate: Endpoint | None = None
        """Where the beacon sees the peer, if that is elsewhere. The registry knows
        what the peer told it, and a NAT may have changed its mind since."""
        self.asked_at = 0.0
        """When a silent peer was asked whether it is there; 0: it was not."""
        self.relayed = False
        self.pinned = False
        self.last_receive = now
        """When anything of the peer was last opened."""
        self.last_direct = -1.0
        self.last_send = now
        self.next_upgrade = 0.0
        self._direct_opens = 0
        self._relay_opens = 0
        self._probes_left = 0
        self._unanswered = 0
        self._unanswered_since = 0.0
        self._returned = -DIRECT_HOLD_MAX
        self._direct_hold = 0.0
        self._direct_from = -1.0

    def received_directly(self, source: Endpoint, now: float) -> bool:
        """Note a frame opened from the peer; tell whether that ended the relaying."""
        self.last_receive = self.last_direct = now
        self._unanswered = self._relay_opens = 0
        self.asked_at = 0.0
        if self.address != source:
            self.address = source
        if not self.relayed or self.pinned or now < self._direct_from:
            return False
        self._direct_opens += 1
        if self._direct_opens < DIRECT_OPENS:
            return False
        self.relayed = False
        self._returned = now
        return True

    def received_by_relay(self, now: float) -> bool:
        """Note a frame opened that came by the beacon; True if all of them do.

        The peer then has given the direct path up, for a reason that we would find
        out only after the silence of `sent`.
        """
        self.last_receive = now
        if self.relayed:
            return False
        self._relay_opens += 1
        is_recent = now - self.last_direct < _DIRECT_PAUSE
        return self._relay_opens >= RELAY_OPENS and not is_recent

    def sent(self, now: float) -> bool:
        """Note a packet the peer should react to; True if `blackhole_at` begins now.

        The silence counts from the first packet without reaction, not from the last
        one received as in 1.18.0: after an idle minute a burst of three would
        otherwise condemn a path before its first answer can arrive.
        """
        if not self._unanswered:
            self._unanswered_since = now
        self._unanswered += 1
        return self._unanswered == BLACKHOLE_SENDS and not self.relayed

    @property
    def blackhole_at(self) -> float:
        """When silence calls for a question, and without an answer for the relay."""
        if self.relayed or self._unanswered < BLACKHOLE_SENDS:
            return _NEVER
        if not self.asked_at:
            return self._unanswered_since + BLACKHOLE_PROBE
        return max(self._unanswered_since + BLACKHOLE_SILENCE, self.asked_at + _ANSWER)

    def absolve(self) -> None:
        """Let the silence count anew: there is no other path."""
        self._unanswered = 0
        self.asked_at = 0.0

    def died(self, now: float) -> None:
        """Note that the direct path fell silent; soon after its return it rests."""
        if now - self._returned >= max(DIRECT_HOLD, 2 * self._direct_hold):
            self._direct_hold = 0.0
            return
        self._direct_hold = min(DIRECT_HOLD_MAX, 2 * self._direct_hold or DIRECT_HOLD)
        self._direct_from = now + self._direct_hold

    def is_confirmed(self, now: float) -> bool:
        """Tell whether the peer proved its address a moment ago."""
        return self.last_direct >= 0.0 and now - self.last_direct < BLACKHOLE_SILENCE

    def use_relay(self, now: float, *, probe_in: float = UPGRADE_INTERVAL) -> None:
        """Go through the beacon until three frames arrive directly."""
        if not self.relayed:
            self.relayed = True
            self.next_upgrade = now + probe_in
        self._direct_opens = self._relay_opens = 0
        self._probes_left = 0
        self._unanswered = 0
        self.asked_at = 0.0

    def use_direct(self, source: Endpoint, now: float) -> None:
        """Take the address a key exchange came from."""
        self.address = source
        self.last_receive = self.last_direct = now
        self.relayed = self.pinned
        self._unanswered = self._relay_opens = 0
        self.asked_at = 0.0

    def pin(self, pinned: bool) -> None:
        """Follow what the registry says about relay only."""
        self.relayed = pinned or (self.relayed and not self.pinned)
        self.pinned = pinned

    def next_probe(self, now: float) -> bool:
        """Plan the upgrade probes: five, 200 ms apart, every 15 s.

        Returns:
            True when this probe begins a series: it needs a punch request as well.
        """
        begins = not self._probes_left
        self._probes_left = (self._probes_left or UPGRADE_PROBES) - 1
        wait = UPGRADE_SPACING
        if not self._probes_left:
            wait = UPGRADE_INTERVAL - UPGRADE_SPACING * (UPGRADE_PROBES - 1)
        self.next_upgrade = now + wait
        return begins
