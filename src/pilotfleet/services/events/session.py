"""One connection to a broker: its subscription, and what waits to be written to it.

Each session has a bounded queue that one writer empties. When the subscriber is
slower than its topics, the oldest events give way and are counted, and nobody
else notices.

A subscriber that asked for marks is told how far it has come: at the start, within
a second after events, and at once when it lost some. A mark that tells of a loss
carries the number of the last event *before* the loss, so a consumer that
subscribes again after that number gets what it lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import PilotError
from pilotfleet.protocol.services.eventoptions import MarkFrame, encode_mark
from pilotfleet.services.events.config import WRITE_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.events.board import Board
    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.events.host import BrokerStream
    from pilotfleet.services.events.limits import Peer
    from pilotfleet.services.events.rollup import FromBelow

__all__ = ["Delivery", "Session"]

logger = logging.getLogger(__name__)

MARK_PAUSE_S: Final = 1.0
"""Between marks while events come."""
DRAIN_S: Final = 10.0
"""How long a connection that its client ended may take what is queued for it."""


class Delivery(NamedTuple):
    """A publication on its way; one object for all its subscribers."""

    frame: bytes
    id: int
    """The newest number of the log when it was published."""
    wall: float
    """When it was published."""


class Session:
    """One connection to the broker of an agent."""

    __slots__ = (
        "_bytes",
        "_has_ended",
        "_is_mark_due",
        "_items",
        "_lost_told",
        "_mark_timer",
        "_max_bytes",
        "_max_items",
        "_wake",
        "_writer",
        "board",
        "confirms",
        "from_below",
        "is_publisher",
        "is_subscribed",
        "lost",
        "marks",
        "peer",
        "sent_id",
        "stream",
        "topic",
    )

    def __init__(
        self, board: Board, stream: BrokerStream, peer: Peer, config: BrokerConfig
    ) -> None:
        self.board = board
        self.stream = stream
        self.peer = peer
        self.topic: str | None = None
        """What its first frame said."""
        self.is_subscribed = False
        """Whether it counts as a subscriber."""
        self.is_publisher = False
        """Whether it counts as a publisher."""
        self.confirms = False
        """Whether it wants to know what was taken."""
        self.from_below: FromBelow | None = None
        """How its publications came, if it is a broker that rolls up to this one."""
        self.marks = False
        """Whether it wants to know how far it has come."""
        self.lost = 0
        """Events that this subscriber was too slow for."""
        self.sent_id = 0
        """Everything of the log up to this number that fits was taken to be sent."""
        self._items: deque[Delivery] = deque()
        self._bytes = 0
        self._max_items = config.max_queued_events
        self._max_bytes = config.max_queued_bytes
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._has_ended = False
        self._lost_told = 0
        self._is_mark_due = False
        self._mark_timer: asyncio.TimerHandle | None = None
        """Runs from an event to the mark that follows it."""

    def queue(self, delivery: Delivery) -> None:
        """Let the writer send an event."""
        items = self._items
        items.append(delivery)
        self._bytes += len(delivery.frame)
        if len(items) > self._max_items or self._bytes > self._max_bytes:
            self._drop_oldest()
        self._wake.set()

    def start(
        self, tasks: asyncio.TaskGroup, before: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Start the writer; ``before`` writes what comes first, and may fail."""
        writing = self._write_queue(before)
        self._writer = tasks.create_task(writing, name="event subscriber")

    def end(self) -> None:
        """Let the writer stop after the queue: the client has ended."""
        self._has_ended = True
        self._wake.set()
        if self._writer is not None and not self._writer.done():
            # It may have ended its half alone, to keep what we hold for it.
            timer = asyncio.get_running_loop().call_later(DRAIN_S, self._writer.cancel)
            self._writer.add_done_callback(lambda _: timer.cancel())

    def abort(self) -> None:
        """Stop the writer at once: the client broke a rule."""
        if self._writer is not None:
            self._writer.cancel()

    def mark(self, id: int, time: float) -> bytes:
        """Return the frame of a mark, which counts as told."""
        self._lost_told = self.lost
        log = self.board.log
        uuid = log.uuid if log is not None else ""
        return encode_mark(MarkFrame(uuid, id, time, self.lost))

    # Private

    async def _write_queue(self, before: Callable[[], Awaitable[None]] | None) -> None:
        try:
            if before is not None:
                await before()
            else:
                self.sent_id = self.board.last_id
            if self.marks:
                await self.stream.write(self._mark_now())
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._write_items()
                if self._has_ended and not self._items:
                    return
        except PilotError as error:
            logger.debug("subscriber %s: %s", self.stream.remote, error)
            # The reader finds the end, and with it the rest of the session.
            await self.stream.close()
        finally:
            if self._mark_timer is not None:
                self._mark_timer.cancel()

    async def _write_items(self) -> None:
        while self._items:
            parts = [self._mark_now()] if self._needs_mark else []
            parts += self._take()
            await self.stream.write(parts[0] if len(parts) == 1 else b"".join(parts))
            if self.marks and self._mark_timer is None:
                loop = asyncio.get_running_loop()
                self._mark_timer = loop.call_later(MARK_PAUSE_S, self._mark_is_due)
        if self._needs_mark:
            await self.stream.write(self._mark_now())

    def _drop_oldest(self) -> None:
        items = self._items
        before = len(items)
        while len(items) > self._max_items or (
            # A single larger event still passes.
            self._bytes > self._max_bytes and len(items) > 1
        ):
            self._bytes -= len(items.popleft().frame)
        self.lost += before - len(items)
        self.board.counters.dropped += before - len(items)

    def _take(self) -> list[bytes]:
        """Return the oldest frames, about as many as one write should carry."""
        items = self._items
        if self._bytes <= WRITE_SIZE:
            self.sent_id = items[-1].id
            batch = [item.frame for item in items]
            items.clear()
            self._bytes = 0
            return batch
        batch, size = [], 0
        while items and size < WRITE_SIZE:
            item = items.popleft()
            batch.append(item.frame)
            size += len(item.frame)
            self.sent_id = item.id
        self._bytes -= size
        return batch

    # Marks

    @property
    def _needs_mark(self) -> bool:
        return self.marks and (self._is_mark_due or self.lost != self._lost_told)

    def _mark_is_due(self) -> None:
        self._mark_timer = None
        self._is_mark_due = True
        self._wake.set()

    def _mark_now(self) -> bytes:
        """Return the mark of this place in the stream."""
        self._is_mark_due = False
        if self._items:
            # What was dropped comes after the last event that was sent.
            return self.mark(self.sent_id, self._items[0].wall)
        # Nothing waits, so what was logged since the last event does not fit.
        self.sent_id = self.board.last_id
        return self.mark(self.sent_id, self.board.wall())
