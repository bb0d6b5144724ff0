"""One connection of a publisher to a broker, and when an event has settled there.

What has not settled is sent again after the connection breaks. What "settled" means
depends on how much the publisher wants to know:

================  ===========================================================
PlainLink         written to the stream
AckedLink         acknowledged by the broker's node
ConfirmedLink     confirmed by the broker: extensions.md, "Confirmed publishing"
LocalLink         given to the broker, which is in this process
================  ===========================================================
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from pilotfleet.errors import ConnectionReset, NotSupported
from pilotfleet.protocol.services.eventoptions import CONFIRM_REQUEST, decode_confirm
from pilotfleet.protocol.services.events import (
    CONFIRM_TOPIC,
    PUBLISHER_TOPIC,
    EventDecoder,
    encode_event,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pilotfleet.protocol.address import Address
    from pilotfleet.protocol.services.events import Event
    from pilotfleet.services.events.host import BrokerStream

__all__ = ["AckedLink", "ConfirmedLink", "Link", "LocalLink", "PlainLink"]

GREETING_S: Final = 5.0
"""An official broker never answers."""
FIRST_LOOK_S: Final = 0.02
LONGEST_LOOK_S: Final = 0.5
"""Acknowledgements are looked for; nobody tells of them."""


class Link(Protocol):
    """What a publisher needs of a connection."""

    @property
    def broker(self) -> Address:
        """Whose broker it goes to."""

    @property
    def is_open(self) -> bool:
        """Whether it can still carry events."""

    @property
    def settled(self) -> int:
        """How many of the frames written have arrived."""

    async def write(self, frames: Sequence[bytes]) -> None:
        """Send frames. Cancelled, the link cannot be used any more."""

    async def wait_progress(self, wake: asyncio.Event | None = None) -> None:
        """Wait until more has settled; where nobody tells, also until ``wake``.

        Raises:
            ConnectionReset: It never will.
        """

    async def close(self) -> None:
        """End it after what was written."""

    def abort(self) -> None:
        """End it now."""


class _StreamLink:
    """A link over a stream."""

    def __init__(self, stream: BrokerStream) -> None:
        self._stream = stream

    @property
    def broker(self) -> Address:
        return self._stream.remote.address

    @property
    def is_open(self) -> bool:
        return self._stream.is_open

    async def close(self) -> None:
        await self._stream.close()

    def abort(self) -> None:
        self._stream.abort()


class PlainLink(_StreamLink):
    """Events have settled once they are written."""

    def __init__(self, stream: BrokerStream) -> None:
        super().__init__(stream)
        self.settled = 0

    @classmethod
    async def open(cls, stream: BrokerStream, options: bytes = b"") -> PlainLink:
        """Become a publisher on a new stream."""
        await stream.write(encode_event(PUBLISHER_TOPIC, options))
        return cls(stream)

    async def write(self, frames: Sequence[bytes]) -> None:
        await self._stream.write(b"".join(frames))
        self.settled += len(frames)

    async def wait_progress(self, wake: asyncio.Event | None = None) -> None:
        """Return at once: nothing waits."""


class AckedLink(_StreamLink):
    """Events have settled once the node of the broker has acknowledged them.

    A node that is killed has acknowledged a few that its broker never saw.
    """

    def __init__(self, stream: BrokerStream) -> None:
        super().__init__(stream)
        self._written = 0
        self._ends: deque[int] = deque()
        self._settled = 0

    @classmethod
    async def open(cls, stream: BrokerStream, options: bytes = b"") -> AckedLink:
        """Become a publisher on a new stream."""
        link = cls(stream)
        greeting = encode_event(PUBLISHER_TOPIC, options)
        await stream.write(greeting)
        link._written = len(greeting)
        return link

    @property
    def settled(self) -> int:
        if not self._stream.is_open:
            # What it had not sent it has thrown away, and counts it no more.
            return self._settled
        acknowledged = self._written - self._stream.unacknowledged_bytes
        while self._ends and self._ends[0] <= acknowledged:
            self._ends.popleft()
            self._settled += 1
        return self._settled

    async def write(self, frames: Sequence[bytes]) -> None:
        await self._stream.write(b"".join(frames))
        for frame in frames:
            self._written += len(frame)
            self._ends.append(self._written)

    async def wait_progress(self, wake: asyncio.Event | None = None) -> None:
        before, pause = self._settled, FIRST_LOOK_S
        wake = wake or asyncio.Event()
        while self.settled == before and not wake.is_set():
            if not self._stream.is_open:
                raise ConnectionReset(f"broker {self.broker} went away")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()
            pause = min(2 * pause, LONGEST_LOOK_S)


class ConfirmedLink(_StreamLink):
    """Events have settled once the broker says so."""

    def __init__(self, stream: BrokerStream) -> None:
        super().__init__(stream)
        self._decoder = EventDecoder()
        self._written = 0
        self.settled = 0

    @classmethod
    async def open(cls, stream: BrokerStream) -> ConfirmedLink:
        """Become a publisher on a new stream.

        Raises:
            NotSupported: The broker confirms nothing.
        """
        link = cls(stream)
        await stream.write(encode_event(PUBLISHER_TOPIC, CONFIRM_REQUEST))
        try:
            async with asyncio.timeout(GREETING_S):
                await link.wait_progress()
        except TimeoutError:
            raise NotSupported(
                f"broker {link.broker} does not confirm events",
                hint="publish without confirmation, or at a broker of pilotfleet",
            ) from None
        return link

    async def write(self, frames: Sequence[bytes]) -> None:
        self._written += len(frames)
        await self._stream.write(b"".join(frames))

    async def wait_progress(self, wake: asyncio.Event | None = None) -> None:
        while not await self._read():
            pass

    async def _read(self) -> bool:
        """Read once; tell whether the broker confirmed something."""
        data = await self._stream.read()
        if not data:
            raise ConnectionReset(f"broker {self.broker} ended the connection")
        has_confirmed = False
        for event in self._decoder.feed(data):
            count = decode_confirm(event.payload)
            if event.topic == CONFIRM_TOPIC and count is not None:
                has_confirmed = True
                # Nobody can have what was not sent.
                self.settled = max(self.settled, min(count, self._written))
        return has_confirmed


class LocalLink:
    """Events for a broker of this process have settled once it has them."""

    is_open = True

    def __init__(
        self, broker: Address, deliver: Callable[[Event], Awaitable[None]]
    ) -> None:
        self.broker = broker
        self._deliver = deliver
        self._decoder = EventDecoder()
        self.settled = 0

    async def write(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            for event in self._decoder.feed(frame):
                await self._deliver(event)
            self.settled += 1

    async def wait_progress(self, wake: asyncio.Event | None = None) -> None:
        """Return at once: nothing waits."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def abort(self) -> None:
        """Do nothing: there is no connection."""
