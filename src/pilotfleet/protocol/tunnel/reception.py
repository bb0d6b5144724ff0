"""What is remembered of strangers: rate limits, and greetings that wait for a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.protocol.limits import Cooldown, TokenBuckets
from pilotfleet.protocol.tunnel.config import (
    KEY_REQUEST_INTERVAL,
    TABLE_SIZE,
    TunnelConfig,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.tunnel.frames import KeyExchange

__all__ = ["Greeting", "Lookup", "Reception"]

# From the specification.
_LOOKUP_COOLDOWN: Final = 3.0
"""Seconds a failed or repeated key lookup is not tried again (wire.md 6.2)."""

# Ours.
_MAX_GREETINGS: Final = 4
"""Frames kept per lookup. More than one, so that a forged PILA that arrives first
does not keep the true one out."""


class Greeting(NamedTuple):
    """A PILA whose sender's key is being looked up."""

    exchange: KeyExchange
    source: Endpoint | None
    """None when it came by relay."""


class Lookup:
    """One key lookup under way."""

    __slots__ = ("deadline", "greetings", "refreshed")

    def __init__(self, deadline: float, *, refreshed: bool) -> None:
        self.deadline = deadline
        self.greetings: list[Greeting] = []
        self.refreshed = refreshed
        """The answer comes from the registry itself: a mismatch is final."""


class Reception:
    """The tables of one endpoint; made when the first stranger calls."""

    __slots__ = (
        "_config",
        "_direct",
        "_failed",
        "_lookups",
        "_refreshed",
        "_relayed",
        "_requests",
    )

    def __init__(self, config: TunnelConfig) -> None:
        self._config = config
        self._direct = TokenBuckets(
            config.exchanges_per_second, config.exchange_burst, capacity=TABLE_SIZE
        )
        self._relayed = TokenBuckets(
            config.relayed_exchanges_per_second,
            config.relayed_exchange_burst,
            capacity=TABLE_SIZE,
        )
        self._requests = Cooldown(KEY_REQUEST_INTERVAL, capacity=TABLE_SIZE)
        self._failed = Cooldown(_LOOKUP_COOLDOWN, capacity=TABLE_SIZE)
        self._refreshed = Cooldown(_LOOKUP_COOLDOWN, capacity=TABLE_SIZE)
        self._lookups: dict[int, Lookup] = {}

    def admits(self, node: int, source: Endpoint | None, now: float) -> bool:
        """Take a token for a frame that costs work or an answer (6.2 rule 2)."""
        if node in self._config.reply_whitelist:
            return True
        if source is None:
            return self._relayed.allow(node, now)
        return self._direct.allow(source[0], now)

    def may_request_key(self, node: int, source: Endpoint | None, now: float) -> bool:
        """Allow one reaction to unreadable frames per node and 3 s (6.4).

        It takes a token as well: frames with invented senders must not turn this
        node into an amplifier.
        """
        if node in self._config.rekey_whitelist:
            return self.admits(node, source, now)
        return (
            not self._requests.is_cooling(node, now)
            and self.admits(node, source, now)
            and self._requests.allow(node, now)
        )

    def begin_lookup(self, node: int, now: float, *, refresh: bool = False) -> bool:
        """Open a lookup; False if one is under way, or there is no room."""
        lookup = self._lookups.get(node)
        if lookup is not None and now < lookup.deadline:
            return False
        if len(self._lookups) >= self._config.max_lookups:
            self._expire(now)
            if len(self._lookups) >= self._config.max_lookups:
                return False
        deadline = now + self._config.lookup_timeout
        self._lookups[node] = Lookup(deadline, refreshed=refresh)
        return True

    def hold(self, greeting: Greeting, now: float, *, refresh: bool) -> bool:
        """Keep a greeting until the key is known; True if it must be looked up.

        Args:
            greeting: The frame and where it came from.
            now: The current time.
            refresh: A key is known, but it is not the one in the frame.
        """
        node = greeting.exchange.node
        begun = False
        if node not in self._lookups or now >= self._lookups[node].deadline:
            if not self._may_look_up(node, now, refresh=refresh):
                return False
            begun = self.begin_lookup(node, now, refresh=refresh)
        lookup = self._lookups.get(node)
        if lookup is not None and len(lookup.greetings) < _MAX_GREETINGS:
            lookup.greetings.append(greeting)
        return begun

    def finish_lookup(self, node: int) -> Lookup | None:
        """Close a lookup and return what waited for it."""
        return self._lookups.pop(node, None)

    def lookup_failed(self, node: int, now: float) -> None:
        """Remember that the registry does not know the node."""
        self._failed.allow(node, now)

    def _may_look_up(self, node: int, now: float, *, refresh: bool) -> bool:
        if refresh:
            # Anybody can send frames with a wrong key: one look per 3 s is enough.
            return self._refreshed.allow(node, now)
        return not self._failed.is_cooling(node, now)

    def _expire(self, now: float) -> None:
        expired = [n for n, lookup in self._lookups.items() if now >= lookup.deadline]
        for node in expired:
            del self._lookups[node]
