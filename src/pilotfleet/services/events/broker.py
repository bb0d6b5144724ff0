"""The event broker on port 1002, and the publishing side of every agent.

One :class:`EventBroker` serves all agents of a host. It keeps a table of
subscriptions for each agent that has any, so an agent whose broker is not used
costs nothing.

A connection to the broker is a :class:`_Session`. Its first frame subscribes,
later ones publish (services.md section 5.2). Each session has its own bounded
queue, which one writer empties; when a subscriber is slower than its topics, the
oldest events give way and are counted, and nobody else notices.

Publishing goes the other way over one lasting connection for each agent and
broker (:mod:`pilotfleet.services.events.publisher`). Brokers in the same process are
reached without the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    Busy,
    DecodeError,
    InvalidArgument,
    PilotError,
    StorageError,
)
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.limits import TokenBucket
from pilotfleet.protocol.services.events import (
    GOVERNED_TOPIC,
    PUBLISHER_TOPIC,
    Event,
    EventDecoder,
    decode_since,
    encode_event,
)
from pilotfleet.protocol.topics import TopicTrie
from pilotfleet.services.events.publisher import BrokerConfig, FrameQueue, Publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pilotfleet.services.events.log import EventLog
    from pilotfleet.services.events.publisher import (
        BrokerAgent,
        BrokerHost,
        BrokerStream,
    )

__all__ = ["BrokerConfig", "EventBroker"]

logger = logging.getLogger(__name__)

# From the specification (services.md section 5.3).
STRANGER_BURST: Final = 200
STRANGER_RATE: Final = 100.0

# Of our choosing.
READ_SIZE: Final = 64 << 10
MAX_NODE_DIGITS: Final = 10


class EventBroker:
    """Port 1002 of all agents of a host, and their publishing.

    Args:
        host: Owns the agents and the tasks.
        config: Limits, and the name of the fleet's broker.
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
        self._topics: dict[int, TopicTrie[_Session]] = {}
        self._logs: dict[int, EventLog | None] = {}
        self._opening = asyncio.Lock()
        self._publishers: dict[int, dict[int, Publisher]] = {}
        """By agent and broker; those of an agent with the last used one at the end."""
        self.dropped = 0
        """Events that a subscriber was too slow for."""
        self.rate_limited = 0
        """Publications refused by the token bucket."""
        self.delivered = 0
        """Events handed to a subscriber's queue."""

    def extensions(self) -> dict[str, Callable[..., Awaitable[dict[str, Any]]]]:
        """Return the daemon's extension operations of this service."""
        return {"publish": self._publish_request}

    async def aclose(self) -> None:
        """Close the logs. The host has ended our tasks and streams."""
        for log in self._logs.values():
            if log is not None:
                await log.aclose()
        self._logs.clear()

    # Broker side.

    async def handle(self, agent: BrokerAgent, stream: BrokerStream) -> None:
        """Serve one connection to the broker of ``agent`` until it ends."""
        await self._log_of(agent)
        session = _Session(stream, self._config, self._bucket_for(agent, stream))
        # The writer is part of the session: it starts with the subscription and
        # never outlives the connection.
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read_session(agent, session, tasks)
                session.end()
        finally:
            self._unsubscribe(agent, session)
            self.dropped += session.dropped
            await stream.close()

    async def _read_session(
        self, agent: BrokerAgent, session: _Session, tasks: asyncio.TaskGroup
    ) -> None:
        decoder = EventDecoder()
        try:
            while data := await session.stream.read(READ_SIZE):
                for event in decoder.feed(data):
                    if session.topic is None:
                        self._subscribe(agent, session, event, tasks)
                    elif session.bucket.take(self._clock()):
                        self._deliver(agent, event, source=session)
                    else:
                        self.rate_limited += 1
                        agent.report(
                            "pubsub.rate_limited",
                            topic=event.topic,
                            **{"from": str(session.stream.remote)},
                        )
        except PilotError as error:
            # A frame that breaks the protocol ends the connection without an
            # answer (services.md 5.3), like a connection that breaks.
            logger.debug("event client %s: %s", session.stream.remote, error)

    def _subscribe(
        self,
        agent: BrokerAgent,
        session: _Session,
        event: Event,
        tasks: asyncio.TaskGroup,
    ) -> None:
        session.topic = event.topic
        if event.topic == PUBLISHER_TOPIC:
            return
        topics = self._topics.setdefault(agent.node_id, TopicTrie())
        topics.add(event.topic, session)
        remote = str(session.stream.remote)
        agent.report("pubsub.subscribed", topic=event.topic, remote=remote)
        since = decode_since(event.payload)
        log = self._logs.get(agent.node_id)
        if since is None or log is None:
            tasks.create_task(session.write_queue(), name="event subscriber")
            return
        # What is published from here on waits in the queue behind the replay,
        # so the subscriber sees every event once.
        past = log.replay(event.topic, since=self._wall() - since, until_id=log.last_id)
        tasks.create_task(session.write_queue(past), name="event subscriber")

    def _unsubscribe(self, agent: BrokerAgent, session: _Session) -> None:
        topics = self._topics.get(agent.node_id)
        if topics is None or session.topic is None:
            return
        topics.remove(session.topic, session)
        if session.topic != PUBLISHER_TOPIC:
            remote = str(session.stream.remote)
            agent.report("pubsub.unsubscribed", topic=session.topic, remote=remote)
        if not topics:
            del self._topics[agent.node_id]

    def _deliver(
        self, agent: BrokerAgent, event: Event, *, source: _Session | None
    ) -> None:
        """Give one publication to the log and to all subscribers but its source."""
        if event.topic == GOVERNED_TOPIC:
            return
        if self._host.event_sink is not None:
            self._report_published(agent, event, source)
        log = self._logs.get(agent.node_id)
        if log is not None:
            log.append(event, self._wall())
        topics = self._topics.get(agent.node_id)
        if topics is None:
            return
        frame = encode_event(*event)
        for session in topics.match(event.topic):
            if session is not source:
                session.queue(frame)
                self.delivered += 1

    def _report_published(
        self, agent: BrokerAgent, event: Event, source: _Session | None
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

    def _bucket_for(self, agent: BrokerAgent, stream: BrokerStream) -> TokenBucket:
        node = stream.remote.address.node
        if node in self._host.by_node or self._is_member(agent, node):
            config = self._config
            return TokenBucket(config.member_burst, config.member_rate, self._clock())
        return TokenBucket(STRANGER_BURST, STRANGER_RATE, self._clock())

    async def _log_of(self, agent: BrokerAgent) -> EventLog | None:
        if self._open_log is None:
            return None
        async with self._opening:
            if agent.node_id not in self._logs:
                log = await self._open_log(agent)
                self._logs[agent.node_id] = log
                if log is not None:
                    self._host.spawn(log.run(), name=f"event log of {agent.name}")
        return self._logs[agent.node_id]

    # Publishing side.

    async def publish(
        self,
        agent: BrokerAgent,
        event: Event,
        *,
        broker: str | None = None,
        wait: bool = True,
    ) -> Address:
        """Publish from an agent; return the address of the broker.

        Args:
            agent: Who publishes.
            event: What to publish.
            broker: Name, address or number of a broker; none means the fleet's,
                and without one the agent's own.
            wait: Return when the event was given to the broker's connection.
                Otherwise return at once; when the queue is full while the broker
                cannot be reached, the oldest events are lost.

        Raises:
            InvalidArgument: The event is too large.
            NotFound: The broker's name does not resolve.
            Unavailable: The broker cannot be reached, or not in time.
        """
        frame = encode_event(*event)
        address = await self._find_broker(agent, broker or self._config.broker)
        local = self._host.by_node.get(address.node)
        if local is None and address.node == agent.node_id:
            local = agent
        if local is not None:
            await self._log_of(local)
            self._deliver(local, event, source=None)
            return address
        await self._publisher(agent, address).send(frame, wait=wait)
        return address

    async def _find_broker(self, agent: BrokerAgent, name: str | None) -> Address:
        if not name or name in (agent.hostname, agent.name):
            return Address(BACKBONE, agent.node_id)
        hosted = self._host.agents.get(name)
        if hosted is not None:
            return Address(BACKBONE, hosted.node_id)
        is_number = name.isascii() and name.isdigit() and len(name) <= MAX_NODE_DIGITS
        if is_number and int(name) <= 0xFFFF_FFFF:
            return Address(BACKBONE, int(name))
        try:
            return Address.parse(name)
        except DecodeError:
            answer = await agent.resolve_hostname(name)
            return Address.parse(str(answer.get("address", "")))

    def _publisher(self, agent: BrokerAgent, broker: Address) -> Publisher:
        mine = self._publishers.setdefault(agent.node_id, {})
        publisher = mine.pop(broker.node, None)
        if publisher is None:
            if len(mine) >= self._config.max_publishers:
                self._end_idle_publisher(agent, mine)
            publisher = Publisher(self._host, agent, broker, self._config)
        mine[broker.node] = publisher
        return publisher

    def _end_idle_publisher(
        self, agent: BrokerAgent, mine: dict[int, Publisher]
    ) -> None:
        """Make room by ending the connection that was not used for longest."""
        for node, publisher in mine.items():
            if publisher.is_idle:
                del mine[node]
                name = f"end of publishing to node {node}"
                self._host.spawn(publisher.aclose(), name=name)
                return
        raise Busy(f"agent {agent.name} publishes to {len(mine)} brokers already")

    async def _publish_request(
        self, session: object, agent: BrokerAgent, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve the extension operation ``publish``."""
        topic, data = request.get("topic"), request.get("data", "")
        broker, wait = request.get("broker"), request.get("wait", True)
        if not isinstance(topic, str) or not isinstance(data, str):
            raise InvalidArgument("publish needs a topic and data as text")
        if not isinstance(broker, str | None):
            raise InvalidArgument("broker must be text")
        payload = data.encode()
        address = await self.publish(
            agent, Event(topic, payload), broker=broker, wait=bool(wait)
        )
        return {"topic": topic, "bytes": len(payload), "target": str(address)}


class _Session:
    """One connection to the broker: its subscription and what waits for it."""

    __slots__ = ("_ended", "_frames", "_wake", "bucket", "stream", "topic")

    def __init__(
        self, stream: BrokerStream, config: BrokerConfig, bucket: TokenBucket
    ) -> None:
        self.stream = stream
        self.bucket = bucket
        self.topic: str | None = None
        self._frames = FrameQueue(config)
        self._wake = asyncio.Event()
        self._ended = False

    @property
    def dropped(self) -> int:
        """Events that this subscriber was too slow for."""
        return self._frames.dropped

    def queue(self, frame: bytes) -> None:
        """Let the writer send a frame."""
        self._frames.put(frame)
        self._wake.set()

    def end(self) -> None:
        """Let the writer stop after the queue."""
        self._ended = True
        self._wake.set()

    async def write_queue(self, past: AsyncIterator[Event] | None = None) -> None:
        """Write past events, then the queue, until the connection ends."""
        try:
            if past is not None:
                await self._write_past(past)
            while not self._ended or self._frames:
                await self._wake.wait()
                self._wake.clear()
                while self._frames:
                    await self.stream.write(b"".join(self._frames.take()))
        except PilotError as error:
            logger.debug("subscriber %s: %s", self.stream.remote, error)

    async def _write_past(self, past: AsyncIterator[Event]) -> None:
        try:
            async for event in past:
                await self.stream.write(encode_event(*event))
        except StorageError as error:
            # What is live goes on without what is past.
            logger.warning("replay for %s: %s", self.stream.remote, error)
