"""The registry's TCP server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from pilotfleet.errors import AlreadyExists, Closed, TimedOut, Unavailable
from pilotfleet.protocol.registry.binary import BinaryType, encode_error
from pilotfleet.protocol.registry.framing import MAX_MESSAGE
from pilotfleet.protocol.registry.messages import error_reply
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.limits import RateLimit
from pilotfleet.registry.metrics import ServerStats
from pilotfleet.registry.requestdecoder import BufferBudget, RequestDecoder
from pilotfleet.registry.session import RequestHandler, Session
from pilotfleet.registry.turns import Turns
from pilotfleet.transport.tlsport import TlsPort

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.transport.framed import FramedConnection

__all__ = ["PlainClients", "RegistryServer", "ServerConfig"]

logger = logging.getLogger(__name__)

BACKLOG: Final = 4_096
SWEEP_INTERVAL_S: Final = 5.0
TLS_HANDSHAKE_S: Final = 10.0
CLOSE_S: Final = 1.0
"""How long a shutdown waits for the last replies to leave."""
TLS_ONLY: Final = (
    "this registry requires TLS: use -registry-tls with -registry-trust and"
    " -registry-fingerprint"
)


class PlainClients(StrEnum):
    """Who may do without TLS on a port that offers it.

    The first byte of a connection tells which it is. The official ``pilotctl``
    1.18.0 never uses TLS for the requests that it sends to the registry itself.
    """

    NONE = "none"
    """Each request of a plain client is answered with an error."""
    LOOPBACK = "loopback"
    """Programs on this machine, or behind a proxy on it."""
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Limits of a registry server."""

    idle_limit_s: float = 300.0
    """A connection without a whole message for so long is closed. Clients of
    the protocol send one every minute."""
    write_limit_s: float = 5.0
    """A connection that takes no replies for so long is closed."""
    drain_s: float = 5.0
    """How long a shutdown waits for requests that were begun."""
    max_message_bytes: int = MAX_MESSAGE
    buffer_bytes: int = 256 * 1024 * 1024
    """What all messages may take together that are incomplete, wait, or are worked
    on; above it, a connection with more than 64 KiB of them is closed."""
    batch_bytes: int = 128 * 1024 * 1024
    """What all messages of many requests that are worked on may take, as they came;
    read, they take several times as much. Above it the sender is told to come back."""
    max_connections: int = 100_000
    requests_per_second_per_ip: float | None = 100_000.0
    """Above it, the connections of an address are read more slowly. A whole
    fleet may share one address, so this is no means against abuse by one
    agent. None: no limit."""
    plain_clients: PlainClients = PlainClients.NONE
    """Who may do without TLS where the server has a certificate."""


