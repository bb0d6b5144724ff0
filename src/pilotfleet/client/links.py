"""Connections to a registry and the requests that are out on them.

The protocol has no request IDs: the reply to a request is the next message on
its connection (registry.md section 2.1). A link keeps its requests in a queue;
how many may be out at a time is the pool's business.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pilotfleet.client.pacing import dial_pause_s
from pilotfleet.errors import (
    Busy,
    CertificateRefused,
    Closed,
    ConnectionFailed,
    ConnectionReset,
    PilotError,
    ProtocolError,
    TimedOut,
)
from pilotfleet.protocol.registry.framing import JsonFrameDecoder
from pilotfleet.transport.framed import FramedConnection, connect_framed
from pilotfleet.transport.tls import TlsConfig, client_tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = ["LinkConfig", "LinkPool"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """Times and bounds of a pool. The defaults are those of registry.md."""

    connections: int = 4
    dial_s: float = 5.0
    """Per attempt."""
    reply_s: float = 30.0
    attempts: int = 5
    """How often a link is dialled before its requests fail."""
    first_wait_s: float = 0.5
    """Between attempts, then doubled."""
    max_wait_s: float = 10.0
    pipeline: int = 64
    """Requests out at a time on one link, where the registry allows it."""
    max_waiting: int = 20_000
    """Callers that may wait for a link; one agent has a few requests at most,
    and a host has many agents."""


class Link:
    """One connection; redialled when it is needed again."""

    __slots__ = (
        "_connection",
        "_dialling",
        "_on_free",
        "_pending",
        "_pool",
        "_timer",
        "load",
    )

    def __init__(self, pool: LinkPool, on_free: Callable[[Link], None]) -> None:
        self._pool = pool
        self._on_free = on_free
        self._connection: FramedConnection | None = None
        # Requests that arrive during a dial wait for that one: a restart of the
        # registry would otherwise be met with a connection per request.
        self._dialling = asyncio.Lock()
        self._pending: deque[tuple[asyncio.Future[bytes], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.load = 0
        """Requests that are out or about to go out."""

    async def exchange(self, frame: bytes) -> bytes:
        """Send a request that the caller has counted in ``load``.

        May be cancelled: the reply is then dropped when it comes.

        Raises:
            ConnectionReset: The connection was lost before the reply.
            ConnectionFailed: There is no connection.
            TimedOut: No reply in time.
        """
        try:
            connection = await self._connected()
        except BaseException:
            self._free()
            raise
        loop = asyncio.get_running_loop()
        # No await between this and the send: the order of the queue is all that tells
        # replies apart.
        reply: asyncio.Future[bytes] = loop.create_future()
        self._pending.append((reply, loop.time() + self._pool.config.reply_s))
        connection.send(frame)
        self._arm()
        return await reply

    async def _connected(self) -> FramedConnection:
        async with self._dialling:
            if self._connection is None or self._connection.is_closed:
                self._connection = await self._dial()
                if self._pool.is_closed:
                    self.close()
                self._pool.check_open()
            # Not dialled again here: a server that accepts and hangs up would keep us
            # in a loop. The caller decides whether the request may be repeated.
            if self._connection.is_closed:
                raise ConnectionReset("the registry closed the connection at once")
            return self._connection

    async def _dial(self) -> FramedConnection:
        config = self._pool.config
        for attempt in range(1, config.attempts + 1):
            self._pool.check_open()
            try:
                return await self._dial_once()
            except CertificateRefused as error:
                # No attempt will change it. Whoever owns the client may try again
                # later, when somebody has done what the hint says.
                self._pool.complain(error)
                raise
            except ConnectionFailed:
                if attempt == config.attempts:
                    raise
            pause = dial_pause_s(
                attempt,
                first_s=config.first_wait_s,
                longest_s=config.max_wait_s,
                rng=self._pool.rng,
            )
            await asyncio.sleep(pause)
        raise AssertionError("at least one attempt")

    async def _dial_once(self) -> FramedConnection:
        def make() -> FramedConnection:
            return FramedConnection(
                JsonFrameDecoder(),
                on_frames=self._on_replies,
                on_closed=self._on_closed,
            )

        pool = self._pool
        host, port = pool.endpoint
        try:
            async with asyncio.timeout(pool.config.dial_s):
                connection = await connect_framed(
                    pool.endpoint,
                    make,
                    tls=pool.tls_context(),
                    fingerprint=pool.tls.fingerprint if pool.tls else None,
                )
        except (TimeoutError, TimedOut):
            raise ConnectionFailed(f"no answer from {host}:{port}") from None
        pool.complained = False
        return connection

    def _on_replies(self, connection: FramedConnection, frames: list[bytes]) -> None:
        for frame in frames:
            # Replies and requests are out of step, and every later reply would go to
            # the wrong caller. The connection is of no more use.
            if connection is not self._connection or not self._pending:
                self._lose(connection, ProtocolError("a reply that nobody asked for"))
                return
            reply, _ = self._pending.popleft()
            # A caller that gave up leaves its place in the queue: its reply still
            # comes.
            if not reply.done():
                reply.set_result(frame)
            self._free()
        self._arm()

    def _on_closed(self, connection: FramedConnection, error: PilotError) -> None:
        self._lose(connection, error)

    def _lose(self, connection: FramedConnection, error: PilotError) -> None:
        """Give the connection up now; its requests fail."""
        connection.abort(error)
        if connection is not self._connection:
            return
        self._connection = None
        if not isinstance(error, ConnectionFailed | TimedOut | Closed):
            host, port = self._pool.endpoint
            error = ConnectionFailed(f"{host}:{port} is no registry: {error}")
        pending, self._pending = self._pending, deque()
        for number, (reply, _) in enumerate(pending):
            if not reply.done():
                # Only the first request is overdue; the others were behind it.
                late = isinstance(error, TimedOut) and number > 0
                reply.set_exception(ConnectionReset(str(error)) if late else error)
            self._free()
        self._arm()

    def _free(self) -> None:
        self.load -= 1
        # Callers wait at the pool and not here, so a link that comes free serves
        # whoever waits longest.
        self._on_free(self)

    def _arm(self) -> None:
        """Keep one timer, for the oldest request."""
        if self._timer is not None:
            if self._pending and self._timer.when() <= self._pending[0][1]:
                return
            self._timer.cancel()
            self._timer = None
        if self._pending:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._pending[0][1], self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._pending and self._pending[0][1] <= now and self._connection:
            # The order of replies is lost with this one; so is the connection.
            host, port = self._pool.endpoint
            self._lose(self._connection, TimedOut(f"no reply from {host}:{port}"))
        else:
            self._arm()

    def reset(self) -> None:
        """Give the connection up; the next request dials anew."""
        if self._connection is not None:
            host, port = self._pool.endpoint
            error = ConnectionFailed(f"the way to {host}:{port} has changed")
            self._lose(self._connection, error)

    def close(self) -> None:
        """Close the connection; requests that are out fail."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._lose(self._connection, Closed("the registry client was closed"))


