"""A host without a network, to try the daemon's socket on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pilotfleet.errors import (
    AlreadyExists,
    Closed,
    ConnectionRefused,
    ConnectionReset,
    NotFound,
    PilotError,
    RegistryError,
)
from pilotfleet.node.host import Host
from pilotfleet.node.ipc import IpcServer
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.ipc.commands import ReceivedDatagram
from pilotfleet.protocol.ipc.framing import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from pilotfleet.node.config import AgentSpec

BUFFER = 64 * 1024
"""Bytes that a stream takes without its other side reading."""


class LoopStream:
    """One end of a stream inside this process, in place of ``node.Stream``."""

    def __init__(
        self, agent: TinyAgent, number: int, local_port: int, remote: SocketAddress
    ) -> None:
        self.agent = agent
        self.id = number
        self.local_port = local_port
        self.remote = remote
        self.on_event: Callable[[LoopStream], None] | None = None
        self.other: LoopStream | None = None
        self.received: deque[bytes] = deque()
        self.received_bytes = 0
        self.ended = False
        self.closed = False
        self.aborted = False

    @property
    def at_eof(self) -> bool:
        return self.ended and not self.received

    def read_nowait(self, limit: int) -> bytes:
        if not self.received:
            return b""
        data = self.received.popleft()
        if len(data) > limit:
            self.received.appendleft(data[limit:])
            data = data[:limit]
        self.received_bytes -= len(data)
        if self.other is not None:
            self.other.happened()
        return data

    def write_nowait(self, data: bytes | memoryview) -> int:
        if self.closed:
            raise Closed("closed")
        if self.other is None or self.ended:
            raise ConnectionReset("ended")
        other = self.other
        taken = bytes(data[: max(0, BUFFER - other.received_bytes)])
        if taken:
            other.received.append(taken)
            other.received_bytes += len(taken)
            other.happened()
        return len(taken)

    def close_nowait(self) -> None:
        if not self.closed:
            self.closed = True
            if self.other is not None:
                self.other.ended = True
                self.other.happened()
            self.agent.live.pop(self.id, None)

    def abort(self) -> None:
        self.aborted = True
        self.close_nowait()

    def happened(self) -> None:
        """Call back later, as the real stream does from its socket's reader."""
        if self.on_event is not None:
            asyncio.get_running_loop().call_soon(self._call)

    def _call(self) -> None:
        if self.on_event is not None:
            self.on_event(self)


@dataclass
class TinyStreams:
    is_public: bool = False

    def connections(self) -> Iterable[Any]:
        return ()


@dataclass(eq=False)
class TinyAgent:
    """An agent whose peers are the other agents of the same host."""

    host: TinyHost
    name: str
    node_id: int
    identity: Identity = field(default_factory=lambda: Identity(bytes(range(32))))
    hostname: str = ""
    tags: tuple[str, ...] = ()
    networks: tuple[int, ...] = ()
    is_public: bool = False
    closed: bool = False
    streams: TinyStreams = field(default_factory=TinyStreams)
    listeners: dict[int, Callable[[Any], None]] = field(default_factory=dict)
    datagram_listeners: set[Callable[[Any], None]] = field(default_factory=set)
    live: dict[int, LoopStream] = field(default_factory=dict)
    next_id: itertools.count[int] = field(default_factory=lambda: itertools.count(9))
    requests: list[dict[str, Any]] = field(default_factory=list)
    sent: list[tuple[SocketAddress, bytes]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address(0, self.node_id)

    def report(self, event: str, /, **data: Any) -> None:
        self.events.append((event, data))

    def listen(self, port: int, on_stream: Callable[[Any], None]) -> None:
        if port in self.listeners or port in (7, 444, 1001, 1002):
            raise AlreadyExists(f"port {port} already bound")
        self.listeners[port] = on_stream

    def unlisten(self, port: int) -> None:
        del self.listeners[port]

    async def dial(self, remote: SocketAddress) -> LoopStream:
        peer = self.host.by_node.get(remote.address.node)
        if remote.address.node == SILENT_NODE:
            await asyncio.Event().wait()
        if peer is None:
            node = remote.address.node
            raise NotFound(
                f"resolve node {node}: registry: node {node}: node not found"
            )
        on_stream = peer.listeners.get(remote.port)
        if on_stream is None:
            raise ConnectionRefused("connection refused")
        near, far = connect(self, peer, remote.port)
        on_stream(far)
        return near

    async def send_datagram(self, remote: SocketAddress, data: bytes) -> None:
        self.sent.append((remote, data))
        peer = self.host.by_node.get(remote.address.node)
        if peer is None:
            node = remote.address.node
            raise NotFound(
                f"resolve node {node}: registry: node {node}: node not found"
            )
        source = SocketAddress(self.address, 49161)
        for listener in peer.datagram_listeners:
            listener(ReceivedDatagram(source, remote.port, data))

    async def registry(self, type: str, /, **fields: Any) -> dict[str, Any]:
        self.requests.append({"type": type, **fields})
        answer = self.host.answers.get(type)
        if isinstance(answer, PilotError):
            raise answer
        if answer is None:
            raise RegistryError(f"unknown message type {type}")
        return dict(answer)

    async def resolve_hostname(self, name: str) -> dict[str, Any]:
        return await self.registry("resolve_hostname", hostname=name)

    async def search(self, *, cached: bool, **query: Any) -> dict[str, Any]:
        return await self.registry("cached search" if cached else "search", **query)

    async def join_network(self, network: int, token: str) -> dict[str, Any]:
        return await self.registry("join_network", network_id=network, token=token)

    async def leave_network(self, network: int) -> dict[str, Any]:
        return await self.registry("leave_network", network_id=network)

    def info(self) -> dict[str, Any]:
        return {"node_id": self.node_id, "conn_list": [], "peer_list": []}

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "uptime_seconds": 1}


