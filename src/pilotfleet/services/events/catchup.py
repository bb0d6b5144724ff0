"""What a new subscriber gets of the past, before what is live.

The log is read in rounds, each up to the newest event of its moment, until little
is missing; only then does the subscriber's queue begin to fill, so a long past
does not overflow it. From the log and from the queue together every event comes
once, in order.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.events import encode_event
from pilotfleet.protocol.topics import matches

if TYPE_CHECKING:
    from pilotfleet.protocol.services.eventoptions import SubscribeOptions
    from pilotfleet.services.events.log import EventLog, LoggedEvent
    from pilotfleet.services.events.session import Session

__all__ = ["CatchUp", "wants_past"]

logger = logging.getLogger(__name__)

ROUNDS: Final = 16
"""A subscriber that is slower than its topics never gets there by itself."""
NEAR: Final = 512
"""Events that may be missing when the queue begins to fill."""


class CatchUp:
    """Writes past events to one session, then subscribes it.

    Args:
        session: A session whose topic is known, not subscribed yet.
        topic: Its topic.
        log: The log of its broker.
        options: What it asked for.
    """

    def __init__(
        self, session: Session, topic: str, log: EventLog, options: SubscribeOptions
    ) -> None:
        self._session = session
        self._topic = topic
        self._log = log
        self._since = 0.0
        self._position = 0
        """The last event that was looked at."""
        self._second: int | None = None
        """Whole second of the last mark."""
        if _resumes(options, log):
            self._position = options.after or 0
        elif options.since is not None:
            self._since = session.board.wall() - options.since

    async def run(self) -> None:
        """Write the past and subscribe.

        Raises:
            StorageError: The log cannot be read, and the subscriber relies on it.
            PilotError: The connection broke.
        """
        session = self._session
        try:
            await self._catch_up()
        except StorageError as error:
            logger.warning("replay for %s: %s", session.stream.remote, error)
            if session.marks:
                # It would take what comes next for all that happened.
                raise
            # It may be subscribed already, which this leaves as it is.
            session.board.add(self._topic, session)

    async def _catch_up(self) -> None:
        session, lost_before = self._session, self._log.lost
        for _ in range(ROUNDS):
            await self._write_until(self._log.last_id)
            if self._log.last_id - self._position <= NEAR:
                break
        session.board.add(self._topic, session)
        # What is published from here on waits in the queue.
        until = self._log.last_id
        # What the log lost meanwhile was neither in it nor in the queue.
        session.lost += self._log.lost - lost_before
        await self._write_until(until)
        session.sent_id = until

    async def _write_until(self, until: int) -> None:
        pages = self._log.replay(
            until_id=until, since=self._since, after=self._position
        )
        async for page in pages:
            if data := self._encode(page):
                await self._session.stream.write(data)
        self._position = max(self._position, until)

    def _encode(self, page: list[LoggedEvent]) -> bytes:
        parts = []
        session, topic = self._session, self._topic
        for row in page:
            if matches(topic, row.topic):
                if session.marks and int(row.wall) != self._second:
                    self._second = int(row.wall)
                    parts.append(session.mark(row.id - 1, row.wall))
                parts.append(encode_event(row.topic, row.payload))
            self._position = row.id
        return b"".join(parts)


def _resumes(options: SubscribeOptions, log: EventLog) -> bool:
    """Tell whether a subscriber goes on where it stopped in this very log."""
    if options.after is None or options.log != log.uuid:
        return False
    # A number that the log never gave is from another past, such as a backup's.
    return options.after <= log.last_id


def wants_past(options: SubscribeOptions, log: EventLog) -> bool:
    """Tell whether a subscriber asks for anything of the log."""
    return options.since is not None or _resumes(options, log)
