"""Let ordinary TCP programs reach Pilot addresses through local IP addresses.

Each mapped address listens on its local IP. An accepted TCP connection gets a
connection to the daemon of its own and dials the Pilot address there: the daemon's
wire takes one dial at a time per connection, and a peer that does not answer must
not hold up all others; and a slow reader then holds up only its own stream.

The daemon's wire knows no half-closed streams: closing one ends reading as well.
So the end of a peer's data is passed on to the TCP client at once and the client may
go on writing, but a client that has ended its own side is only known to the gateway:
the stream stays open for the answer, until the peer ends it or is silent for
:attr:`GatewayConfig.half_closed_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.loopback import add_alias, remove_alias
from pilotfleet.errors import (
    AlreadyExists,
    DaemonError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PilotError,
)
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.gateway import (
    DEFAULT_PORTS,
    DEFAULT_SUBNET,
    Mapping,
    MappingTable,
    PortPair,
)
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.client.streams import ClientStream

__all__ = ["Gateway", "GatewayConfig", "parse_target"]

logger = logging.getLogger(__name__)

READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What a gateway maps to, and its bounds."""

    subnet: str = DEFAULT_SUBNET
    ports: tuple[PortPair, ...] = DEFAULT_PORTS
    agent: str | None = None
    """Which of the daemon's agents dials; none is its default one."""
    max_connections: int = 256
    """TCP connections at a time; further ones are closed. Each holds one of the
    daemon's (at most 1024) local connections."""
    max_dials: int = 64
    """Dials under way at a time; further ones wait for their turn."""
    dial_s: float = 30.0
    """How long a TCP client waits for its peer, its turn included."""
    half_closed_s: float = 30.0
    """Silence after which a connection with one side ended is closed."""


@dataclass(slots=True)
class _Entry:
    """What a mapping has opened."""

    mapping: Mapping
    has_alias: bool = False
    servers: list[asyncio.Server] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)
    """Local port by virtual port."""
    connections: set[asyncio.Task[None]] = field(default_factory=set)