SILENT_NODE = 66


@dataclass
class TinyConfig:
    admin_token: str = ""
    agents: tuple[AgentSpec, ...] = ()
    """Agents that are configured; those of the host are opened."""
    brokers: tuple[str, ...] = ()
    roll_up: tuple[str, ...] = ()

    @property
    def broker(self) -> str | None:
        return self.brokers[0] if self.brokers else None


@dataclass
class TinyTrust:
    """A trust service that answers without a network."""

    trusted_nodes: set[int] = field(default_factory=set)
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def request(self, agent: Any, node: int, justification: str) -> str:
        self.calls.append(("request", node, justification))
        if node == 99:
            raise NotFound("handshake relay: registry: node 99: node not found")
        return "sent"

    async def approve(self, agent: Any, node: int) -> None:
        self.calls.append(("approve", node))

    async def reject(self, agent: Any, node: int, reason: str) -> None:
        self.calls.append(("reject", node, reason))

    async def revoke(self, agent: Any, node: int) -> None:
        raise NotFound(f"node {node} was not trusted")

    async def pending(self, agent: Any) -> list[dict[str, Any]]:
        return []

    async def trusted(self, agent: Any) -> list[dict[str, Any]]:
        return [{"node_id": node} for node in self.trusted_nodes]

    async def wait(self, agent: Any, node: int, *, timeout: float) -> bool:
        await asyncio.sleep(timeout)
        return node in self.trusted_nodes


@dataclass
class TinyRouting:
    """The keys that the registry has told."""

    keys: dict[int, bytes] = field(default_factory=dict)

    def known_key(self, node: int) -> bytes | None:
        return self.keys.get(node)

    def keep_key(self, node: int, key: bytes, *, rotated: bool) -> None:
        del rotated
        self.keys[node] = key


@dataclass
class TinyHost:
    """Agents ``one`` (node 1) and ``two`` (node 2)."""

    config: TinyConfig = field(default_factory=TinyConfig)
    trust_service: TinyTrust | None = field(default_factory=TinyTrust)
    extensions: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    agents: dict[str, TinyAgent] = field(default_factory=dict)
    is_started: bool = True
    time: float = 1795355870.0
    routing: TinyRouting = field(default_factory=TinyRouting)

    def __post_init__(self) -> None:
        for number, name in ((1, "one"), (2, "two")):
            self.agents[name] = TinyAgent(self, name, number)

    @property
    def by_node(self) -> dict[int, TinyAgent]:
        return {agent.node_id: agent for agent in self.agents.values()}

    @property
    def default_agent(self) -> TinyAgent:
        return self.agents["one"]

    def find_agent(self, name: str) -> Any:
        return Host.find_agent(cast("Host", self), name)

    def wall(self) -> float:
        return self.time


def connect(
    near: TinyAgent, far: TinyAgent, port: int
) -> tuple[LoopStream, LoopStream]:
    """Return the two ends of a new stream."""
    here = LoopStream(near, next(near.next_id), 49167, SocketAddress(far.address, port))
    there = LoopStream(far, next(far.next_id), port, SocketAddress(near.address, 49167))
    here.other, there.other = there, here
    near.live[here.id], far.live[there.id] = here, there
    return here, there


@contextlib.asynccontextmanager
async def serving(
    host: TinyHost, path: Path, *, agent: TinyAgent | None = None
) -> AsyncIterator[IpcServer]:
    """Serve ``host`` at ``path``."""
    server = IpcServer(cast("Host", host), path, agent=cast("Any", agent))
    async with server:
        yield server


class RawClient:
    """A client that speaks bytes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = FrameDecoder()
        self._frames: deque[tuple[int, bytes]] = deque()

    def send(self, frame: str | bytes) -> None:
        """Send one frame given as command byte and payload."""
        data = bytes.fromhex(frame) if isinstance(frame, str) else frame
        if not data:
            self.writer.write(bytes(4))
        else:
            self.writer.write(encode_frame(data[0], data[1:]))

    async def receive(self) -> bytes:
        """Return the next frame, ``b""`` when the daemon closed."""
        async with asyncio.timeout(10):
            while not self._frames:
                data = await self.reader.read(1 << 20)
                if not data:
                    return b""
                self._frames.extend(self._decoder.feed(data))
        command, payload = self._frames.popleft()
        return bytes([command]) + payload

    async def ask(self, frame: str | bytes) -> bytes:
        """Send one frame and return the next one."""
        self.send(frame)
        return await self.receive()

    async def ask_error(self, frame: str | bytes) -> str:
        """Send one frame and return the text of the Error that answers it."""
        reply = await self.ask(frame)
        assert reply[:3] == b"\x0a\x00\x01", reply
        return reply[3:].decode()


@contextlib.asynccontextmanager
async def raw_client(path: Path) -> AsyncIterator[RawClient]:
    """Connect to the socket at ``path``."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
