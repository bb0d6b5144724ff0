"""Hosts with the task service against a real rendezvous, and peers made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.tasks import SESSION_PORT, TASK_PORT
from pilotfleet.services.polo.gate import PoloGateConfig
from pilotfleet.services.tasks.gate import GateMode
from pilotfleet.services.tasks.service import TaskConfig, TaskService
from tests.node.support import World, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.node.stream import Stream

LIMIT_S = 20.0
OPEN = TaskConfig(gate=GateMode.OFF, polo_gate=PoloGateConfig(is_on=False))


class Wall:
    """A calendar clock that tests turn forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Connection:
    """A local connection that takes a number of pushes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.pushes: list[dict[str, Any]] = []
        self._callbacks: list[Callable[[], None]] = []

    def push(self, message: dict[str, Any]) -> bool:
        if len(self.pushes) >= self.room:
            return False
        self.pushes.append(message)
        return True

    def on_close(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def close(self) -> None:
        for callback in self._callbacks:
            callback()


class Program:
    """A local program, connected to a daemon's socket."""

    def __init__(self, client: DaemonClient, agent: str) -> None:
        self._client = client
        self._agent = agent
        self._arrived = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())
        self.pushes: list[dict[str, Any]] = []
        """Arrived and not expected yet."""

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        """Call a task operation."""
        params = {"agent": self._agent, **params}
        return await self._client.call(f"task.{op}", timeout=LIMIT_S, **params)

    async def call_plain(self, op: str) -> dict[str, Any]:
        """Call an operation that is about no agent."""
        return await self._client.call(op, timeout=LIMIT_S)

    async def polo(self, op: str, **params: Any) -> dict[str, Any]:
        """Call an operation on receipts."""
        params = {"agent": self._agent, **params}
        return await self._client.call(f"polo.{op}", timeout=LIMIT_S, **params)

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for a push with these fields, and take it."""
        wanted = {"push": f"task.{kind}", **fields}.items()
        async with asyncio.timeout(LIMIT_S):
            while True:
                for push in self.pushes:
                    if all(push.get(name) == value for name, value in wanted):
                        self.pushes.remove(push)
                        return push
                self._arrived.clear()
                await self._arrived.wait()

    async def expect_any(self, kind: str) -> dict[str, Any]:
        """Take the next push of a kind, however long it takes."""
        while True:
            for push in self.pushes:
                if push["push"] == f"task.{kind}":
                    self.pushes.remove(push)
                    return push
            self._arrived.clear()
            await self._arrived.wait()

    async def offer(self) -> str:
        """Wait for an offer; return the task's id."""
        return str((await self.expect("offer"))["task"]["task_id"])

    async def all_pushes(self) -> list[dict[str, Any]]:
        """Return what was pushed before now."""
        await self.call("queue")
        for _ in range(5):
            await asyncio.sleep(0)
        return self.pushes

    async def status(self, task_id: str, kind: str) -> str:
        """Return how far a task is, for one of its sides."""
        tasks = (await self.call("list", type=kind))["tasks"]
        found = [task["status"] for task in tasks if task["task_id"] == task_id]
        return str(found[0]) if found else ""

    async def until(self, task_id: str, kind: str, status: str) -> None:
        """Wait until a task is as far."""
        async with asyncio.timeout(LIMIT_S):
            while (now := await self.status(task_id, kind)) != status:
                assert now != "SUCCEEDED", f"waited for {status}"

    async def close(self) -> None:
        """Disconnect."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._client.close()

    async def _read(self) -> None:
        async for push in self._client.pushes():
            self.pushes.append(push)
            self._arrived.set()


@dataclass
class Node:
    """A running host with one or more agents and their tasks."""

    host: Host
    tasks: TaskService
    wall: Wall
    stack: contextlib.AsyncExitStack

    @property
    def agent(self) -> Agent:
        """The first agent."""
        return self.host.default_agent

    async def program(self, agent: str | None = None) -> Program:
        """Connect a local program."""
        assert self.host.config.socket is not None
        client = await DaemonClient.connect(self.host.config.socket)
        program = Program(client, agent or self.agent.name)
        self.stack.push_async_callback(program.close)
        return program

    async def close(self) -> None:
        """Stop everything; opening the same folder again is a restart."""
        await self.stack.aclose()


class TaskWorld:
    """A rendezvous, and hosts that are stopped at the end."""

    def __init__(self, world: World, stack: contextlib.AsyncExitStack) -> None:
        self.world = world
        self._stack = stack

    async def node(
        self,
        name: str,
        *more: str,
        config: TaskConfig = OPEN,
        sessions: bool = True,
        wall: Wall | None = None,
    ) -> Node:
        """Start a host; without sessions it is one that knows port 1003 only."""
        stack = contextlib.AsyncExitStack()
        self._stack.push_async_callback(stack.aclose)
        wall = wall or Wall()
        folder = self.world.folder / name
        folder.mkdir(exist_ok=True)
        host = self.world.host(name, name, *more, socket=folder / "s")
        tasks = TaskService(host, folder / "tasks.db", config=config, wall=wall)
        await stack.enter_async_context(tasks)
        host.services.update(tasks.handlers())
        if not sessions:
            del host.services[SESSION_PORT]
        host.extensions.update(tasks.extensions())
        await stack.enter_async_context(host)
        await tasks.resume()
        return Node(host, tasks, wall, stack)

    async def bare(self, name: str) -> Agent:
        """Start a host without the task service; return its agent."""
        host = self.world.host(name, name)
        await self._stack.enter_async_context(host)
        return host.default_agent


@contextlib.asynccontextmanager
async def open_task_world(world: World) -> AsyncIterator[TaskWorld]:
    """Yield a world of task nodes."""
    async with contextlib.AsyncExitStack() as stack:
        yield TaskWorld(world, stack)


async def pair(net: TaskWorld) -> tuple[Node, Node]:
    """Start a submitter and a worker."""
    return await net.node("hub"), await net.node("worker")


async def submit(boss: Program, worker: Node, text: str = "do it", **more: Any) -> str:
    """Give a task to a worker; return its id once the worker's node has it."""
    target = str(worker.agent.address)
    answer = await boss.call("submit", target=target, task=text, **more)
    assert answer["accepted"] is True
    return str(answer["task_id"])


