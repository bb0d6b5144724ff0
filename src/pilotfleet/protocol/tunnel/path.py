"""How one peer is reached: directly or through the beacon (wire.md section 9).

A peer is *direct* or *relayed*; relayed is *pinned* when the registry says that the
peer takes relay only. We pin nothing else, where 1.18.0 also pins after a black hole
and after a first contact by relay: a pinned peer stays on the relay until its next
path reset, while an unpinned one comes back with three frames opened directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.protocol.tunnel.config import (
    BLACKHOLE_SENDS,
    BLACKHOLE_SILENCE,
    DIRECT_OPENS,
    UPGRADE_INTERVAL,
    UPGRADE_PROBES,
    UPGRADE_SPACING,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Path"]


class Path:
    """The state of section 9.1."""

    __slots__ = (
        "_direct_opens",
        "_probes_left",
        "_unanswered",
        "_unanswered_since",
        "address",
        "last_direct",
        "last_receive",
        "last_send",
        "next_upgrade",
        "pinned",
        "relayed",
    )

    def __init__(self, now: float) -> None:
        self.address: Endpoint | None = None
        self.relayed = False
        self.pinned = False
        self.last_receive = now
        """When anything of the peer was last opened."""
        self.last_direct = -1.0
        self.last_send = now
        self.next_upgrade = 0.0
        self._direct_opens = 0
        self._probes_left = 0
        self._unanswered = 0
        self._unanswered_since = 0.0

    def received_directly(self, source: Endpoint, now: float) -> bool:
        """Note a frame opened from the peer; tell whether that ended the relaying."""
        self.last_receive = self.last_direct = now
        self._unanswered = 0
        if self.address != source:
            self.address = source
        if not self.relayed or self.pinned:
            return False
        self._direct_opens += 1
        if self._direct_opens < DIRECT_OPENS:
            return False
        self.relayed = False
        return True

    def received_by_relay(self, now: float) -> None:
        """Note a frame opened from the peer by way of the beacon."""
        self.last_receive = now

    def sent(self, now: float) -> bool:
        """Note a packet the peer should react to; True if they seem to vanish.

        The silence counts from the first packet without reaction, not from the last
        one received as in 1.18.0: after an idle minute a burst of three would
        otherwise condemn a path before its first answer can arrive.
        """
        if not self._unanswered:
            self._unanswered_since = now
        self._unanswered += 1
        return (
            self._unanswered >= BLACKHOLE_SENDS
            and now - self._unanswered_since > BLACKHOLE_SILENCE
            and not self.relayed
        )

    def is_confirmed(self, now: float) -> bool:
        """Tell whether the peer proved its address a moment ago."""
        return self.last_direct >= 0.0 and now - self.last_direct < BLACKHOLE_SILENCE

    def use_relay(self, now: float, *, probe_in: float = UPGRADE_INTERVAL) -> None:
        """Go through the beacon until three frames arrive directly."""
        if not self.relayed:
            self.relayed = True
            self.next_upgrade = now + probe_in
        self._direct_opens = 0
        self._probes_left = 0
        self._unanswered = 0

    def use_direct(self, source: Endpoint, now: float) -> None:
        """Take the address a key exchange came from."""
        self.address = source
        self.last_receive = self.last_direct = now
        self.relayed = self.pinned
        self._unanswered = 0

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
