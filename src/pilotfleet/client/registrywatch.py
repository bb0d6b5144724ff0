"""Follow a watch at a registry for as long as somebody wants to know.

The shell of :class:`~pilotfleet.client.watching.Watching`. A question of a watch stays
out until there is news, and replies keep the order of requests, so a watch has a
connection of its own, :class:`WatchLink`.

A registry that restarts loses all watchers at the same moment. Each comes back after a
pause that is drawn between nothing and several seconds, and longer after each failure,
so they come one by one.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.client.links import LinkConfig, LinkPool
from pilotfleet.client.pacing import deferral_pause_s, deferral_s, watch_pause_s
from pilotfleet.client.watching import TooManyRows, Watching
from pilotfleet.errors import (
    Busy,
    Closed,
    DecodeError,
    PilotError,
    ProtocolError,
    RegistryError,
)
from pilotfleet.protocol.registry.framing import encode_json_frame
from pilotfleet.protocol.registry.messages import decode_request, encode_message, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pilotfleet.client.watching import Change, RowBudget, WatchQuery
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["Pace", "RegistryWatch", "WatchLink", "WatchSource"]

PAGE: Final = 1000
MAX_DEFERRALS: Final = 5
"""How often the first question waits because the registry asks it to."""
UNKNOWN_TYPE: Final = "unknown message type"
"""How a registry begins to refuse what it does not know."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a watch."""

    wait_s: float = 30.0
    """How long a question stays out without news. Longer costs less, and finds a
    connection that died silently later."""
    reply_slack_s: float = 15.0
    """After which, on top of ``wait_s``, the connection is given up."""
    retry_s: float = 5.0
    """Most that is waited after the first failure; doubled with each."""
    longest_retry_s: float = 60.0
    poll_s: float = 30.0
    """Between two searches, where the registry has no watch."""
    poll_jitter: float = 0.2
    idle_s: float = 1.0
    """Pause after a reply that came early and told nothing."""
    least_s: float = 0.05
    """Between two questions, unless the registry has more to tell at once. One of
    ours gathers changes for longer."""


class WatchSource(Protocol):
    """Who asks, and how."""

    def offers_watch(self) -> bool:
        """Tell whether the registry has the extension ``watch``."""

    async def ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Send a ``watch`` with these fields once; return the reply, refusals too."""

    async def search(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Send a ``search`` with these fields; return the page."""


class WatchLink:
    """A connection to a registry that one watch has for itself."""

    def __init__(
        self, endpoint: Endpoint, *, tls: TlsConfig | None, pace: Pace
    ) -> None:
        # One attempt: when to come back is for the watch to say.
        config = LinkConfig(
            connections=1, attempts=1, reply_s=pace.wait_s + pace.reply_slack_s
        )
        self._pool = LinkPool(endpoint, config, tls)

    async def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, once; return the reply, which may be a refusal.

        Raises:
            Unavailable: The registry cannot be reached, or was lost.
            ProtocolError: The reply is no registry message.
        """
        body = await self._pool.exchange(encode_json_frame(encode_message(message)))
        try:
            return decode_request(body)
        except DecodeError as error:
            raise ProtocolError(f"the registry's reply: {error}") from None

    def reset(self) -> None:
        """Give the connection up, as after a change of this machine's address."""
        self._pool.reset()

    def close(self) -> None:
        """Close the connection, and end what waits for it."""
        self._pool.close()


class RegistryWatch:
    """One question that is followed; :meth:`run` does the work."""

    def __init__(
        self,
        query: WatchQuery,
        source: WatchSource,
        rows: RowBudget,
        *,
        pace: Pace | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.query = query
        self.state = Watching(rows)
        self.is_live = False
        """Whether changes are told when they happen, not at the next search."""
        self._source = source
        self._pace = pace or Pace()
        self._rng = rng or random.Random()
        self._is_unknown = False
        self._has_begun = False
        self._deferrals = 0
        self._failures = 0

    async def run(self, on_changes: Callable[[list[Change]], None]) -> None:
        """Follow until cancelled.

        Calls ``on_changes`` after each reply, also with nothing. What goes wrong
        after the first one is tried again for ever.

        Raises:
            PilotError: The first question failed; or there is more to know than may
                be kept.
        """
        try:
            while True:
                await self._turn(on_changes)
        finally:
            self.state.close()

    async def _turn(self, on_changes: Callable[[list[Change]], None]) -> None:
        """Ask once, and wait for as long as is polite."""
        try:
            if self._source.offers_watch() and not self._is_unknown:
                pause_s = await self._watch(on_changes)
            else:
                pause_s = await self._search(on_changes)
        except (TooManyRows, Closed):
            raise
        except PilotError as error:
            if not self._has_begun:
                raise
            if isinstance(error, ProtocolError):
                self.state.forget()
            pause_s = self._retry_pause()
        else:
            self._failures = 0
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _watch(self, on_changes: Callable[[list[Change]], None]) -> float:
        state, pace = self.state, self._pace
        # The beginning is told at once; and whoever has an unfinished answer must not
        # wait for news to hear the rest.
        wait_s = 0 if state.has_more or not state.watch else pace.wait_s
        asked = asyncio.get_running_loop().time()
        reply = await self._source.ask(
            {**self.query.fields(), **state.request(), "wait_s": wait_s, "limit": PAGE}
        )
        if "error" in reply:
            return self._refused(reply)
        changes = state.receive(reply)
        self._tell(changes, on_changes, is_live=True)
        took_s = asyncio.get_running_loop().time() - asked
        if state.has_more and not state.was_empty:
            return 0.0
        if not wait_s and not state.has_more:
            return 0.0
        # A registry that answers at once, whatever it says, is not asked in a loop.
        least_s = pace.least_s if changes else pace.idle_s
        return least_s if took_s < least_s else 0.0

    async def _search(self, on_changes: Callable[[list[Change]], None]) -> float:
        """Search all pages once."""
        state, pace = self.state, self._pace
        # A registry that is replaced by a newer one says so when we register there.
        self._is_unknown = self._is_unknown and self._source.offers_watch()
        state.begin_pass()
        while True:
            fields = {**self.query.fields(), "limit": PAGE, "cursor": state.cursor}
            changes = state.receive_page(await self._source.search(fields))
            self._tell(changes, on_changes, is_live=False)
            if not state.cursor:
                break
        jitter = self._rng.uniform(1 - pace.poll_jitter, 1 + pace.poll_jitter)
        return pace.poll_s * jitter

    def _tell(
        self,
        changes: list[Change],
        on_changes: Callable[[list[Change]], None],
        *,
        is_live: bool,
    ) -> None:
        self._has_begun, self._deferrals = True, 0
        self.is_live = is_live
        on_changes(changes)

    def _refused(self, reply: Mapping[str, Any]) -> float:
        """Return when to ask again.

        Raises:
            RegistryError: The registry does not say that it is a matter of time.
            Busy: It has said so too often.
        """
        error = text(reply, "error") or "request failed"
        if error.startswith(UNKNOWN_TYPE):
            # It was replaced by an older one since we registered there.
            self._is_unknown = True
            return 0.0
        wait_s = deferral_s(reply)
        if not wait_s:
            raise RegistryError(error)
        self._deferrals += 1
        if not self._has_begun and self._deferrals > MAX_DEFERRALS:
            raise Busy(f"the registry is too busy: {error}")
        return deferral_pause_s(wait_s, self._rng)

    def _retry_pause(self) -> float:
        self._failures += 1
        return watch_pause_s(
            self._failures,
            first_s=self._pace.retry_s,
            longest_s=self._pace.longest_retry_s,
            rng=self._rng,
        )