def frame(frame_type: int, fields: dict[str, Any] | bytes) -> bytes:
    """Return a frame as the official programs write it."""
    if not isinstance(fields, bytes):
        fields = json.dumps(fields, separators=(",", ":")).encode()
    return struct.pack("!II", frame_type, len(fields)) + fields


async def read_frame(stream: Stream) -> tuple[int, dict[str, Any]]:
    """Read one frame."""
    frame_type, length = struct.unpack("!II", await stream.read_exactly(8))
    return frame_type, json.loads(await stream.read_exactly(length))


async def read_all(stream: Stream) -> bytes:
    """Read to the end."""
    data = b""
    async with asyncio.timeout(LIMIT_S):
        while part := await stream.read():
            data += part
    return data


async def say(
    agent: Agent, peer: Agent, data: bytes, *, port: int = TASK_PORT
) -> bytes:
    """Write bytes on a connection of their own; return all that comes back."""
    stream = await agent.dial(SocketAddress(peer.address, port), timeout=LIMIT_S)
    async with stream:
        await stream.write(data)
        return await read_all(stream)


def submission(task_id: str, submitter: Agent, worker: Agent, text: str) -> bytes:
    """Return the official SUBMIT frame."""
    return frame(
        1,
        {
            "task_id": task_id,
            "task_description": text,
            "from_addr": str(submitter.address),
            "to_addr": str(worker.address),
        },
    )


async def until(is_true: Callable[[], object], what: str) -> None:
    """Wait for something that nobody announces."""
    await eventually(is_true, what=what)
