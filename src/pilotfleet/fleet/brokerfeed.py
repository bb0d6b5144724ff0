"""What one broker has for a subscription, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import ConnectionReset, PilotError
from pilotfleet.fleet.targets import resolve_target
from pilotfleet.protocol.services.eventoptions import decode_mark, encode_options
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    MARK_TOPIC,
    EventDecoder,
    encode_event,
    is_reserved,
)
from pilotfleet.protocol.topics import ALL_TOPICS, is_pattern, matches
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.client.streams import ClientStream
    from pilotfleet.fleet.place import Place
    from pilotfleet.protocol.address import Address
    from pilotfleet.protocol.services.eventoptions import MarkFrame
    from pilotfleet.protocol.services.events import Event

__all__ = ["BrokerFeed"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 30.0
"""A connection that lasted so long was a good one."""
GREETING_S: Final = 3.0
"""For the first mark of a broker of ours; an official one sends none."""


class BrokerFeed:
    """One broker's part of a subscription; :meth:`run` does the work."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[DaemonClient]],
        name: str,
        pattern: str,
        place: Place,
    ) -> None:
        self._connect = connect
        self._name = name
        self._pattern = pattern
        self._knows_patterns: bool | None = None
        """What the last connection showed of the broker; None before the first."""
        self._chooses_here = False
        """Whether all topics were asked for, as the broker knows no patterns."""
        self.place = place
        self.is_following = False
        self.error: PilotError | None = None
        """Why the last try failed."""

    async def run(
        self,
        take: Callable[[Sequence[Event | MarkFrame]], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        """Follow until cancelled, connecting again as often as needed.

        Args:
            take: Gets what came; the broker waits as long as it does.
            on_change: Called when the broker is heard, and when no more.
        """
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with await self._connect() as client:
                    await self._follow(client, take, on_change)
            except PilotError as error:
                logger.info("events of broker %s: %s", self._name, error)
                self.error = error
            if self.is_following:
                self.place.leave(time.monotonic())
            self.is_following = False
            on_change()
            was_steady = time.monotonic() - began >= STEADY_S
            failures = 1 if was_steady else failures + 1
            await asyncio.sleep(
                backoff_s(failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
            )

    async def _follow(
        self,
        client: DaemonClient,
        take: Callable[[Sequence[Event | MarkFrame]], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        address = await resolve_target(client, self._name)
        to = await self._subscribe(client, address)
        self.is_following = True
        on_change()
        while True:
            items = [item for event in to.events for item in self._read(event)]
            if items:
                await take(items)
            data = await to.stream.read()
            if not data:
                raise ConnectionReset(f"broker {self._name} ended the subscription")
            to.events = to.decoder.feed(data)

    @property
    def _is_real_pattern(self) -> bool:
        """Whether an official broker would not know the pattern."""
        return is_pattern(self._pattern) and self._pattern != ALL_TOPICS

    async def _subscribe(self, client: DaemonClient, address: Address) -> _Subscribed:
        """Return a subscription that the broker understands."""
        now = time.monotonic()
        options = encode_options(self.place.options(now))
        self.place.connect(now)

        async def ask(pattern: str) -> _Subscribed:
            stream = await client.dial(address, EVENT_PORT)
            await stream.write(encode_event(pattern, options))
            return _Subscribed(stream, EventDecoder(), [])

        self._chooses_here = self._is_real_pattern and self._knows_patterns is False
        if self._chooses_here:
            return await ask(ALL_TOPICS)
        if not self._is_real_pattern or self._knows_patterns:
            return await ask(self._pattern)
        # All topics first: nothing is missed while it shows which kind it is, for
        # what comes waits in the stream that nobody reads.
        everything = await ask(ALL_TOPICS)
        asked = await ask(self._pattern)
        asked.events = await self._greeting(asked)
        if asked.is_greeted:
            await everything.stream.close()
            return asked
        await asked.stream.close()
        self._knows_patterns, self._chooses_here = False, True
        return everything

    async def _greeting(self, to: _Subscribed) -> list[Event]:
        """Return the first that a broker says, or nothing after some time."""
        events: list[Event] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(GREETING_S):
                while not events:
                    data = await to.stream.read()
                    if not data:
                        raise ConnectionReset(
                            f"broker {self._name} refused the subscription"
                        )
                    events = to.decoder.feed(data)
        return events

    def _read(self, event: Event) -> list[Event | MarkFrame]:
        """Return what an event is to us: itself, a mark, or nothing."""
        if event.topic == MARK_TOPIC:
            mark = decode_mark(event.payload)
            if mark is None:
                return []
            # Whoever makes marks knows patterns: next time it is asked for ours.
            self._knows_patterns = True
            self.place.mark(mark)
            return [mark]
        if is_reserved(event.topic):
            return []
        if self._chooses_here and not matches(self._pattern, event.topic):
            return []
        return [event] if self.place.take(event, time.monotonic()) else []


@dataclass(slots=True)
class _Subscribed:
    """A connection that subscribes."""

    stream: ClientStream
    decoder: EventDecoder
    events: list[Event]
    """What came last."""

    @property
    def is_greeted(self) -> bool:
        """Whether the first thing that came is a mark, as brokers of ours send it."""
        return bool(self.events) and self.events[0].topic == MARK_TOPIC
