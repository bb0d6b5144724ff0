"""The event broker on port 1002 of every agent of a host.

One :class:`EventBroker` serves all agents of a host. It keeps a
:class:`~pilotfleet.services.events.board.Board` for each agent whose broker was
used, so one that is not used costs nothing. A connection is a
:class:`~pilotfleet.services.events.session.Session`, read by an
:class:`~pilotfleet.services.events.intake.Intake`.

Publishing from the agents of the host is
:class:`~pilotfleet.services.events.publishing.Publishing`. Brokers in the same
process are reached without the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import Busy, DecodeError, InvalidArgument, PilotError, TimedOut
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.services.eventoptions import (
    asks_for_confirmation,
    decode_options,
    decode_roll_up,
)
from pilotfleet.protocol.services.events import (
    PUBLISHER_TOPIC,
    Event,
    is_reserved,
    may_publish,
)
from pilotfleet.services.events.board import Board
from pilotfleet.services.events.catchup import CatchUp, wants_past
from pilotfleet.services.events.config import BrokerConfig
from pilotfleet.services.events.counters import BrokerCounters, CounterReports
from pilotfleet.services.events.intake import Intake
from pilotfleet.services.events.limits import LimitConfig, PeerLimits
from pilotfleet.services.events.publishing import Publishing
from pilotfleet.services.events.rollup import FromBelow, RollUp
from pilotfleet.services.events.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pilotfleet.services.events.host import BrokerAgent, BrokerHost, BrokerStream
    from pilotfleet.services.events.log import EventLog

__all__ = ["BrokerConfig", "EventBroker"]

logger = logging.getLogger(__name__)


class EventBroker:
    """Port 1002 of all agents of a host, and their publishing.

    Args:
        host: Owns the agents and the tasks.
        config: Limits, and the names of the fleet's brokers and of those above.
        limits: What one node may ask.
        is_member: Whether a peer belongs to the fleet of an agent. Members may
            publish faster.
        open_log: Opens the log of an agent's broker at its first use, or returns
            none if that broker keeps no log.
    """

    def __init__(
        self,
        host: BrokerHost,
        config: BrokerConfig | None = None,
        *,
        limits: LimitConfig | None = None,
        is_member: Callable[[Any, int], bool] | None = None,
        open_log: Callable[[Any], Awaitable[EventLog | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._config = config or BrokerConfig()
        self._is_member = is_member or (lambda agent, node: False)
        self._open_log = open_log
        self._clock = clock
        self._wall = wall
        self._limits = PeerLimits(limits or LimitConfig(), self._config, clock)
        self._boards: dict[int, Board] = {}
        self._opening = asyncio.Lock()
        self._reports = CounterReports(
            host, self._boards.values(), self._config.brokers, publish=self._take
        )
        self._publishing = Publishing(host, self._config, deliver_here=self.deliver)
        self._roll_up = RollUp(self._publishing, self._config)

    def extensions(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the daemon's extension operations of this service."""
        return {
            "publish": self._publishing.request,
            "events": self._counters_request,
        }

    def counters(self, agent: BrokerAgent) -> dict[str, int]:
        """Return what the broker of an agent counted."""
        board = self._boards.get(agent.node_id)
        if board is None:
            return BrokerCounters().as_dict(None)
        return board.counters.as_dict(board.log)

    async def aclose(self) -> None:
        """Close the logs. The host has ended our tasks and streams."""
        for board in self._boards.values():
            if board.log is not None:
                await board.log.aclose()
        self._boards.clear()

    # Connections

    async def handle(self, agent: BrokerAgent, stream: BrokerStream) -> None:
        """Serve one connection to the broker of ``agent`` until it ends."""
        board = await self._board(agent)
        node = stream.remote.address.node
        is_local = node in self._host.by_node
        is_member = is_local or self._is_member(agent, node)
        try:
            peer = self._limits.connect(
                agent.node_id, node, is_member=is_member, is_local=is_local
            )
        except Busy as error:
            logger.debug("event client %s: %s", stream.remote, error)
            board.counters.refused += 1
            await stream.close()
            return
        session = Session(board, stream, peer, self._config)
        # The writer is part of the session: it starts with the subscription and
        # never outlives the connection.
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(session, tasks)
        finally:
            self._forget(session)
            self._limits.disconnect(peer)
            await stream.close()

    async def _read(self, session: Session, tasks: asyncio.TaskGroup) -> None:
        intake = Intake(
            session,
            self._limits,
            clock=self._clock,
            subscribe=lambda session, event: self._subscribe(session, event, tasks),
            publish=self._publish_received,
            refuse=self._refuse,
        )
        try:
            await intake.run()
        except PilotError as error:
            # A frame that breaks the protocol ends the connection without an
            # answer (services.md 5.3), like a connection that breaks.
            logger.debug("event client %s: %s", session.stream.remote, error)
            counters = session.board.counters
            counters.malformed += isinstance(error, DecodeError)
            counters.refused += isinstance(error, Busy | TimedOut)
            session.abort()
        else:
            session.end()

    def _subscribe(
        self, session: Session, event: Event, tasks: asyncio.TaskGroup
    ) -> None:
        session.topic = topic = event.topic
        if is_reserved(topic):
            # Nothing is ever published to the others.
            if topic == PUBLISHER_TOPIC:
                self._count_publisher(session)
                session.confirms = asks_for_confirmation(event.payload)
                if levels := decode_roll_up(event.payload):
                    node = session.stream.remote.address.node
                    session.from_below = FromBelow(node, levels)
            return
        board, options = session.board, decode_options(event.payload)
        session.marks = options.marks
        session.is_subscribed = True
        board.counters.subscribers += 1
        remote = str(session.stream.remote)
        board.agent.report("pubsub.subscribed", topic=topic, remote=remote)
        self._reports.start()
        log = board.log
        if log is not None and wants_past(options, log):
            past = CatchUp(session, topic, log, options)
            session.start(tasks, past.run)
        else:
            board.add(topic, session)
            session.start(tasks, None)

    def _forget(self, session: Session) -> None:
        board, topic = session.board, session.topic
        board.counters.publishers -= session.is_publisher
        if topic is None or not session.is_subscribed:
            return
        board.counters.subscribers -= 1
        board.remove(topic, session)
        remote = str(session.stream.remote)
        board.agent.report("pubsub.unsubscribed", topic=topic, remote=remote)

    def _count_publisher(self, session: Session) -> None:
        session.is_publisher = True
        session.board.counters.publishers += 1

    # Publications

    async def publish(
        self,
        agent: BrokerAgent,
        event: Event,
        *,
        broker: str | None = None,
        wait: bool = True,
        confirm: bool = False,
    ) -> Address | None:
        """Publish from an agent; see :meth:`Publishing.publish`."""
        return await self._publishing.publish(
            agent, event, broker=broker, wait=wait, confirm=confirm
        )

    async def deliver(
        self,
        agent: BrokerAgent,
        event: Event,
        *,
        confirm: bool = False,
        from_below: FromBelow | None = None,
    ) -> None:
        """Publish at the broker of an agent of this host.

        Args:
            agent: Whose broker.
            event: What is published.
            confirm: Return when the event is in the log on the disk, if the broker
                keeps one.
            from_below: How it came, if another broker of this host sends it up.

        Raises:
            InvalidArgument: The topic is reserved.
            StorageError: The event could not be written, and had to be.
        """
        board = await self._board(agent)
        if not may_publish(event.topic):
            raise InvalidArgument(f"topic {event.topic!r} is reserved")
        log = board.log
        if log is None or not confirm:
            self._take(board, event, from_below=from_below)
            return
        while log.is_full(event):
            await log.flush()
        refused_before = log.refused
        self._take(board, event, durable=True, from_below=from_below)
        await log.sync(refused_before)

    def _publish_received(self, session: Session, event: Event) -> None:
        if not session.is_publisher:
            self._count_publisher(session)
        self._take(
            session.board,
            event,
            source=session,
            durable=session.confirms,
            from_below=session.from_below,
        )

    def _take(
        self,
        board: Board,
        event: Event,
        *,
        source: Session | None = None,
        durable: bool = False,
        from_below: FromBelow | None = None,
    ) -> None:
        if self._host.event_sink is not None:
            self._report_published(board.agent, event, source)
        board.deliver(event, source=source, durable=durable)
        if self._roll_up.forward(board.agent, event, from_below):
            board.counters.forwarded += 1

    def _refuse(self, session: Session, event: Event) -> None:
        session.board.counters.rate_limited += 1
        if self._host.event_sink is not None:
            remote = str(session.stream.remote)
            session.board.agent.report(
                "pubsub.rate_limited", topic=event.topic, **{"from": remote}
            )

    def _report_published(
        self, agent: BrokerAgent, event: Event, source: Session | None
    ) -> None:
        # Without a connection there is no port: published in this process.
        remote = (
            str(source.stream.remote)
            if source is not None
            else f"{Address(BACKBONE, agent.node_id)}:0"
        )
        size = len(event.payload)
        agent.report(
            "pubsub.published", topic=event.topic, size=size, **{"from": remote}
        )

    # Boards

    async def _board(self, agent: BrokerAgent) -> Board:
        board = self._boards.get(agent.node_id)
        if board is not None:
            return board
        async with self._opening:
            board = self._boards.get(agent.node_id)
            if board is None:
                log = await self._open_log(agent) if self._open_log else None
                board = Board(agent, log, self._wall)
                self._boards[agent.node_id] = board
                if log is not None:
                    self._host.spawn(log.run(), name=f"event log of {agent.name}")
        return board

    async def _counters_request(
        self, session: object, agent: BrokerAgent, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve the extension operation ``events``."""
        return dict(self.counters(agent))