class Gateway:
    """A set of mapped addresses. An async context manager that ends them all.

    Args:
        socket: The daemon's Unix socket.
        config: Subnet, ports and bounds.
    """

    def __init__(self, socket: Path, config: GatewayConfig | None = None) -> None:
        self.socket = socket
        self.config = config if config is not None else GatewayConfig()
        self.refused = 0
        """TCP connections closed because there were too many."""
        self._table = MappingTable(self.config.subnet)
        self._entries: dict[str, _Entry] = {}
        self._dials = asyncio.Semaphore(self.config.max_dials)
        # One change of the table at a time: opening and closing take a while.
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def subnet(self) -> str:
        """The subnet in its usual form."""
        return str(self._table.subnet)

    @property
    def connections(self) -> int:
        """TCP connections that are open now."""
        return sum(len(entry.connections) for entry in self._entries.values())

    def mappings(self) -> list[dict[str, Any]]:
        """Return what is mapped, as ``pilotctl gateway list`` shows it."""
        return [
            {
                "local_ip": entry.mapping.ip,
                "pilot_addr": str(entry.mapping.address),
                "ports": {str(remote): local for remote, local in entry.ports.items()},
                "connections": len(entry.connections),
            }
            for entry in self._entries.values()
        ]

    async def map(self, target: str, ip: str | None = None) -> Mapping:
        """Open a local address for ``target``; mapping it again changes nothing.

        Args:
            target: An address, a node number or a hostname.
            ip: The local address; none takes the next free one.

        Raises:
            NotFound: The daemon does not know the hostname.
            InvalidArgument: ``ip`` is not in the subnet.
            AlreadyExists: ``ip`` stands for another address.
            PermissionDenied: The address or all of its ports are refused by the
                system.
            Busy: The subnet is exhausted.
        """
        address = parse_target(target) or await self._resolve(target)
        async with self._changing:
            known = self._table.find(address)
            if known is not None:
                return known
            mapping = self._table.add(address, ip)
            entry = _Entry(mapping)
            try:
                entry.has_alias = await add_alias(mapping.ip)
                await self._listen(entry)
            except BaseException:
                self._table.remove(mapping.ip)
                await self._close(entry)
                raise
            self._entries[mapping.ip] = entry
        opened = ", ".join(
            str(local) if local == remote else f"{local} (to {remote})"
            for remote, local in entry.ports.items()
        )
        logger.info("mapped %s to %s, ports %s", mapping.ip, address, opened)
        return mapping

    async def unmap(self, target: str) -> Mapping:
        """End a mapping, named by its local or its Pilot address.

        Raises:
            NotFound: Nothing is mapped there.
        """
        async with self._changing:
            address = parse_target(target)
            known = self._table.find(address) if address is not None else None
            mapping = self._table.remove(known.ip if known is not None else target)
            await self._close(self._entries.pop(mapping.ip))
        logger.info("unmapped %s", mapping.ip)
        return mapping

    async def aclose(self) -> None:
        """End all mappings and their connections."""
        async with self._changing:
            for mapping in self._table.mappings():
                self._table.remove(mapping.ip)
                await self._close(self._entries.pop(mapping.ip))

    # Opening and closing

    async def _resolve(self, name: str) -> Address:
        async with await self._connect() as client:
            try:
                answer = await client.request_json(
                    Command.RESOLVE_HOSTNAME, name.encode("utf-8", "replace")
                )
            except DaemonError:
                raise NotFound(
                    f'cannot resolve "{name}" — is the hostname correct and is there'
                    " mutual trust? (see: pilotctl handshake)"
                ) from None
        return Address.parse(str(answer.get("address")))

    async def _connect(self) -> DaemonClient:
        client = await DaemonClient.connect(self.socket)
        if self.config.agent is not None:
            try:
                await client.call("select-agent", name=self.config.agent)
            except BaseException:
                await client.close()
                raise
        return client

    async def _listen(self, entry: _Entry) -> None:
        failures: list[OSError] = []
        for pair in self.config.ports:
            try:
                await self._listen_on(entry, pair)
            except OSError as error:
                failures.append(error)
                logger.warning(
                    "cannot listen on %s:%d, skipped: %s",
                    *(entry.mapping.ip, pair.local, _explain(error)),
                )
        if not entry.ports:
            text = f"no port of {entry.mapping.ip} could be opened"
            if all(error.errno == errno.EADDRINUSE for error in failures):
                raise AlreadyExists(f"{text}: another program has them")
            raise PermissionDenied(
                f"{text}: {_explain(failures[0])}",
                hint="name ports above 1023, like -ports 8080:80",
            )

    async def _listen_on(self, entry: _Entry, pair: PortPair) -> None:
        def on_connection(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            if self.connections >= self.config.max_connections:
                self.refused += 1
                writer.transport.abort()
                return
            task = asyncio.get_running_loop().create_task(
                self._serve(entry.mapping.address, pair.remote, reader, writer),
                name=f"gateway {entry.mapping.ip}:{pair.local}",
            )
            entry.connections.add(task)
            task.add_done_callback(entry.connections.discard)

        server = await asyncio.start_server(
            on_connection, entry.mapping.ip, pair.local, limit=READ_BYTES
        )
        entry.servers.append(server)
        entry.ports[pair.remote] = server.sockets[0].getsockname()[1]

    async def _close(self, entry: _Entry) -> None:
        for server in entry.servers:
            server.close()
        while entry.connections:
            for task in entry.connections:
                task.cancel()
            await asyncio.wait(entry.connections)
        if entry.has_alias:
            with contextlib.suppress(PilotError):
                await remove_alias(entry.mapping.ip)

    # One connection

    async def _serve(
        self,
        address: Address,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Carry one TCP connection; its failure is its own."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                stream = await self._dial(stack, address, port)
                await _Relay(stream, reader, writer, self.config.half_closed_s).run()
        except (PilotError, OSError) as error:
            logger.info("connection to %s port %d: %s", address, port, error)
        finally:
            # What was flushed is with the kernel; what was not belongs to a stream
            # that failed, and the client must not take it for a clean end.
            writer.transport.abort()

    async def _dial(
        self, stack: contextlib.AsyncExitStack, address: Address, port: int
    ) -> ClientStream:
        try:
            async with asyncio.timeout(self.config.dial_s), self._dials:
                client = await stack.enter_async_context(await self._connect())
                return await stack.enter_async_context(
                    await client.dial(address, port, timeout=None)
                )
        except TimeoutError:
            raise DaemonError("dial timeout") from None


class _Relay:
    """Copies between one TCP connection and one stream, both ways."""

    __slots__ = ("_idle_s", "_moved", "_reader", "_stream", "_writer")

    def __init__(
        self,
        stream: ClientStream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        idle_s: float,
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._writer = writer
        self._idle_s = idle_s
        self._moved = 0

    async def run(self) -> None:
        """Copy until both sides have ended, one has failed, or the rest is silence.

        Raises:
            PilotError: The stream or the daemon failed.
            OSError: The TCP connection failed.
        """
        tasks = {
            asyncio.ensure_future(self._to_peer()),
            asyncio.ensure_future(self._to_client()),
        }
        try:
            done, pending = await asyncio.wait(
                tasks, return_when=asyncio.FIRST_COMPLETED
            )
            while pending and not any(task.exception() for task in done):
                moved = self._moved
                done, pending = await asyncio.wait(pending, timeout=self._idle_s)
                if pending and self._moved == moved:
                    break
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            # Each one's outcome was taken above or does not matter any more.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _to_peer(self) -> None:
        while data := await self._reader.read(READ_BYTES):
            self._moved += len(data)
            await self._stream.write(data)

    async def _to_client(self) -> None:
        while data := await self._stream.read(READ_BYTES):
            self._moved += len(data)
            self._writer.write(data)
            await self._writer.drain()
        await self._flush()
        self._writer.write_eof()

    async def _flush(self) -> None:
        """Wait until the kernel has everything: afterwards it may be aborted."""
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=0)
        await self._writer.drain()


def parse_target(text: str) -> Address | None:
    """Return the address that ``text`` states, none for a hostname.

    Raises:
        InvalidArgument: ``text`` is empty.
    """
    if not text:
        raise InvalidArgument("a target is an address, a node number or a hostname")
    return Address.stated_by(text)


def _explain(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied (ports below 1024 take root)"
    if error.errno == errno.EADDRINUSE:
        return "another program has it"
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is not this machine's"
    return error.strerror or str(error)
