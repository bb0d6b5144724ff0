"""Two processes of a daemon, both in this one, and what stands for their parent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.node.processes.channel import Channel, make_pair
from pilotfleet.node.processes.division import process_of
from pilotfleet.node.processes.messages import Message, Take
from pilotfleet.node.processes.siblings import Siblings
from tests.node.ipc.support import RawClient, TinyAgent, TinyHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from pilotfleet.node.host import Host

NAMES = ("w-1", "w-2", "w-3", "w-4")


@dataclass
class PartHost(TinyHost):
    """Agents of one of two processes: ``w-1`` and ``w-3``, or ``w-2`` and ``w-4``."""

    number: int = 1
    doors: list[Callable[[], Any]] = field(default_factory=list)
    on_progress: Callable[[int, int], None] = lambda done, total: None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node, name in enumerate(NAMES, 1):
            if process_of(name, 2) == self.number:
                self.agents[name] = TinyAgent(self, name, node)

    @property
    def default_agent(self) -> TinyAgent:
        return next(iter(self.agents.values()))

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Pair:
    """Two processes and their parent."""

    def __init__(self) -> None:
        self.hosts = {number: PartHost(number=number) for number in (1, 2)}
        self.told: list[tuple[int, Message]] = []
        self.orphaned = asyncio.Event()
        self.siblings: dict[int, Siblings] = {}
        self.parents: dict[int, Channel] = {}
        self._stack = contextlib.AsyncExitStack()
        self._doors: dict[int, contextlib.AsyncExitStack] = {}

    async def start(self) -> None:
        for number in self.hosts:
            await self.begin(number)

    async def begin(self, number: int) -> None:
        """Start one of the processes."""
        ours, theirs = make_pair()
        host = self.hosts[number]
        self.parents[number] = Channel(
            ours,
            on_message=lambda message, connection: self._hear(
                number, message, connection
            ),
            on_end=lambda: None,
        )
        siblings = self.siblings[number] = Siblings(
            number,
            2,
            others={1, 2} - {number},
            first="w-1",
            end=theirs,
            on_orphaned=self.orphaned.set,
        )
        host.doors.clear()
        siblings.attach(cast("Host", host))
        stack = self._doors[number] = contextlib.AsyncExitStack()
        await stack.enter_async_context(host.doors[0]())

    async def end(self, number: int) -> None:
        """Have one of the processes end."""
        self.parents.pop(number).close()
        await self._doors.pop(number).aclose()
        self.siblings.pop(number).close()

    def sessions(self, number: int) -> list[Any]:
        """Return the connections that a process serves."""
        server = self.siblings[number]._server
        return [] if server is None else list(server.sessions)

    def connect(self) -> socket.socket:
        """Come to the daemon's socket."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.parents[1].send(Take(to=1), theirs)
        return ours

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[DaemonClient]:
        """Yield a client that has just come to the daemon's socket."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(DaemonClient, sock=self.connect())
        async with client:
            yield client

    @contextlib.asynccontextmanager
    async def raw_client(self) -> AsyncIterator[RawClient]:
        """Yield a client that speaks bytes."""
        reader, writer = await asyncio.open_unix_connection(sock=self.connect())
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def aclose(self) -> None:
        for number in list(self.parents):
            await self.end(number)

    def _hear(
        self, number: int, message: Message, connection: socket.socket | None
    ) -> None:
        if not isinstance(message, Take):
            self.told.append((number, message))
        elif connection is not None and message.to in self.parents:
            self.parents[message.to].send(message, connection)
        elif connection is not None:
            connection.close()


@contextlib.asynccontextmanager
async def processes() -> AsyncIterator[Pair]:
    """Yield two processes that serve."""
    pair = Pair()
    try:
        await pair.start()
        yield pair
    finally:
        await pair.aclose()
