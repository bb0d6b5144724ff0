"""Events of a fleet's brokers, as they come.

A fleet has one broker and perhaps stand-bys, and each event reaches one of them. A
:class:`FleetSubscription` hears all of them at once. It outlives each connection:
what was published meanwhile comes from the broker's log, where there is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

import msgspec

from pilotfleet.errors import Closed, InvalidArgument, PilotError
from pilotfleet.fleet.brokerfeed import BrokerFeed
from pilotfleet.fleet.place import Place
from pilotfleet.protocol.services.eventoptions import MarkFrame
from pilotfleet.protocol.services.events import check_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.protocol.services.events import Event

__all__ = [
    "FleetSubscription",
    "Mark",
    "Received",
    "Subscription",
    "read_payload",
]

MAX_BROKERS: Final = 64
MAX_WAITING_EVENTS: Final = 4096
"""Items that wait for a reader, of each broker; more wait at the broker, whose
oldest then give way."""
MAX_WAITING_BYTES: Final = 4 << 20

_Payload = TypeVar("_Payload")


def read_payload(payload: bytes, kind: type[_Payload]) -> _Payload | None:
    """Return what the JSON of an event says; None when it is of another form.

    Any member of a fleet may publish anything.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    # Deep nesting and what is not UTF-8 leave msgspec's own error tree.
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class Received(NamedTuple):
    """An event, and the broker that it came from."""

    broker: str
    """As it was named in the subscription."""
    event: Event


class Mark(NamedTuple):
    """How far a subscription has come at one broker.

    Whoever saves what he made of the events together with ``log`` and ``id``, and
    later subscribes from there, counts every event once.
    """

    broker: str
    log: str
    """Identity of the broker's log; empty when it keeps none."""
    id: int
    """Everything of the log up to this number came before."""
    time: float
    """Wall time of what follows."""
    lost: int
    """Events of this subscription lost at this broker so far, because its reader
    was too slow."""


