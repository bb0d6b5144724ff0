"""The publishing side of the event bus: one lasting connection to each broker.

A :class:`Publisher` carries its bounded queue across reconnects, and owns no task
while there is nothing to send. The protocols below say what the event service
needs of the node it runs in.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import ConnectionReset, PilotError, TimedOut
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    PUBLISHER_TOPIC,
    encode_event,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

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

    async def close(self) -> None:
        """End the connection after what was written."""


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

    broker: str | None = None
    """Name, address or number of the fleet's broker; none means the own node."""
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
    """The lasting connection from one agent to one broker."""

    def __init__(
        self,
        host: BrokerHost,
        agent: BrokerAgent,
        broker: Address,
        config: BrokerConfig,
    ) -> None:
        self._host = host
        self._agent = agent
        self._broker = broker
        self._config = config
        self._frames = FrameQueue(config)
        self._queued = 0
        self._written = 0
        self._stream: BrokerStream | None = None
        self._is_sending = False
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._is_sending and not self._frames

    async def aclose(self) -> None:
        """End the connection, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def send(self, frame: bytes, *, wait: bool) -> None:
        """Queue a frame, and with ``wait`` return when it was written.

        Raises:
            Unavailable: With ``wait``: the broker cannot be reached, or not in
                time. The frame is dropped: whoever was told so may publish again.
        """
        self._frames.put(frame)
        self._queued += 1
        written: asyncio.Future[None] | None = None
        if wait:
            written = asyncio.get_running_loop().create_future()
            self._waiters.append((self._queued, written))
        if not self._is_sending:
            self._is_sending = True
            self._host.spawn(self._drain(), name=f"publish to {self._broker}")
        if written is None:
            return
        try:
            async with asyncio.timeout(self._config.publish_timeout_s):
                await written
        except TimeoutError as error:
            raise TimedOut(f"broker {self._broker} did not take the event") from error

    async def _drain(self) -> None:
        """Write the queue, connecting again as often as needed."""
        pause = RETRY_FIRST_S
        try:
            while self._frames:
                try:
                    await self._write_all()
                    pause = RETRY_FIRST_S
                except PilotError as error:
                    # Whoever waits is told now; the other events stay for the retry.
                    logger.info("broker %s: %s", self._broker, error)
                    self._stream = None
                    self._fail(error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_MAX_S)
        finally:
            self._is_sending = False
            self._fail(ConnectionReset(f"publishing to {self._broker} ended"))

    async def _write_all(self) -> None:
        stream = await self._connected()
        while self._frames:
            batch = self._frames.take()
            try:
                await stream.write(b"".join(batch))
            except PilotError:
                self._frames.restore(batch)
                raise
            self._written += len(batch)
            self._confirm()

    async def _connected(self) -> BrokerStream:
        stream = self._stream
        if stream is None or not stream.is_open:
            stream = await self._agent.dial(SocketAddress(self._broker, EVENT_PORT))
            self._stream = stream
            await stream.write(encode_event(PUBLISHER_TOPIC))
        return stream

    def _confirm(self) -> None:
        """Release those whose frame was written, or gave way to newer ones."""
        done = self._written + self._frames.dropped
        while self._waiters and self._waiters[0][0] <= done:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

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
