"""A program for benchmarks: load on a registry, from a process of its own.

``python -m bench.registryload PID HOST PORT`` takes one order per line on its standard
input, as JSON, and answers each with one line: how many requests, how long it took, and
the processor time that process PID, the registry, and this one used for them. What is
sent is signed and encoded beforehand, and replies are decoded afterwards. An error in a
reply ends the program.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from bench.processmemory import cpu_seconds
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.framing import JsonFrameDecoder, encode_json_frame
from pilotfleet.protocol.registry.signatures import sign_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BATCH = 500
"""Requests or nodes in one message, where there are batches."""
FILES = 8_192
Message = dict[str, Any]


class Connection(asyncio.Protocol):
    """Sends frames, some before their replies, and counts the replies."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._decoder = JsonFrameDecoder()
        self.replies: list[bytes] = []
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.replies += self._decoder.feed(data)
        if self._done is not None and len(self.replies) >= self._wanted:
            self._done.set_result(None)
            self._done = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None:
            self._done.set_exception(ConnectionError("the registry hung up"))

    async def exchange(self, frames: Sequence[bytes], depth: int) -> list[bytes]:
        """Send frames, ``depth`` at a time, and return the replies."""
        self.replies = []
        for start in range(0, len(frames), depth):
            part = frames[start : start + depth]
            self._wanted = start + len(part)
            self._done = done = asyncio.get_running_loop().create_future()
            self.transport.write(b"".join(part))
            await done
        return self.replies


class Load:
    """The agents that were made, and the connections they share."""

    def __init__(self, pid: int, host: str, port: int) -> None:
        self._pid = pid
        self._endpoint = host, port
        self._connections: list[Connection] = []
        self._idle: list[asyncio.BaseTransport] = []
        self._agents: list[tuple[Identity, int]] = []
        """With their node IDs."""
        self._beats: list[tuple[int, str]] = []
        self._rng = random.Random(1)

    async def connect(self, count: int) -> None:
        """Open the connections that carry the load."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, connection = await loop.create_connection(Connection, *self._endpoint)
            self._connections.append(connection)

    async def register(self, *, count: int, signed: bool, batched: bool) -> Message:
        """Have agents registered that were never there."""
        agents = [Identity(self._rng.randbytes(32)) for _ in range(count)]
        requests = [_registration(agent, signed=signed) for agent in agents]
        replies, figures = await self._send(requests, batched=batched, depth=64)
        numbers = [reply["node_id"] for reply in replies]
        self._agents += zip(agents, numbers, strict=True)
        return figures

    async def describe(self) -> Message:
        """Give every agent a name, tags, and a first heartbeat."""
        requests: list[Message] = []
        for agent, node in self._agents[len(self._beats) :]:
            tags = ["all", *(f"tag-{self._rng.randrange(200)}" for _ in range(2))]
            own = {"node_id": node}
            name = {"type": "set_hostname", "hostname": f"worker-{node:06}", **own}
            requests.append(sign_request(agent, name))
            tagged = {"type": "set_tags", "tags": sorted(set(tags)), **own}
            requests.append(sign_request(agent, tagged))
        self._sign_beats()
        _, figures = await self._send(requests, batched=True, depth=4)
        await self.beat_all(rounds=1)
        return figures

    async def lookup(self, *, count: int) -> Message:
        """Ask who agents are."""
        numbers = [node for _, node in self._agents]
        requests = [
            {"type": "lookup", "node_id": self._rng.choice(numbers)}
            for _ in range(count)
        ]
        return (await self._send(requests, batched=False, depth=64))[1]

    async def beat(self, *, count: int) -> Message:
        """Send heartbeats, one message each, that were sent before."""
        self._sign_beats()
        rows = [self._rng.choice(self._beats) for _ in range(count)]
        requests = [
            {"type": "heartbeat", "node_id": node, "signature": signature}
            for node, signature in rows
        ]
        return (await self._send(requests, batched=False, depth=64))[1]

    async def beat_all(self, *, rounds: int) -> Message:
        """Send heartbeats of all agents, many in one message."""
        self._sign_beats()
        messages = [
            {"type": "heartbeats", "nodes": self._beats[start : start + BATCH]}
            for start in range(0, len(self._beats), BATCH)
        ]
        replies, figures = await self._send(messages * rounds, batched=False, depth=4)
        if any(reply["failed"] for reply in replies):
            raise ValueError("a heartbeat failed")
        return figures | {"count": len(self._beats) * rounds}

    async def idle(self, *, count: int) -> Message:
        """Open connections that each ask once and then stay."""
        loop = asyncio.get_running_loop()
        number = self._agents[0][1]
        frames = _frames([{"type": "lookup", "node_id": number}])
        for _ in range(count):
            _, connection = await loop.create_connection(Connection, *self._endpoint)
            self._idle.append(connection.transport)
            await connection.exchange(frames, 1)
        return {"count": count}

    def _sign_beats(self) -> None:
        self._beats += [
            (node, agent.sign_text(f"heartbeat:{node}"))
            for agent, node in self._agents[len(self._beats) :]
        ]

    async def _send(
        self, requests: Sequence[Message], *, batched: bool, depth: int
    ) -> tuple[list[Message], Message]:
        messages = list(_batches(requests)) if batched else requests
        frames = _frames(messages)
        share = -(-len(frames) // len(self._connections))
        parts = [frames[at : at + share] for at in range(0, len(frames), share)]
        used, own = cpu_seconds(self._pid), time.process_time()
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(
                connection.exchange(part, depth)
                for connection, part in zip(self._connections, parts, strict=False)
            )
        )
        wall_s, own = time.perf_counter() - started, time.process_time() - own
        # In hundredths of a second, so the load has to last for some seconds.
        used = cpu_seconds(self._pid) - used
        bodies = [body for part in answers for body in part]
        replies = [msgspec.json.decode(body) for body in bodies]
        if batched:
            replies = [one for reply in replies for one in reply["replies"]]
        wrong = next((reply for reply in replies if "error" in reply), None)
        if wrong is not None:
            raise ValueError(f"the registry refused: {wrong}")
        count = len(requests)
        figures = {"wall_s": wall_s, "cpu_s": used, "load_cpu_s": own}
        return replies, {"count": count, **figures}


def _registration(agent: Identity, *, signed: bool) -> Message:
    request = {
        "type": "register",
        "listen_addr": "127.0.0.1:4000",
        "public_key": agent.public_key_text,
        "version": "1.18.0",
    }
    return sign_request(agent, request) if signed else request


def _batches(requests: Sequence[Message]) -> Iterable[Message]:
    for start in range(0, len(requests), BATCH):
        yield {"type": "batch", "requests": requests[start : start + BATCH]}


def _frames(messages: Iterable[Message]) -> list[bytes]:
    return [encode_json_frame(msgspec.json.encode(message)) for message in messages]


async def serve(pid: int, host: str, port: int) -> None:
    """Carry out orders until standard input ends."""
    load = Load(pid, host, port)
    await load.connect(4)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        figures = await getattr(load, order.pop("do"))(**order)
        print(json.dumps(figures), flush=True)


def main() -> None:
    """Read the command line and serve."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    pid, host, port = sys.argv[1:]
    uvloop.run(serve(int(pid), host, int(port)))


if __name__ == "__main__":
    main()
