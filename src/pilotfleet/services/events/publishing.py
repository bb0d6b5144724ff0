"""Publishing for all agents of a host: which broker, and over which connection.

Brokers of agents in the same process are reached without the network; for every
other one an agent has a lasting connection, and one for all of the fleet's brokers
together, of which it uses the first that can be reached.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pilotfleet.errors import Busy, InvalidArgument, TimedOut
from pilotfleet.protocol.address import BACKBONE, Address, SocketAddress
from pilotfleet.protocol.services.eventoptions import encode_roll_up
from pilotfleet.protocol.services.events import EVENT_PORT, Event, encode_event
from pilotfleet.services.events.confirmed import ConfirmedPublisher
from pilotfleet.services.events.links import (
    AckedLink,
    ConfirmedLink,
    LocalLink,
    PlainLink,
)
from pilotfleet.services.events.publisher import Publisher
from pilotfleet.services.events.rollup import FromBelow
from pilotfleet.services.events.route import Route
from pilotfleet.services.events.standby import StandbyChoice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.events.host import BrokerAgent, BrokerHost, BrokerStream
    from pilotfleet.services.events.links import Link

__all__ = ["Publishing"]

_Key: TypeAlias = "tuple[int | None, bool]"
"""A broker's node, none for the fleet's brokers; and whether it shall confirm."""


class Publishing:
    """The publishing side of the agents of a host.

    Args:
        host: Owns the agents and the tasks.
        config: Limits, and the names of the fleet's brokers.
        deliver_here: Publishes at the broker of an agent of this host; takes the
            agent, the event, ``confirm`` and ``from_below``.
    """

    def __init__(
        self,
        host: BrokerHost,
        config: BrokerConfig,
        *,
        deliver_here: Callable[..., Awaitable[None]],
    ) -> None:
        self._host = host
        self._config = config
        self._deliver_here = deliver_here
        # What one agent finds out of a broker is true for the others here, too.
        self._choice = StandbyChoice(len(config.brokers))
        self._publishers: dict[int, dict[_Key, Publisher | ConfirmedPublisher]] = {}
        """Those of an agent with the last used one at the end."""

    async def publish(
        self,
        agent: BrokerAgent,
        event: Event,
        *,
        broker: str | None = None,
        wait: bool = True,
        confirm: bool = False,
    ) -> Address | None:
        """Publish from an agent; return the address of the broker, if known yet.

        Args:
            agent: Who publishes.
            event: What to publish.
            broker: Name, address or number of a broker; none means the first of the
                fleet's that can be reached, and without a fleet the agent's own.
            wait: Return when the event was given to the broker's connection.
                Otherwise return at once; when the queue is full while no broker
                can be reached, the oldest events are lost.
            confirm: Return when the broker has confirmed the event; until then it
                is sent again as often as needed, so it may arrive twice.

        Raises:
            InvalidArgument: The event is too large.
            NotFound: The broker's name does not resolve.
            NotSupported: With ``confirm``: the broker confirms nothing.
            Unavailable: No broker can be reached, or not in time.
        """
        frame = encode_event(*event)
        names = (broker,) if broker else self._config.brokers
        first = await self._find_first(agent, names)
        if first is not None:
            local = self._local(agent, first)
            if local is not None:
                await self._deliver_here(local, event, confirm=confirm)
                return first
            names = (str(first),)
        key = (first.node if first is not None else None, confirm)
        publisher = self._publisher(agent, key, names)
        if isinstance(publisher, ConfirmedPublisher) or wait:
            return await publisher.send(frame)
        publisher.post(frame)
        return publisher.broker or first

    def open_roll_up(
        self, agent: BrokerAgent, names: Sequence[str], *, levels: int, gather_s: float
    ) -> Publisher:
        """Return a new publisher for what the broker of an agent sends up.

        Args:
            agent: Whose broker.
            names: The broker above, and its stand-bys.
            levels: How many brokers the events have passed, with this one.
            gather_s: How long events wait for others to be written with.
        """
        route = self._route(agent, names, is_confirmed=False, levels=levels)
        return Publisher(self._host, route, self._config, gather_s=gather_s)

    async def request(
        self, session: object, agent: BrokerAgent, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve the extension operation ``publish``."""
        topic, data = request.get("topic"), request.get("data", "")
        broker, wait = request.get("broker"), request.get("wait", True)
        if not isinstance(topic, str) or not isinstance(data, str):
            raise InvalidArgument("publish needs a topic and data as text")
        if not isinstance(broker, str | None):
            raise InvalidArgument("broker must be text")
        payload = _encode(data)
        confirm = request.get("confirm", False) is True
        address = await self.publish(
            agent,
            Event(topic, payload),
            broker=broker,
            wait=bool(wait),
            confirm=confirm,
        )
        target = str(address or self._config.brokers[0])
        result = {"topic": topic, "bytes": len(payload), "target": target}
        return {**result, "confirmed": True} if confirm else result

    # Brokers

    async def _find_first(
        self, agent: BrokerAgent, names: Sequence[str]
    ) -> Address | None:
        """Return the one broker there is to choose from, or the first if it is here.

        A name that does not resolve is told at once where no other broker stands by.
        """
        if len(names) <= 1:
            return await self._find(agent, names[0] if names else None)
        return self._find_here(agent, names[0])

    async def _find(self, agent: BrokerAgent, name: str | None) -> Address:
        here = self._find_here(agent, name)
        if here is not None:
            return here
        assert name is not None
        stated = Address.stated_by(name)
        if stated is not None:
            return stated
        answer = await agent.resolve_hostname(name)
        return Address.parse(str(answer.get("address", "")))

    def _find_here(self, agent: BrokerAgent, name: str | None) -> Address | None:
        if not name or name in (agent.hostname, agent.name):
            return Address(BACKBONE, agent.node_id)
        hosted = self._host.agents.get(name)
        return Address(BACKBONE, hosted.node_id) if hosted is not None else None

    def _local(self, agent: BrokerAgent, broker: Address) -> Any:
        """Return the agent of this host whose broker it is, if it is one."""
        local = self._host.by_node.get(broker.node)
        return agent if local is None and broker.node == agent.node_id else local

    # Connections

    def _publisher(
        self, agent: BrokerAgent, key: _Key, names: Sequence[str]
    ) -> Publisher | ConfirmedPublisher:
        mine = self._publishers.setdefault(agent.node_id, {})
        publisher = mine.pop(key, None)
        if publisher is None:
            if len(mine) >= self._config.max_publishers:
                self._end_idle_publisher(agent, mine)
            _, is_confirmed = key
            kind = ConfirmedPublisher if is_confirmed else Publisher
            route = self._route(agent, names, is_confirmed=is_confirmed)
            publisher = kind(self._host, route, self._config)
        mine[key] = publisher
        return publisher

    def _end_idle_publisher(
        self, agent: BrokerAgent, mine: dict[_Key, Publisher | ConfirmedPublisher]
    ) -> None:
        """Make room by ending the connection that was not used for longest."""
        for key, publisher in mine.items():
            if publisher.is_idle:
                del mine[key]
                name = f"end of publishing to node {key[0]}"
                self._host.spawn(publisher.aclose(), name=name)
                return
        raise Busy(f"agent {agent.name} publishes to {len(mine)} brokers already")

    def _route(
        self,
        agent: BrokerAgent,
        names: Sequence[str],
        *,
        is_confirmed: bool,
        levels: int = 0,
    ) -> Route:
        if is_confirmed:
            make: Callable[[BrokerStream], Awaitable[Link]] = ConfirmedLink.open
        else:
            # What may have been lost is sent again only where that helps at once.
            kind = AckedLink if len(names) > 1 else PlainLink
            make = partial(kind.open, options=encode_roll_up(levels) if levels else b"")
        from_below = FromBelow(agent.node_id, levels) if levels else None

        async def open_link(name: str, limit_s: float | None) -> Link:
            try:
                async with asyncio.timeout(limit_s):
                    address = await self._find(agent, name)
                    local = self._local(agent, address)
                    if local is not None:
                        deliver = partial(
                            self._deliver_here,
                            local,
                            confirm=is_confirmed,
                            from_below=from_below,
                        )
                        return LocalLink(address, deliver)
                    stream = await agent.dial(SocketAddress(address, EVENT_PORT))
            except TimeoutError:
                raise TimedOut(f"broker {name} does not answer") from None
            try:
                return await make(stream)
            except BaseException:
                stream.abort()
                raise

        is_fleet = tuple(names) == self._config.brokers and len(names) > 1
        choice = self._choice if is_fleet else None
        return Route(self._host, names, open_link, choice=choice)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        # JSON can name half of a character.
        raise InvalidArgument(f"data is not valid text: {error.reason}") from None
