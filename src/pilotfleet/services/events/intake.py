"""The reading side of a connection to a broker: frames in, within limits.

The first frame subscribes, later ones publish (services.md section 5.2). What a
connection may not do is dropped and counted, or ends it; in both cases it alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import TimedOut
from pilotfleet.protocol.services.eventoptions import encode_confirm
from pilotfleet.protocol.services.events import (
    Event,
    EventDecoder,
    may_publish,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.services.events.limits import PeerLimits
    from pilotfleet.services.events.session import Session

__all__ = ["Intake"]

READ_SIZE: Final = 64 << 10
TURN: Final = 64
"""Publications taken before others get their turn. One read may hold thousands,
which would overflow the queues of subscribers that only wait to be let run."""
MANY_REFUSED: Final = 256
"""Dropped publications after which a publisher is read more slowly."""
CONFIRM_PAUSE_S: Final = 1.0
"""How long a publisher that is too fast waits for word of what was taken."""


class Intake:
    """Reads one session until it ends.

    Args:
        session: What is read.
        limits: What its node may do.
        clock: Monotonic time.
        subscribe: Called with the first frame.
        publish: Called with each publication that is within the limits.
        refuse: Called with each publication that is not.
    """

    def __init__(
        self,
        session: Session,
        limits: PeerLimits,
        *,
        clock: Callable[[], float],
        subscribe: Callable[[Session, Event], None],
        publish: Callable[[Session, Event], None],
        refuse: Callable[[Session, Event], None],
    ) -> None:
        self._session = session
        self._limits = limits
        self._clock = clock
        self._subscribe = subscribe
        self._publish = publish
        self._refuse = refuse
        self._decoder = EventDecoder()
        self._unfinished = 0
        """Bytes that are counted for this connection."""
        self._deadline = 0.0
        """When the unfinished event must be complete, in the loop's time."""
        self._taken = 0
        """Publications so far, with those that were dropped."""
        self._refused = 0
        """Publications dropped since the last pause for that."""
        self._turn = 0
        """Publications since others got their turn."""
        self._confirmed_at = 0.0
        self._unwritten_before = 0
        """Groups that the log could not write before the first unconfirmed event."""

    async def run(self) -> None:
        """Read until the client ends.

        Raises:
            DecodeError: A frame breaks the protocol.
            Busy: The node keeps too many unfinished events.
            TimedOut: An event was not finished in time.
            PilotError: The connection broke.
        """
        try:
            while data := await self._receive():
                events = self._decoder.feed(data)
                self._count_unfinished(has_moved_on=bool(events))
                if events:
                    await self._take(events)
                if self._decoder.error is not None:
                    raise self._decoder.error
        finally:
            self._limits.set_unfinished(self._node, self._unfinished, 0)

    @property
    def _node(self) -> int:
        return self._session.stream.remote.address.node

    async def _receive(self) -> bytes:
        if not self._unfinished:
            return await self._session.stream.read(READ_SIZE)
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._session.stream.read(READ_SIZE)
        except TimeoutError as error:
            raise TimedOut(f"{self._unfinished} bytes of an event, no end") from error

    def _count_unfinished(self, *, has_moved_on: bool) -> None:
        before, after = self._unfinished, self._decoder.unfinished_bytes
        if not before and not after:
            return
        if after and (has_moved_on or not before):
            now = asyncio.get_running_loop().time()
            self._deadline = now + self._limits.config.frame_s
        self._unfinished = after
        self._limits.set_unfinished(self._node, before, after)

    async def _take(self, events: list[Event]) -> None:
        session = self._session
        if session.topic is None:
            self._subscribe(session, events.pop(0))
        if session.confirms:
            await self._take_confirmed(events)
            return
        for event in events:
            await self._give_turn()
            if self._drop_reserved(event):
                self._refused += 1
            elif session.peer.bucket.take(self._clock()):
                self._publish(session, event)
            else:
                self._refuse(session, event)
                self._refused += 1
        if self._refused >= MANY_REFUSED:
            pause = session.peer.flood_pause(self._refused)
            self._refused = 0
            await asyncio.sleep(pause)

    def _drop_reserved(self, event: Event) -> bool:
        """Count a publication to a reserved topic; tell whether it is one."""
        if may_publish(event.topic):
            return False
        self._session.board.counters.malformed += 1
        return True

    async def _give_turn(self) -> None:
        """Let others run now and then; a read of a busy stream never waits."""
        self._turn += 1
        if self._turn >= TURN:
            self._turn = 0
            await asyncio.sleep(0)

    # With confirmation

    async def _take_confirmed(self, events: list[Event]) -> None:
        """Take publications, and say so when the log has them on the disk."""
        self._start_group()
        for event in events:
            await self._give_turn()
            if not self._drop_reserved(event):
                await self._wait_for_room(event)
                self._publish(self._session, event)
            self._taken += 1
        await self._confirm()

    def _start_group(self) -> None:
        log = self._session.board.log
        self._unwritten_before = log.refused if log is not None else 0
        self._confirmed_at = self._clock()

    async def _wait_for_room(self, event: Event) -> None:
        """Wait instead of dropping: what was confirmed must be a prefix."""
        bucket, log = self._session.peer.bucket, self._session.board.log
        while not bucket.take(self._clock()):
            if self._clock() - self._confirmed_at >= CONFIRM_PAUSE_S:
                await self._confirm()
                self._start_group()
            pause = bucket.delay(self._clock())
            await asyncio.sleep(pause)
        while log is not None and log.is_full(event):
            await log.flush()

    async def _confirm(self) -> None:
        log = self._session.board.log
        if log is not None and self._taken:
            await log.sync(self._unwritten_before)
        await self._session.stream.write(encode_confirm(self._taken))