class RegistryServer:
    """Listens, and answers through a handler. An async context manager.

    Closing has this order: stop accepting, let begun requests end until the
    deadline, cancel the rest, close the connections.
    """

    def __init__(
        self,
        handler: RequestHandler,
        bind: Endpoint,
        *,
        config: ServerConfig | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._handler = handler
        self._bind = bind
        self._config = config or ServerConfig()
        self._tls = tls
        rate = self._config.requests_per_second_per_ip
        self._limit = RateLimit(rate) if rate is not None else None
        self._budget = BufferBudget(self._config.buffer_bytes)
        self._batches = BufferBudget(self._config.batch_bytes)
        # Of all connections together: hundreds that each want full pages would make a
        # turn of seconds, if each had its own share. A full page takes milliseconds.
        self._turns = Turns(woken=1)
        self._sessions: set[Session] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | TlsPort | None = None
        self._is_stopping = False
        self._sweeper: asyncio.TimerHandle | None = None
        self.stats = ServerStats()

    @property
    def address(self) -> Endpoint:
        """Where the server listens."""
        if isinstance(self._server, TlsPort):
            return self._server.address
        if self._server is None or not self._server.sockets:
            return self._bind
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._sessions)

    async def __aenter__(self) -> RegistryServer:
        """Start to listen.

        Raises:
            AlreadyExists: Somebody else has the port.
            Unavailable: The system refuses the address.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await self._listen()
        except OSError as error:
            raise _listen_error(error, self._bind) from error
        self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop in the order that the class describes."""
        assert self._server is not None
        self._is_stopping = True
        self._server.close()
        if isinstance(self._server, TlsPort):
            await self._server.wait_closed()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for session in self._sessions:
            session.stop_reading()
        tasks = [s.task for s in self._sessions if s.task is not None]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._config.drain_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close_connections()

    async def _listen(self) -> asyncio.Server | TlsPort:
        host, port = self._bind
        if self._tls is None:
            loop = asyncio.get_running_loop()
            return await loop.create_server(
                self._accept, host or None, port, backlog=BACKLOG
            )
        tls_port = TlsPort(
            self._tls,
            make=self._accept,
            make_plain=lambda: self._accept(is_plain=True),
            handshake_s=TLS_HANDSHAKE_S,
        )
        await tls_port.open(host, port, backlog=BACKLOG)
        return tls_port

    def _accept(self, *, is_plain: bool = False) -> asyncio.BaseProtocol:
        if len(self._sessions) >= self._config.max_connections:
            self.stats.connections_refused += 1
            return _Refusal()
        config = self._config
        handler = self._handler
        if is_plain and config.plain_clients is not PlainClients.ALL:
            handler = _PlainGate(handler, config.plain_clients)
        session = Session(
            handler,
            RequestDecoder(config.max_message_bytes, self._budget),
            batches=self._batches,
            turns=self._turns,
            stats=self.stats,
            limit=self._limit,
            make_peer=self._make_peer,
            on_opened=self._remember,
            on_closed=self._forget,
        )
        return session.connection

    def _remember(self, session: Session) -> None:
        # Not earlier: a TLS connection that fails never opens nor closes.
        self.stats.connections += 1
        self._sessions.add(session)
        self._empty.clear()
        if self._is_stopping:
            # Its TLS handshake had begun before the stop.
            session.stop_reading()

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._empty.set()

    def _make_peer(self, connection: FramedConnection) -> PeerContext:
        ip, port = connection.peer
        return PeerContext(ip, next(self._numbers), port=port)

    def _sweep(self) -> None:
        """Close what is idle or blocked; one timer serves all connections."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for session in list(self._sessions):
            blocked = session.connection.blocked_since
            if blocked is not None and now - blocked > self._config.write_limit_s:
                reason = "it takes no replies"
            elif (
                session.task is None
                and now - session.active_at > self._config.idle_limit_s
            ):
                reason = "it is idle"
            else:
                continue
            self.stats.timed_out += 1
            session.connection.abort(TimedOut(f"closed because {reason}"))

    async def _close_connections(self) -> None:
        for session in self._sessions:
            session.connection.close(Closed("the registry stops"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._empty.wait()
        for session in list(self._sessions):
            session.connection.abort(Closed("the registry stops"))


class _PlainGate:
    """Tells clients that should have used TLS so, in their own protocol."""

    __slots__ = ("_allowed", "_handler")

    def __init__(self, handler: RequestHandler, allowed: PlainClients) -> None:
        self._handler = handler
        self._allowed = allowed

    async def handle(
        self, request: dict[str, Any], peer: PeerContext
    ) -> dict[str, Any]:
        if not self._admits(peer):
            return error_reply(TLS_ONLY)
        return await self._handler.handle(request, peer)

    async def handle_binary(
        self, kind: int, payload: bytes, peer: PeerContext
    ) -> tuple[int, bytes]:
        if not self._admits(peer):
            return BinaryType.ERROR, encode_error(TLS_ONLY)
        return await self._handler.handle_binary(kind, payload, peer)

    def _admits(self, peer: PeerContext) -> bool:
        return self._allowed is PlainClients.LOOPBACK and peer.is_local


class _Refusal(asyncio.Protocol):
    """Closes a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: the transports of uvloop are no subclasses of asyncio's.
        cast("asyncio.Transport", transport).abort()


def _listen_error(error: OSError, bind: Endpoint) -> AlreadyExists | Unavailable:
    host, port = bind
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(
            f"tcp port {port} on {host or 'all addresses'} is in use",
            hint="stop the other program, or choose another port with --registry-addr",
        )
    reason = error.strerror or str(error)
    return Unavailable(f"cannot listen on {host}:{port}: {reason}")
