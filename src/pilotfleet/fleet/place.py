"""How far a subscriber has come at one broker. Performs no I/O.

After a lost connection the broker is asked for what its log has behind the last mark.
What came after that mark is known here already, and is left out when it comes again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.services.eventoptions import MarkFrame, SubscribeOptions

if TYPE_CHECKING:
    from pilotfleet.protocol.services.events import Event

__all__ = ["Place"]

MAX_KNOWN: Final = 100_000
"""Events remembered since the last mark; a mark comes every second."""
KNOWN_S: Final = 30.0
"""How long after a reconnect they may come again."""


class Place:
    """The place of one subscription at one broker.

    Times are those of one monotonic clock.
    """

    def __init__(
        self, *, since: float | None = None, position: tuple[str, int] | None = None
    ) -> None:
        """Start at a position of a log, or with so many last seconds of it."""
        self._since = since or 0.0
        self._log, self._id = position or ("", 0)
        self._wanted: float | None = None
        """When the subscription was asked for."""
        self._connected = 0.0
        """When the last connection began."""
        self._left: float | None = None
        """When the last one that marks came from ended."""
        self._is_marked = False
        self._fresh: Counter[int] = Counter()
        """What came since the last mark."""
        self._known: Counter[int] = Counter()
        """What came before the connection was lost, and may come again."""
        self._known_until = 0.0
        self._lost_before = 0
        self._lost_now = 0

    @property
    def lost(self) -> int:
        """Events that the broker has lost for us so far, over all connections."""
        return self._lost_before + self._lost_now

    def options(self, now: float) -> SubscribeOptions:
        """Return what to ask for at a new connection."""
        since = self._missed_s(now)
        return SubscribeOptions(
            since=since if since > 0 else None,
            after=self._id if self._log else None,
            log=self._log,
            marks=True,
        )

    def connect(self, now: float) -> None:
        """Take note that a connection begins."""
        self._connected = now
        self._known = self._fresh
        self._fresh = Counter(self._known)
        self._known_until = now + KNOWN_S

    def take(self, event: Event, now: float) -> bool:
        """Tell whether an event is new, and remember it."""
        if not self._log:
            # The broker has no log: nothing comes twice.
            return True
        key = hash(event)
        if self._known:
            if now >= self._known_until:
                self._known.clear()
            elif key in self._known:
                self._known[key] -= 1
                if not self._known[key]:
                    del self._known[key]
                return False
        if len(self._fresh) < MAX_KNOWN:
            self._fresh[key] += 1
        return True

    def mark(self, mark: MarkFrame) -> None:
        """Take a mark of the broker."""
        self._is_marked = True
        self._log, self._id = mark.log, mark.id
        self._lost_now = mark.lost
        # What has still to come again stays known until it came.
        self._fresh = Counter(self._known)

    def leave(self, now: float) -> None:
        """Take note that the connection ended."""
        if self._is_marked:
            self._left = now
        self._lost_before, self._lost_now = self.lost, 0

    def _missed_s(self, now: float) -> float:
        """Return how many last seconds of a log hold what we do not know yet."""
        if self._wanted is None:
            self._wanted = now
        if self._left is None:
            return self._since + now - self._wanted
        # Of our log the position counts. All of another log is new to us, and it may
        # have begun long before we found out that the first one is away.
        return now - (self._connected if self._log else self._left)
