"""All that a tunnel endpoint knows of one peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.grid import GRID_S, on_grid
from pilotfleet.protocol.tunnel.config import (
    COOLDOWN_AFTER_GIVING_UP,
    EXCHANGE_INTERVAL,
    EXCHANGE_SENDS,
    FORGET_AFTER,
    IN_USE,
    KEEPALIVE_INTERVAL,
    PATH_PROBES,
    PATH_SILENCE,
    RESET_INTERVAL,
)
from pilotfleet.protocol.tunnel.path import Path

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.tunnel.growth import Growth
    from pilotfleet.protocol.tunnel.session import Session

__all__ = ["KEEPALIVE_LATEST", "NEVER", "Exchange", "Peer", "keepalive_at"]

NEVER: Final = float("inf")
KEEPALIVE_LATEST: Final = KEEPALIVE_INTERVAL + GRID_S
"""A keepalive is due at most so long after what was sent last."""


def keepalive_at(sent_at: float) -> float:
    """Return when a keepalive is due: on the grid that all peers share."""
    return on_grid(sent_at + KEEPALIVE_INTERVAL)


class Exchange:
    """A key exchange of our own that waits for its answer (wire.md 6.4)."""

    __slots__ = ("deadline", "given_up", "relay_at", "repeat_to", "sends")

    def __init__(self) -> None:
        self.sends = 0
        self.relay_at = NEVER
        """When the relay copy of a greeting leaves that first went directly only."""
        self.repeat_to: Endpoint | None = None
        """Where the greeting is said once more before that."""
        self.given_up = False
        self.deadline = NEVER

    def sent(self, now: float) -> None:
        """Note a transmission."""
        self.sends += 1
        self.deadline = now + EXCHANGE_INTERVAL

    @property
    def is_spent(self) -> bool:
        """All transmissions were made."""
        return self.sends >= EXCHANGE_SENDS

    def give_up(self, now: float) -> None:
        """Rest before anything new is tried."""
        self.given_up = True
        self.deadline = now + COOLDOWN_AFTER_GIVING_UP


class Peer:
    """The tunnel to one peer, and how far its set-up has come.

    One of ``resolve_by``, ``exchange`` and ``session`` is set from the first packet
    on, except between giving up and being forgotten. During a path reset and after
    it, the peer may be resolved and greeted at the same time.
    """

    __slots__ = (
        "exchange",
        "growth",
        "last_reset",
        "last_traffic",
        "next_path_probe",
        "node",
        "path",
        "path_probes",
        "previous",
        "previous_opens",
        "previous_until",
        "public_key",
        "queue",
        "resolve_by",
        "session",
        "wake_at",
        "was_established",
    )

    def __init__(self, node: int, now: float) -> None:
        self.node = node
        self.public_key: bytes | None = None
        """Ed25519, from the registry."""
        self.path = Path(now)
        self.session: Session | None = None
        self.previous: Session | None = None
        """The session that the current one replaced, for a few seconds."""
        self.previous_opens = 0
        self.previous_until = NEVER
        self.exchange: Exchange | None = None
        self.resolve_by = NEVER
        """When the wait for a path ends."""
        self.queue: list[bytes] | None = None
        """Packets that wait for a session."""
        self.growth: Growth | None = None
        self.last_traffic = -IN_USE
        """When the application last sent or received something."""
        self.last_reset = -RESET_INTERVAL
        self.path_probes = 0
        self.next_path_probe = 0.0
        self.wake_at = NEVER
        """Deadline of the one valid entry in the endpoint's heap."""
        self.was_established = False

    def is_in_use(self, now: float) -> bool:
        """Tell whether the application had traffic within two minutes."""
        return now - self.last_traffic < IN_USE

    @property
    def is_resolving(self) -> bool:
        """A path is wanted and not yet given."""
        return self.resolve_by != NEVER

    @property
    def forget_at(self) -> float:
        """When nothing was heard or wanted of it for long enough."""
        return max(self.last_traffic, self.path.last_receive) + FORGET_AFTER

    @property
    def path_probe_at(self) -> float:
        """When the silence calls for the next path probe, or for the reset."""
        due = max(self.path.last_receive + PATH_SILENCE, self.next_path_probe)
        if self.path_probes >= PATH_PROBES:
            return max(due, self.last_reset + RESET_INTERVAL)
        return due

    def next_deadline(self, now: float) -> float:
        """Return when something is to be done for this peer."""
        deadline = min(self.forget_at, self.resolve_by, self.previous_until)
        if self.exchange is not None:
            deadline = min(deadline, self.exchange.deadline)
        if self.session is None:
            return deadline
        if self.growth is not None:
            deadline = min(deadline, self.growth.deadline)
        deadline = min(deadline, self.path.blackhole_at)
        if self.is_in_use(now):
            path = self.path
            deadline = min(deadline, keepalive_at(path.last_send), self.path_probe_at)
            if path.relayed and not path.pinned:
                deadline = min(deadline, path.next_upgrade)
        return deadline