class LinkPool:
    """A few links, and the callers that wait for one."""

    def __init__(
        self, endpoint: Endpoint, config: LinkConfig, tls: TlsConfig | None
    ) -> None:
        self.endpoint = endpoint
        self.config = config
        self.tls = tls
        self._context: ssl.SSLContext | None = None
        self.rng = random.Random()
        """For what must not happen to all clients at the same time."""
        self._links = [Link(self, self._on_free) for _ in range(config.connections)]
        self._waiters: deque[asyncio.Future[Link]] = deque()
        self._depth = 1
        self._closed = False
        self.complained = False
        """Whether the log says already that the certificate is refused."""

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def allow_pipelining(self) -> None:
        """Let many requests be out on one link from now on."""
        self._depth = self.config.pipeline
        # Callers that wait now were held by the old depth.
        for link in self._links:
            self._on_free(link)

    async def exchange(self, frame: bytes) -> bytes:
        """Send ``frame`` on the least busy link and return the reply.

        Raises:
            Busy: Too many callers wait already.
            ConnectionFailed, TimedOut, Closed: See ``Link.exchange``.
        """
        self.check_open()
        link = min(self._links, key=_load)
        # Nobody may overtake those who wait, or they could wait for ever under load.
        if link.load >= self._depth or self._waiters:
            link = await self._wait_for_link()
        else:
            link.load += 1
        return await link.exchange(frame)

    def check_open(self) -> None:
        """Raise Closed after ``close``."""
        if self._closed:
            raise Closed("the registry client was closed")

    def complain(self, error: CertificateRefused) -> None:
        """Log once, with the remedy, why the registry is not talked to."""
        if not self.complained:
            self.complained = True
            logger.error("registry: %s; %s", error, error.hint)

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the context that all links share."""
        if self._context is None and self.tls is not None:
            self._context = client_tls_context(self.tls)
        return self._context

    def reset(self) -> None:
        """Give all connections up, as after a change of this machine's address."""
        for link in self._links:
            link.reset()

    def close(self) -> None:
        """Close all links; requests that are out or wait fail with Closed."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Closed("the registry client was closed"))
        self._waiters.clear()
        for link in self._links:
            link.close()

    async def _wait_for_link(self) -> Link:
        # While the registry is away every heartbeat of the host ends up here.
        if len(self._waiters) >= self.config.max_waiting:
            raise Busy(f"{len(self._waiters)} requests wait for the registry")
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Handed a link in the same moment: it goes to the next one.
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                link = waiter.result()
                link.load -= 1
                self._on_free(link)
            raise

    def _on_free(self, link: Link) -> None:
        while self._waiters and link.load < self._depth:
            waiter = self._waiters.popleft()
            if not waiter.done():
                # Counted for the waiter before it runs: until then a newcomer could
                # take the same place.
                link.load += 1
                waiter.set_result(link)


def _load(link: Link) -> int:
    return link.load
