"""An agent of the overlay, as a Python program uses it.

The agent itself lives in a daemon: one that runs already (:meth:`Agent.connect`), or
a private one that lives as long as the object (:meth:`Agent.join`). Whatever the
object has open ends with it; tasks that were submitted go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, overload

import msgspec

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.hosted import hosted_agents
from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import InvalidArgument, NotFound, NotSupported
from pilotfleet.fleet.agentwatch import AgentWatch
from pilotfleet.fleet.privatedaemon import (
    SOCKET,
    made_home,
    rendezvous_flags,
    start_daemon,
)
from pilotfleet.fleet.submissions import Submissions, TaskHandle
from pilotfleet.fleet.subscription import FleetSubscription, Subscription
from pilotfleet.fleet.targets import FoundAgent, Target, resolve_target, target_text
from pilotfleet.fleet.trustlinks import TrustLinks, read_trust_links
from pilotfleet.fleet.worker.call import CallRunner
from pilotfleet.fleet.worker.runner import Worker, WorkerConfig
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.ipc.commands import Command, HandshakeSub, pack_node
from pilotfleet.protocol.services.events import check_topic

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from pilotfleet.client.streams import ClientListener, ClientStream
    from pilotfleet.fleet.worker.job import Job

__all__ = ["Agent", "FoundAgent", "Handler", "Target"]

logger = logging.getLogger(__name__)

PAGE: Final = 1_000

Handler: TypeAlias = "Callable[[Job], Awaitable[str] | str]"
"""Does a task: takes the job, returns the result. What it raises fails the task."""


class Agent:
    """One agent. An asynchronous context manager that closes it at the end."""

    def __init__(self, socket: Path, name: str | None, stack: AsyncExitStack) -> None:
        """For :meth:`connect` and :meth:`join`, which also connect."""
        self._socket = socket
        self._selected = name
        self._stack = stack
        self._client: DaemonClient | None = None
        self._info: dict[str, Any] = {}
        self._submissions: Submissions | None = None
        self._opening = asyncio.Lock()
        self._watches: set[AgentWatch] = set()

    @classmethod
    async def connect(
        cls, socket: str | Path | None = None, *, name: str | None = None
    ) -> Self:
        """Use an agent of a daemon that runs.

        Args:
            socket: The daemon's socket; by default that of ``pilotctl``.
            name: The hosted agent; by default the daemon's default one.

        Raises:
            NotRunning: No daemon listens there.
            NotFound: The daemon hosts no agent of that name.
        """
        place = socket or os.environ.get("PILOT_SOCKET") or default_socket()
        async with AsyncExitStack() as stack:
            agent = cls(Path(place), name, stack)
            await agent._open()
            agent._stack = stack.pop_all()
        return agent

    @classmethod
    async def join(
        cls,
        name: str,
        *,
        rendezvous: str | None = None,
        beacon: str | None = None,
        tags: Sequence[str] = (),
        home: str | Path | None = None,
        network: str | int | None = None,
        token: str = "",
        broker: str | None = None,
        is_public: bool = False,
        polo_gate: bool = True,
    ) -> Self:
        """Start an agent in a private daemon, which ends with the object.

        Args:
            name: Its hostname. One is registered once only.
            rendezvous: The registry's ``host:port``; by default as for all programs,
                ``PILOT_REGISTRY`` or 127.0.0.1:9000.
            beacon: The beacon's; by default one port higher than ``rendezvous``.
            tags: What others find it by.
            home: Where its identity stays; by default ``~/.pilot/agents/NAME``. The
                same home is the same agent, with the same address and trust.
            network: A network to join, by id or name.
            token: The network's, if it wants one.
            broker: The fleet's broker; by default the agent itself.
            is_public: Whether anybody may find and dial it.
            polo_gate: Whether it takes tasks only from agents with enough polo.

        Raises:
            InvalidArgument: The rendezvous is not ``host:port``.
            NotRunning: The daemon did not start; the message has its last words.
            TimedOut: It was not ready in 30 s.
        """
        place = made_home(home, name)
        flags = [
            *("--hostname", name, *rendezvous_flags(rendezvous, beacon)),
            *(flag for tag in tags for flag in ("--tag", tag)),
            *(("--join", str(network)) if network is not None else ()),
            *(("--broker", broker) if broker else ()),
            *(("--public",) if is_public else ()),
            *(() if polo_gate else ("--polo-gate", "off")),
        ]
        async with AsyncExitStack() as stack:
            await start_daemon(stack, place, flags=flags, token=token)
            agent = cls(place / SOCKET, None, stack)
            await agent._open()
            agent._stack = stack.pop_all()
        return agent

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close everything that is open, and stop the daemon if it is private."""
        for watch in list(self._watches):
            await watch.close()
        await self._stack.aclose()

    def __repr__(self) -> str:
        return f"<Agent {self.name} {self.address}>"

    @property
    def name(self) -> str:
        """The hostname, or the name in the daemon of an agent without one."""
        return str(self._info.get("hostname") or self._info.get("name") or "")

    @property
    def address(self) -> str:
        """The permanent address, such as ``0:0000.0000.0007``."""
        return str(self._info["address"])

    @property
    def node_id(self) -> int:
        """The node number that the registry gave."""
        return int(self._info["node_id"])

    # Others

    async def find(
        self,
        *,
        tags: Sequence[str] = (),
        any: bool = False,
        limit: int | None = None,
        online: bool = True,
        cached: bool = False,
    ) -> AsyncGenerator[FoundAgent, None]:
        """Yield the agents that carry tags, in the order of their node ids.

        Whoever would ask again and again has :meth:`watch`.

        Args:
            tags: All of them, unless ``any``.
            any: One of the tags is enough.
            limit: At most so many.
            online: Only those heard of in the last three minutes.
            cached: The answer to an equal question of the last two seconds will do:
                then it may come from the daemon's memory.
        """
        cursor, left = "", limit if limit is not None else sys.maxsize
        while left > 0:
            page = await self._call(
                "search",
                tags=list(tags),
                any=any,
                online=online,
                limit=min(left, PAGE),
                cursor=cursor,
                cached=cached,
            )
            for row in page.get("agents", ()):
                yield FoundAgent.from_row(row)
            left -= len(page.get("agents", ()))
            cursor = page.get("next_cursor", "")
            if not cursor:
                return

    def watch(
        self,
        *,
        tags: Sequence[str] = (),
        any_tag: bool = False,
        hostname_prefix: str = "",
        online: bool = True,
    ) -> AgentWatch:
        """Return the agents that fit, to iterate over as they come, change and go.

        First, all that are there are told as added::

            async for change in agent.watch(tags=["worker"]):
                print(change.kind, change.agent.name)

        Nothing is polled: the registry tells. It goes on over restarts of the
        registry, and ends with an error when the daemon goes away.

        Args:
            tags: All of them, unless ``any_tag``.
            any_tag: One of the tags is enough.
            hostname_prefix: Only agents whose name begins so.
            online: Only those heard of in the last three minutes; the others are told
                as removed.
        """
        query = {
            "tags": list(tags),
            "any": any_tag,
            "hostname_prefix": hostname_prefix,
            "online": online,
        }
        watch = AgentWatch(self._connected, query, on_closed=self._watches.discard)
        self._watches.add(watch)
        return watch

    async def resolve(self, target: Target) -> Address:
        """Return the address of another agent.

        Raises:
            NotFound: Nobody of that name can be seen.
        """
        return await resolve_target(self._daemon, target)

    async def dial(
        self, target: Target, port: int, *, timeout: float | None = 30.0
    ) -> ClientStream:
        """Open a stream to a port of another agent.

        Raises:
            ConnectionRefused: Nothing listens there.
            TimedOut: No answer in time.
            NotFound: The target cannot be resolved.
        """
        return await self._daemon.dial(
            await self.resolve(target), port, timeout=timeout
        )

    async def listen(self, port: int) -> ClientListener:
        """Claim a port of this agent; iterate over it for the streams opened to it::

            async with await agent.listen(7000) as listener:
                async for stream in listener:
                    ...

        Raises:
            DaemonError: The port is taken.
        """
        return await self._daemon.bind(port)

    # Trust

    async def handshake(self, target: Target, reason: str = "") -> str:
        """Ask another agent for trust; return what the daemon says of it."""
        answer = await self._handshake(HandshakeSub.SEND, target, reason)
        return str(answer.get("status"))

    async def approve(self, target: Target) -> None:
        """Accept another agent's request for trust."""
        await self._handshake(HandshakeSub.APPROVE, target)

    async def untrust(self, target: Target) -> None:
        """Take trust back."""
        await self._handshake(HandshakeSub.REVOKE, target)

    async def pending(self) -> list[dict[str, Any]]:
        """Return the requests for trust that wait for an answer."""
        answer = await self._daemon.request_json(
            Command.HANDSHAKE, bytes([HandshakeSub.PENDING])
        )
        return list(answer.get("pending") or ())

    async def trusted(self) -> list[dict[str, Any]]:
        """Return the agents that this one trusts."""
        answer = await self._daemon.request_json(
            Command.HANDSHAKE, bytes([HandshakeSub.TRUSTED])
        )
        return list(answer.get("trusted") or ())

    async def trust_links(self, *, generation: int | None = None) -> TrustLinks | None:
        """Return who trusts whom among the members of the agent's networks.

        Args:
            generation: That of the last answer; None is returned if it still holds.

        Raises:
            NotSupported: The registry does not tell.
        """
        return await read_trust_links(self._daemon, generation=generation)

    async def networks(self) -> list[dict[str, Any]]:
        """Return the networks that the agent is a member of."""
        info = await self._daemon.request_json(Command.INFO)
        return list(info.get("networks") or ())

    async def polo(self) -> int:
        """Return the agent's own polo score."""
        answer = await self._daemon.request_json(Command.MY_POLO)
        return int(answer.get("polo_score", 0))

    # Events

    async def publish(
        self,
        topic: str,
        data: Any,
        *,
        broker: str | None = None,
        wait: bool = True,
        confirm: bool = False,
    ) -> str:
        """Publish an event; return the address of the broker that gets it.

        Args:
            topic: Such as ``fleet.news``.
            data: A text as it is; bytes that are UTF-8; anything else as JSON.
            broker: Where; by default the fleet's broker or, while that is away, its
                stand-by; without a fleet this agent itself.
            wait: Until it is written to the broker's stream. Without it the event may
                be lost later on, in favour of younger ones.
            confirm: Return when the broker has said that it has the event: on disk if
                it keeps a log, and in the queue of every subscriber. Until then it is
                sent again, so it may arrive twice.

        Raises:
            InvalidArgument: The topic or the data is not valid text, or too long.
            NotSupported: With ``confirm``: the broker, or the daemon, is official.
            TimedOut: No broker took it in time; with ``confirm`` it may have arrived
                nevertheless.
            PilotError: It could not be handed over.
        """
        options: dict[str, Any] = {"broker": broker} if broker else {}
        if confirm:
            options["confirm"] = True
        text = _event_text(data)
        check_topic(topic)
        answer = await self._call(
            "publish", topic=topic, data=text, wait=wait, **options
        )
        return str(answer.get("target"))

    @overload
    async def subscribe(
        self,
        pattern: str = "*",
        *,
        broker: Target | Sequence[Target] | None = None,
        since: float | None = None,
    ) -> Subscription: ...

    @overload
    async def subscribe(
        self,
        pattern: str = "*",
        *,
        broker: Target | Sequence[Target] | None = None,
        since: float | None = None,
        marks: Literal[True],
        positions: Mapping[str, tuple[str, int]] | None = None,
    ) -> FleetSubscription: ...

    async def subscribe(
        self,
        pattern: str = "*",
        *,
        broker: Target | Sequence[Target] | None = None,
        since: float | None = None,
        marks: bool = False,
        positions: Mapping[str, tuple[str, int]] | None = None,
    ) -> Subscription | FleetSubscription:
        """Return the events whose topic fits a pattern, to iterate over.

        They come over connections of their own, so a slow reader holds up nothing
        else. A broker that goes away is looked for again, and what it logged
        meanwhile comes then::

            async with await agent.subscribe("fleet.*") as events:
                async for topic, payload in events:
                    ...

        Args:
            broker: Where, at one or several; by default the fleet's broker and its
                stand-bys, without a fleet this agent itself.
            since: Also what the brokers' logs have of so many last seconds.
            marks: Yield :class:`Received` events, which say from which broker they
                are, and :class:`Mark` values, which say how far it has come.
            positions: Where to go on, by broker: the log and number of its last mark.

        Raises:
            PilotError: None of the brokers can be reached.
        """
        items = await FleetSubscription.open(
            self._connected,
            await self._brokers(broker),
            pattern,
            since=since,
            marks=marks,
            positions=positions,
        )
        return items if marks else Subscription(items)

    async def brokers(self) -> list[str]:
        """Return where events of the whole fleet can be heard, as the daemon was told.

        That is its broker with the stand-bys; without a fleet, this agent itself.
        """
        try:
            answer = await self._call("broker")
        except NotSupported:
            return [self.address]
        # Where brokers roll up, the ones above have the events of all others.
        names = (
            answer.get("subscribe") or answer.get("brokers") or [answer.get("broker")]
        )
        return [str(name) for name in names if name] or [self.address]

    # Tasks

    async def submit(
        self,
        target: Target,
        text: str,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> TaskHandle:
        """Give another agent a task. It is on disk when this returns.

        Args:
            priority: -100 to 100; higher ones are done first.
            deadline: Seconds after which nobody wants the result any more.

        Raises:
            NotFound: The target cannot be resolved.
        """
        options: dict[str, Any] = {}
        if priority:
            options["priority"] = priority
        if deadline is not None:
            options["deadline_s"] = deadline
        submissions = await self._task_updates()
        return await submissions.submit(target_text(target), text, **options)

    async def serve(self, handler: Handler, *, concurrency: int = 1) -> None:
        """Do the tasks that others give this agent, until cancelled.

        A handler that is an ordinary function runs in a thread. Cancelled while a
        task runs, the task goes back to the queue and is offered again; a thread
        runs on, and its result is lost.

        Args:
            handler: Takes a :class:`Job` and returns the result's text.
            concurrency: Tasks at a time.

        Raises:
            InvalidArgument: The handler does not take one argument.
        """
        config = WorkerConfig(
            agents=[await self.hosted_name()],
            socket=self._socket,
            concurrency=concurrency,
            max_processes=concurrency,
        )
        runner = CallRunner(
            handler, timeout_s=None, threads=concurrency, takes_job=True
        )
        await Worker(config, runner.run).run(asyncio.Event())

    async def connection(self) -> DaemonClient:
        """Return another connection to the daemon that acts as this agent.

        For what this class does not cover. The caller closes it.
        """
        return await self._connected()

    async def hosted_name(self) -> str:
        """Return what the daemon calls the agent; its hostname may be another."""
        if self._selected:
            return self._selected
        async for row in hosted_agents(self._daemon):
            if row["node_id"] == self.node_id:
                return str(row["name"])
        raise NotFound(f"the daemon hosts no node {self.node_id} any more")

    # Private

    @property
    def _daemon(self) -> DaemonClient:
        assert self._client is not None
        return self._client

    async def _open(self) -> None:
        self._client = await self._stack.enter_async_context(await self._connected())
        self._info = await self._client.request_json(Command.INFO)
        if self._selected:
            self._info["name"] = self._selected

    async def _connected(self) -> DaemonClient:
        client = await DaemonClient.connect(self._socket)
        try:
            if self._selected:
                await client.call("select-agent", name=self._selected)
        except BaseException:
            await client.close()
            raise
        return client

    async def _call(self, op: str, **params: Any) -> dict[str, Any]:
        return await self._daemon.call(op, **params)

    async def _task_updates(self) -> Submissions:
        async with self._opening:
            if self._submissions is None:
                submissions = Submissions(await self._connected())
                self._stack.push_async_callback(submissions.close)
                await submissions.open()
                self._submissions = submissions
        return self._submissions

    async def _brokers(self, broker: Target | Sequence[Target] | None) -> list[str]:
        match broker:
            case None:
                return await self.brokers()
            case str() | int() | Address() | FoundAgent():
                return [target_text(broker)]
        return [target_text(each) for each in broker]

    async def _handshake(
        self, sub: HandshakeSub, target: Target, reason: str = ""
    ) -> dict[str, Any]:
        node = (await self.resolve(target)).node
        payload = bytes([sub]) + pack_node(node) + reason.encode()
        return await self._daemon.request_json(Command.HANDSHAKE, payload)


def _event_text(data: Any) -> str:
    if isinstance(data, bytes):
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"event data is not UTF-8: {error}") from None
    try:
        if not isinstance(data, str):
            return msgspec.json.encode(data).decode()
        data.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"event data is not valid text: {error}") from None
    return data