class FleetSubscription:
    """Iterate over it for events and marks of all brokers.

    An asynchronous context manager that ends it. For one reader.
    """

    def __init__(self) -> None:
        """For :meth:`open`."""
        self._feeds: dict[str, BrokerFeed] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[str, _Waiting] = {}
        self._turns: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._with_marks = False
        self._is_closed = False
        self._failure: BaseException | None = None

    @classmethod
    async def open(
        cls,
        connect: Callable[[], Awaitable[DaemonClient]],
        brokers: Sequence[str],
        pattern: str,
        *,
        since: float | None = None,
        marks: bool = False,
        positions: Mapping[str, tuple[str, int]] | None = None,
    ) -> Self:
        """Subscribe at brokers to the topics that fit a pattern.

        Args:
            connect: Makes a connection to the daemon, one for each broker.
            brokers: Hostnames, addresses or node numbers.
            pattern: Such as ``fleet.*``.
            since: Also what the brokers' logs have of so many last seconds.
            marks: Whether iterating yields marks as well.
            positions: Where to go on, by broker: the log and the number of a mark.

        Raises:
            InvalidArgument: The pattern is not valid text, or too long.
            PilotError: None of the brokers can be reached.
        """
        check_topic(pattern)
        if not 0 < len(brokers) <= MAX_BROKERS:
            raise InvalidArgument(
                f"a subscription has 1 to {MAX_BROKERS} brokers, not {len(brokers)}"
            )
        subscription = cls()
        subscription._with_marks = marks
        for name in dict.fromkeys(brokers):
            place = Place(since=since, position=(positions or {}).get(name))
            subscription._add(name, BrokerFeed(connect, name, pattern, place))
        try:
            await subscription._wait_for_first()
        except BaseException:
            await subscription.close()
            raise
        return subscription

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received | Mark:
        """Return the next event or mark. May be cancelled.

        Raises:
            Closed: The subscription was closed.
        """
        while not self._turns:
            if self._failure is not None:
                raise self._failure
            if self._is_closed:
                raise Closed("the subscription is closed")
            self._arrived.clear()
            await self._arrived.wait()
        # In turn, so that a busy broker does not hide a quiet one.
        waiting = self._turns.popleft()
        item = waiting.take()
        if waiting.items:
            self._turns.append(waiting)
        return item

    @property
    def brokers(self) -> tuple[str, ...]:
        """The brokers of this subscription."""
        return tuple(self._feeds)

    @property
    def following(self) -> set[str]:
        """The brokers that are heard now."""
        return {name for name, feed in self._feeds.items() if feed.is_following}

    @property
    def lost(self) -> int:
        """Events lost so far because this reader was too slow, as brokers tell it."""
        return sum(feed.place.lost for feed in self._feeds.values())

    @property
    def errors(self) -> dict[str, PilotError]:
        """Why brokers are not heard now, by name."""
        return {
            name: feed.error
            for name, feed in self._feeds.items()
            if feed.error is not None and not feed.is_following
        }

    async def wait_change(self) -> None:
        """Wait until a broker is heard, or is heard no more. May be cancelled."""
        self._changed.clear()
        await self._changed.wait()

    async def close(self) -> None:
        """End the subscription."""
        self._is_closed = True
        self._arrived.set()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Private

    def _add(self, name: str, feed: BrokerFeed) -> None:
        waiting = _Waiting()
        self._feeds[name], self._waiting[name] = feed, waiting

        async def take(items: Sequence[Event | MarkFrame]) -> None:
            await waiting.room.wait()
            self._queue(name, items)

        work = feed.run(take, self._changed.set)
        task = asyncio.create_task(work, name=f"events of {name}")
        task.add_done_callback(self._on_end)
        self._tasks.append(task)

    def _queue(self, name: str, items: Sequence[Event | MarkFrame]) -> None:
        waiting = self._waiting[name]
        was_empty = not waiting.items
        for item in items:
            if isinstance(item, MarkFrame):
                if self._with_marks:
                    lost = self._feeds[name].place.lost
                    waiting.put(Mark(name, item.log, item.id, item.time, lost))
            else:
                waiting.put(Received(name, item))
        if was_empty and waiting.items:
            self._turns.append(waiting)
            self._arrived.set()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Let the reader know of a fault of ours; a feed ends in no other way."""
        if not task.cancelled():
            self._failure = task.exception()
            self._arrived.set()
            self._changed.set()

    async def _wait_for_first(self) -> None:
        while not self.following:
            if self._failure is not None:
                raise self._failure
            errors = [feed.error for feed in self._feeds.values()]
            if None not in errors:
                first = errors[0]
                assert first is not None
                raise first
            await self.wait_change()


class Subscription:
    """Iterate over it for events. An asynchronous context manager that ends it."""

    def __init__(self, items: FleetSubscription) -> None:
        self._items = items

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. May be cancelled.

        Raises:
            Closed: The subscription was closed.
        """
        while True:
            item = await anext(self._items)
            if isinstance(item, Received):
                return item.event

    @property
    def following(self) -> set[str]:
        """The brokers that are heard now."""
        return self._items.following

    @property
    def lost(self) -> int:
        """Events lost so far because this reader was too slow, as brokers tell it."""
        return self._items.lost

    async def close(self) -> None:
        """End the subscription."""
        await self._items.close()


class _Waiting:
    """What came from one broker and was not read yet."""

    __slots__ = ("_bytes", "items", "room")

    def __init__(self) -> None:
        self.items: deque[Received | Mark] = deque()
        self._bytes = 0
        self.room = asyncio.Event()
        self.room.set()

    def put(self, item: Received | Mark) -> None:
        self.items.append(item)
        self._bytes += _size(item)
        if len(self.items) >= MAX_WAITING_EVENTS or self._bytes >= MAX_WAITING_BYTES:
            self.room.clear()

    def take(self) -> Received | Mark:
        item = self.items.popleft()
        self._bytes -= _size(item)
        # With some distance, so that not every event wakes the feed.
        if (
            len(self.items) <= MAX_WAITING_EVENTS // 2
            and self._bytes <= MAX_WAITING_BYTES // 2
        ):
            self.room.set()
        return item


def _size(item: Received | Mark) -> int:
    return len(item.event.payload) if isinstance(item, Received) else 0
