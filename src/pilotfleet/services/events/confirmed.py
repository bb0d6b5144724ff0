"""Publishing that returns when a broker has confirmed the event: at least once.

Whoever publishes waits, so nothing here gives way to anything. Events that were not
confirmed when a connection broke are sent again, to another broker if need be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import NotSupported, PilotError, TimedOut
from pilotfleet.services.events.config import WRITE_SIZE
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pilotfleet.protocol.address import Address
    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.events.host import BrokerHost
    from pilotfleet.services.events.links import Link
    from pilotfleet.services.events.route import Route

__all__ = ["ConfirmedPublisher"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0
STALL_S: Final = 10.0
"""A broker that confirms nothing for so long is taken for dead."""


class _Pending:
    """An event that somebody waits for."""

    __slots__ = ("done", "frame", "was_written")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.was_written = False
        self.done: asyncio.Future[Address] = asyncio.get_running_loop().create_future()


class ConfirmedPublisher:
    """The lasting connection of one agent for events that it wants confirmed."""

    def __init__(self, host: BrokerHost, route: Route, config: BrokerConfig) -> None:
        self._host = host
        self._route = route
        self._config = config
        self._queue: deque[_Pending] = deque()
        self._written: deque[_Pending] = deque()
        self._bytes = 0
        self._room = asyncio.Event()
        self._link: Link | None = None
        self._settled = 0
        self._is_sending = False
        self._error: PilotError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return not self._is_sending

    async def aclose(self) -> None:
        """End the connection, if there is one."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await self._route.aclose()

    async def send(self, frame: bytes) -> Address:
        """Return the broker that has confirmed a frame.

        Cancelled, the event may have been published nevertheless.

        Raises:
            NotSupported: No broker confirms events.
            TimedOut: None did in time.
        """
        pending = _Pending(frame)
        try:
            async with asyncio.timeout(self._config.publish_timeout_s):
                await self._wait_room()
                self._queue.append(pending)
                self._bytes += len(frame)
                self._start()
                return await pending.done
        except TimeoutError:
            raise self._timed_out(pending) from None
        finally:
            self._forget(pending)

    async def _wait_room(self) -> None:
        config = self._config
        while (
            len(self._queue) + len(self._written) >= config.max_queued_events
            or self._bytes >= config.max_queued_bytes
        ):
            self._room.clear()
            await self._room.wait()

    def _timed_out(self, pending: _Pending) -> TimedOut:
        if pending.was_written:
            return TimedOut(
                f"no confirmation from {self._route}: the event may or may not have"
                " arrived",
                hint="publish it again if a second copy does no harm",
            )
        reason = f": {self._error}" if self._error is not None else ""
        return TimedOut(f"{self._route} did not take the event{reason}")

    def _forget(self, pending: _Pending) -> None:
        """Never send an event again that nobody waits for any more."""
        if pending.done.done() and not pending.done.cancelled():
            return
        pending.done.cancel()
        if pending in self._queue:
            self._queue.remove(pending)
            self._release(pending)

    def _release(self, pending: _Pending) -> None:
        self._bytes -= len(pending.frame)
        self._room.set()

    def _start(self) -> None:
        if not self._is_sending:
            self._is_sending = True
            name = f"publish confirmed to {self._route}"
            self._host.spawn(self._drain(), name=name)

    async def _drain(self) -> None:
        failures = 0
        try:
            while self._queue or self._written:
                try:
                    await self._exchange()
                    failures = 0
                except PilotError as error:
                    logger.info("publishing to %s: %s", self._route, error)
                    self._error = error
                    self._restore()
                    if isinstance(error, NotSupported):
                        self._refuse(error)
                    elif not self._route.may_retry:
                        failures += 1
                        await _pause(failures)
        except BaseException:
            # The host ends, or there is a fault of ours: nobody shall wait in vain.
            self._restore()
            self._refuse(TimedOut(f"publishing to {self._route} ended"))
            raise
        finally:
            self._is_sending = False

    async def _exchange(self) -> None:
        """Write what waits, or else wait for confirmations."""
        link = await self._connected()
        batch: list[_Pending] = []
        size = 0
        while self._queue and size < WRITE_SIZE:
            pending = self._queue.popleft()
            pending.was_written = True
            batch.append(pending)
            size += len(pending.frame)
        # They count as written at once: a broken write may have arrived.
        self._written += batch
        if batch:
            await self._within(link.write([pending.frame for pending in batch]))
        else:
            await self._within(link.wait_progress())
        self._settle(link)

    async def _within(self, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                await work
        except TimeoutError:
            raise TimedOut(f"{self._route} confirms nothing") from None

    async def _connected(self) -> Link:
        link = self._link
        if link is None or not link.is_open:
            # It may have ended while nobody looked; what was written is not confirmed.
            self._restore()
            return self._use(await self._route.connect())
        self._route.look_back()
        # Only when nothing is under way, which keeps the order.
        if self._written or (better := self._route.take_better()) is None:
            return link
        self._use(better)
        await link.close()
        return better

    def _use(self, link: Link) -> Link:
        self._link, self._settled = link, link.settled
        return link

    def _settle(self, link: Link) -> None:
        while self._written and self._settled < link.settled:
            pending = self._written.popleft()
            self._settled += 1
            self._release(pending)
            if not pending.done.done():
                pending.done.set_result(link.broker)

    def _restore(self) -> None:
        """Give up the link, and take back what it has not confirmed."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()
            self._route.fail()
        written, self._written = self._written, deque()
        for pending in reversed(written):
            if pending.done.done():
                self._release(pending)
            else:
                self._queue.appendleft(pending)

    def _refuse(self, error: PilotError) -> None:
        queue, self._queue = self._queue, deque()
        for pending in queue:
            self._release(pending)
            if not pending.done.done():
                pending.done.set_exception(type(error)(str(error), hint=error.hint))


async def _pause(failures: int) -> None:
    await asyncio.sleep(
        backoff_s(failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
    )
