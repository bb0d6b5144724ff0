"""Publishing over one lasting connection, to a broker or its stand-bys.

A :class:`Publisher` carries its bounded queue across reconnects, and owns no task
while there is nothing to send. The protocols below say what the event service
needs of the node it runs in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import ConnectionReset, PilotError, TimedOut
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from pilotfleet.protocol.address import Address, SocketAddress
    from pilotfleet.services.events.links import Link
    from pilotfleet.services.events.route import Route

__all__ = [
    "BrokerAgent",
    "BrokerConfig",
    "BrokerHost",
    "BrokerStream",
    "FrameQueue",
    "Publisher",
]

logger = logging.getLogger(__name__)

WRITE_SIZE: Final = 64 << 10
"""Events are written together up to this size."""
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
STALL_S: Final = 5.0
"""A broker that takes nothing for so long is left for its stand-by."""


class BrokerStream(Protocol):
    """What the broker needs of a connection."""

    @property
    def remote(self) -> SocketAddress:
        """The other side."""

    @property
    def is_open(self) -> bool:
        """Whether the connection can still carry data."""

    async def read(self, limit: int = ...) -> bytes:
        """Return what came in; nothing at the end."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the window is full."""

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes written that the other side may not have."""

    async def close(self) -> None:
        """End the connection after what was written."""

    def abort(self) -> None:
        """Break the connection off."""


class BrokerAgent(Protocol):
    """What the broker needs of an agent."""

    @property
    def name(self) -> str:
        """Its name on this host."""

    @property
    def hostname(self) -> str:
        """Its name in the registry, or nothing."""

    @property
    def node_id(self) -> int:
        """Its number in the registry."""

    def report(self, event: str, /, **data: Any) -> None:
        """Tell the agent's webhook what happened."""

    async def dial(self, remote: SocketAddress) -> BrokerStream:
        """Connect to a peer."""

    async def resolve_hostname(self, name: str) -> dict[str, Any]:
        """Ask the registry for a name."""


class BrokerHost(Protocol):
    """What the broker needs of the process it runs in."""

    @property
    def by_node(self) -> Mapping[int, Any]:
        """The hosted agents by node number."""

    @property
    def agents(self) -> Mapping[str, Any]:
        """The hosted agents by name."""

    @property
    def event_sink(self) -> object | None:
        """Whether any agent has a webhook; none costs nothing."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> Any:
        """Run a coroutine that the host owns."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """Limits of the event service."""

    brokers: tuple[str, ...] = ()
    """Names, addresses or numbers of the fleet's broker and its stand-bys, in order;
    none means the own node."""
    roll_up: tuple[str, ...] = ()
    """The broker above this one, and its stand-bys; none means there is none."""
    roll_up_topics: tuple[str, ...] = ("fleet.*",)
    """Patterns of the topics that it gets."""
    max_queued_events: int = 4096
    """For a subscriber or a publisher; more costs memory, fewer lose bursts."""
    max_queued_bytes: int = 4 << 20
    """The same in bytes. A single larger event still passes."""
    member_burst: int = 20_000
    """Events at once from a member of the fleet; strangers have 200."""
    member_rate: float = 10_000.0
    """Events per second from a member of the fleet; strangers have 100."""
    publish_timeout_s: float = 30.0
    """How long a publisher that wants to know waits for the broker."""
    max_publishers: int = 1024
    """Brokers that one agent publishes to. Beyond it the connection that was not
    used for longest gives way, unless events wait on all of them."""


class FrameQueue:
    """Frames that wait to be written, bounded; the oldest give way."""

    __slots__ = ("_bytes", "_frames", "_max_bytes", "_max_frames", "dropped")

    def __init__(self, config: BrokerConfig) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._max_frames = config.max_queued_events
        self._max_bytes = config.max_queued_bytes
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self._bytes

    def put(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        while len(self._frames) > self._max_frames or (
            self._bytes > self._max_bytes and len(self._frames) > 1
        ):
            self._bytes -= len(self._frames.popleft())
            self.dropped += 1

    def restore(self, frames: Iterable[bytes]) -> None:
        """Put frames that were taken back in front, as far as there is room."""
        for frame in reversed(list(frames)):
            room = len(self._frames) < self._max_frames
            if not room or self._bytes + len(frame) > self._max_bytes:
                self.dropped += 1
                continue
            self._frames.appendleft(frame)
            self._bytes += len(frame)

    def remove(self, index: int) -> None:
        """Take the frame at this place out."""
        self._bytes -= len(self._frames[index])
        del self._frames[index]

    def take(self) -> list[bytes]:
        """Return the oldest frames, about as many as one write should carry."""
        batch: list[bytes] = []
        size = 0
        while self._frames and (not batch or size < WRITE_SIZE):
            frame = self._frames.popleft()
            batch.append(frame)
            size += len(frame)
        self._bytes -= size
        return batch


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
            Unavailable: No broker can be reached, or not in time. The frame is
                dropped: whoever was told so may publish again.
        """
        written: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._queued + 1, written))
        self.post(frame)
        try:
            async with asyncio.timeout(self._config.publish_timeout_s):
                return await written
        except TimeoutError as error:
            raise TimedOut(f"broker {self._route} did not take the event") from error

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
        if link is not None and link.is_open:
            self._route.look_back()
            self._check_progress(link)
            if self._unsettled or (better := self._route.take_better()) is None:
                return link
            await link.close()
        else:
            self._restore()
            better = await self._route.connect()
        self._link, self._settled = better, better.settled
        self._progress_at = self._clock()
        return better

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
