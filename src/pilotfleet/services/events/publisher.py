"""Publishing over one lasting connection, to a broker or its stand-bys.

A :class:`Publisher` carries its bounded queue across reconnects, and owns no task
while there is nothing to send.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import ConnectionReset, PilotError, TimedOut
from pilotfleet.services.events.config import WRITE_SIZE
from pilotfleet.services.events.framequeue import FrameQueue
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.protocol.address import Address
    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.events.host import BrokerHost
    from pilotfleet.services.events.links import Link
    from pilotfleet.services.events.route import Route

__all__ = ["Publisher"]

logger = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
STALL_S: Final = 5.0
"""A broker that takes nothing for so long is left for its stand-by."""


class Publisher:
    """The lasting connection from one agent to the first of some brokers."""

    def __init__(
        self,
        host: BrokerHost,
        route: Route,
        config: BrokerConfig,
        *,
        gather_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare it; nothing is connected yet.

        Args:
            host: Owns the tasks.
            route: The way to the brokers.
            config: Limits.
            gather_s: How long events wait for others to be written with.
            clock: A monotonic one.
        """
        self._host = host
        self._route = route
        self._config = config
        self._gather_s = gather_s
        self._clock = clock
        self._frames = FrameQueue(config)
        self._queued = 0
        """Frames so far; that is also the number of the last one in the queue."""
        self._written = 0
        self._unsettled: deque[bytes] = deque()
        """Written, and sent again if the link breaks."""
        self._settled = 0
        self._progress_at = 0.0
        """When something settled, or nothing had to."""
        self._link: Link | None = None
        self._is_sending = False
        self._more = asyncio.Event()
        self._waiters: deque[tuple[int, asyncio.Future[Address]]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._is_sending and not self._frames

    @property
    def broker(self) -> Address | None:
        """The broker in use, once there is one."""
        return self._link.broker if self._link is not None else None

    @property
    def dropped(self) -> int:
        """Events that gave way to younger ones."""
        return self._frames.dropped

    async def aclose(self) -> None:
        """End the connection, if there is one."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await self._route.aclose()

    def post(self, frame: bytes) -> None:
        """Queue a frame, and never wait."""
        self._frames.put(frame)
        self._queued += 1
        self._more.set()
        if not self._is_sending:
            self._is_sending = True
            self._host.spawn(self._drain(), name=f"publish to {self._route}")

    async def send(self, frame: bytes) -> Address:
        """Queue a frame; return the broker that it was written to.

        Raises:
            Unavailable: No broker can be reached. The frame is dropped: whoever was
                told so may publish again.
            TimedOut: It was not written in time. It is dropped, if it is not being
                written just then.
        """
        written: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self.post(frame)
        number = self._queued
        self._waiters.append((number, written))
        try:
            async with asyncio.timeout(self._config.publish_timeout_s):
                return await written
        except TimeoutError as error:
            self._withdraw(number)
            raise TimedOut(f"broker {self._route} did not take the event") from error

    def _withdraw(self, number: int) -> None:
        """Never write a frame that still waits; its place keeps being counted."""
        index = len(self._frames) - 1 - (self._queued - number)
        if index >= 0:
            self._frames.blank(index)

    async def _drain(self) -> None:
        """Write the queue, connecting again as often as needed."""
        failures = 0
        try:
            while self._frames or self._unsettled:
                try:
                    await self._write_all()
                    failures = 0
                except PilotError as error:
                    logger.info("broker %s: %s", self._route, error)
                    self._restore()
                    if self._route.may_retry:
                        continue
                    # Whoever waits is told now; the other events stay for the retry.
                    self._fail(error)
                    failures += 1
                    await asyncio.sleep(
                        backoff_s(
                            failures, first_s=RETRY_FIRST_S, longest_s=RETRY_MAX_S
                        )
                    )
        finally:
            self._is_sending = False
            self._fail(ConnectionReset(f"publishing to {self._route} ended"))

    async def _write_all(self) -> None:
        while self._frames or self._unsettled:
            link = await self._connected()
            if self._unsettled and (not self._frames or self._route.has_better):
                self._more.clear()
                await self._within(link.wait_progress(self._more))
                continue
            if not self._frames:
                return
            if self._gather_s and self._frames.size < WRITE_SIZE:
                await asyncio.sleep(self._gather_s)
            batch = self._frames.take()
            try:
                await self._within(link.write(batch))
            except BaseException:
                self._frames.restore(batch)
                raise
            self._written += len(batch)
            self._unsettled += batch
            self._settle(link)
            self._release(link.broker)

    def _check_progress(self, link: Link) -> None:
        """Take note of what settled.

        Raises:
            TimedOut: Nothing did for too long, and another broker stands by.
        """
        now = self._clock()
        if self._settle(link) or not self._unsettled:
            self._progress_at = now
        elif self._route.has_standby and now - self._progress_at > STALL_S:
            raise TimedOut(f"no progress in {STALL_S:g} s")

    async def _within(self, work: Awaitable[None]) -> None:
        """Wait for a link, but not for ever where another broker stands by."""
        try:
            async with asyncio.timeout(STALL_S if self._route.has_standby else None):
                await work
        except TimeoutError:
            raise TimedOut(f"no progress in {STALL_S:g} s") from None

    async def _connected(self) -> Link:
        link = self._link
        if link is None or not link.is_open:
            self._restore()
            return self._use(await self._route.connect())
        self._route.look_back()
        self._check_progress(link)
        # Only when nothing is under way, which keeps the order.
        if self._unsettled or (better := self._route.take_better()) is None:
            return link
        self._use(better)
        await link.close()
        return better

    def _use(self, link: Link) -> Link:
        self._link, self._settled = link, link.settled
        self._progress_at = self._clock()
        return link

    def _settle(self, link: Link) -> int:
        count = link.settled - self._settled
        for _ in range(count):
            self._unsettled.popleft()
        self._settled += count
        return count

    def _restore(self) -> None:
        """Give up the link, and take back what may not have arrived."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()
            self._route.fail()
        self._written -= len(self._unsettled)
        self._frames.restore(self._unsettled)
        self._unsettled.clear()

    def _release(self, broker: Address) -> None:
        """Release those whose frame was written, or gave way to newer ones."""
        done = self._written + self._frames.dropped
        while self._waiters and self._waiters[0][0] <= done:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(broker)

    def _fail(self, error: PilotError) -> None:
        """Tell everyone who waits that it did not work out, and drop their events."""
        waiters, self._waiters = self._waiters, deque()
        first = self._written + self._frames.dropped + 1
        # From the last on, so that the places of the others stay what they are.
        for number, waiter in reversed(waiters):
            # What is being written just now is in the queue no more.
            if first <= number < first + len(self._frames):
                self._frames.remove(number - first)
                self._queued -= 1
            if not waiter.done():
                waiter.set_exception(error)
