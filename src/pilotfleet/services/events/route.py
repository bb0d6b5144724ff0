"""The way of a publisher to the first of its brokers that can be reached."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import PilotError
from pilotfleet.services.events.standby import StandbyChoice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pilotfleet.services.events.host import BrokerHost
    from pilotfleet.services.events.links import Link

__all__ = ["Route"]

logger = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
"""For a broker that others stand by for. One alone gets the time of any dial."""


class Route:
    """Connects a publisher, moves on when a broker fails, and finds the way back.

    Args:
        host: Owns the tasks.
        names: The brokers, in the order of preference.
        open_link: Connects to one of them, in so many seconds.
        choice: What is known of these brokers; shared by all who use them.
        clock: A monotonic one.
    """

    def __init__(
        self,
        host: BrokerHost,
        names: Sequence[str],
        open_link: Callable[[str, float | None], Awaitable[Link]],
        *,
        choice: StandbyChoice | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._names = tuple(names)
        self._open_link = open_link
        self._clock = clock
        self._choice = choice or StandbyChoice(len(self._names))
        self._place = 0
        self._is_probing = False
        self._is_closed = False
        self._found: tuple[int, Link] | None = None

    @property
    def has_standby(self) -> bool:
        """Whether there is more than one broker."""
        return len(self._names) > 1

    @property
    def may_retry(self) -> bool:
        """Whether another broker can be tried at once."""
        return self.has_standby and self._choice.has_due(self._clock())

    @property
    def has_better(self) -> bool:
        """Whether a broker of earlier place was reached; see :meth:`take_better`."""
        return self._found is not None

    def __str__(self) -> str:
        return ", ".join(self._names)

    async def connect(self) -> Link:
        """Return a link to the first broker that can be reached.

        Raises:
            PilotError: There is none; it says why not the first.
        """
        first: PilotError | None = None
        for place in self._choice.order(self._clock()):
            try:
                link = await self._open(place)
            except PilotError as error:
                first = first or error
                continue
            if place:
                logger.info("publishing to stand-by broker %s", self._names[place])
            self._place = place
            return link
        assert first is not None
        raise first

    def fail(self) -> None:
        """Take note that the link in use broke."""
        self._choice.failed(self._place, self._clock())

    def look_back(self) -> None:
        """Try a broker of earlier place, if it is time; without waiting for it."""
        if self._is_probing or self._found is not None:
            return
        place = self._choice.better(self._place, self._clock())
        if place is not None:
            self._is_probing = True
            name = f"look for broker {self._names[place]}"
            self._host.spawn(self._probe(place), name=name)

    def take_better(self) -> Link | None:
        """Return the link that :meth:`look_back` found, to be used from now on."""
        if self._found is None:
            return None
        (self._place, link), self._found = self._found, None
        if not link.is_open:
            self.fail()
            return None
        logger.info("publishing to broker %s again", self._names[self._place])
        return link

    async def aclose(self) -> None:
        """Close a link that was found and not taken, and let none be found later."""
        self._is_closed = True
        found, self._found = self._found, None
        if found is not None:
            await found[1].close()

    async def _open(self, place: int) -> Link:
        name = self._names[place]
        try:
            link = await self._open_link(name, CONNECT_S if self.has_standby else None)
        except PilotError as error:
            logger.info("broker %s: %s", name, error)
            self._choice.failed(place, self._clock())
            raise
        self._choice.reached(place)
        return link

    async def _probe(self, place: int) -> None:
        try:
            link = await self._open(place)
        except PilotError:
            return  # Noted, and left alone for longer.
        finally:
            self._is_probing = False
        if self._is_closed:
            await link.close()
        else:
            self._found = place, link
