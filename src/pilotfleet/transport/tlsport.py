"""A TCP port where TLS is spoken, and where plain clients are at least understood.

The first byte tells them apart: a TLS handshake begins with 0x16. It is looked at
without being taken, and then the connection goes to one of two makers. Without this
a plain client would only see its connection closed, and could not be told why.

A connection belongs to the port until its handshake is done. How many may be at that
stage, and for how long, is bounded; when there are too many, the oldest goes, because
an honest client is through in a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = ["TlsPort"]

HANDSHAKE_RECORD: Final = b"\x16"
"""Content type of the first TLS record (RFC 8446 section 5.1)."""
SHUTDOWN_S: Final = 5.0
"""How long a closed connection waits for the other side's close_notify."""
ACCEPTS: Final = 64
"""Connections taken in one go, before others have their turn."""
PAUSE_S: Final = 1.0
"""Without accepting, after the system ran out of descriptors or memory."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TlsPort:
    """Listens; made by :meth:`open`."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        make: Callable[[], asyncio.BaseProtocol],
        make_plain: Callable[[], asyncio.BaseProtocol],
        handshake_s: float = 10.0,
        max_arrivals: int = 4096,
    ) -> None:
        """Prepare a port.

        Args:
            make: Makes the protocol of a connection whose handshake is done.
            make_plain: The same for a connection without TLS.
            handshake_s: From accepting to the end of the handshake.
            max_arrivals: Connections that may be at that stage.
        """
        self._context = context
        self._make = make
        self._make_plain = make_plain
        self._handshake_s = handshake_s
        self._max_arrivals = max_arrivals
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._address: Endpoint = ("", 0)
        # By age, the oldest first.
        self._arrivals: dict[_Arrival, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed_count = 0
        """Connections that never got through their handshake."""

    @property
    def address(self) -> Endpoint:
        """Where it listens, or did."""
        return self._address

    @property
    def arrival_count(self) -> int:
        """How many connections are before the end of their handshake."""
        return len(self._arrivals)

    async def open(self, host: str, port: int, *, backlog: int) -> None:
        """Listen on ``host``; every address of the machine if it is empty.

        Raises:
            OSError: The system refuses.
        """
        found = await self._loop.getaddrinfo(
            host or None,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                # With a socket for each family: IPv6 only is what it sets.
                listener = socket.create_server(address, family=family, backlog=backlog)
                listener.setblocking(False)
                self._sockets.append(listener)
        except OSError:
            self.close()
            raise
        host, port = self._sockets[0].getsockname()[:2]
        self._address = (host, port)
        for listener in self._sockets:
            self._loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Stop accepting; give up those that are in their handshake."""
        while self._sockets:
            listener = self._sockets.pop()
            self._loop.remove_reader(listener)
            listener.close()
        for arrival in list(self._arrivals):
            arrival.give_up()

    async def wait_closed(self) -> None:
        """Return when no task of the port runs any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._loop.remove_reader(listener)
                self._loop.call_later(PAUSE_S, self._accept_again, listener)
                return
            sock.setblocking(False)
            if len(self._arrivals) >= self._max_arrivals:
                next(iter(self._arrivals)).give_up()
            self._arrivals[_Arrival(self, sock)] = None

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)


class _Arrival:
    """A connection before it is known who speaks there."""

    __slots__ = ("_is_handed_on", "_port", "_sock", "_task", "_timer")

    def __init__(self, port: TlsPort, sock: socket.socket) -> None:
        self._port = port
        self._sock = sock
        self._task: asyncio.Task[None] | None = None
        self._is_handed_on = False
        self._timer = port._loop.call_later(port._handshake_s, self.give_up)
        port._loop.add_reader(sock, self._on_bytes)

    def give_up(self) -> None:
        """Close the connection, at whichever step it is."""
        self._port.failed_count += 1
        if self._task is not None:
            self._task.cancel()
        else:
            self._port._loop.remove_reader(self._sock)
        if not self._is_handed_on:
            self._sock.close()
        self._end()

    def _end(self) -> None:
        self._timer.cancel()
        self._port._arrivals.pop(self, None)

    def _on_bytes(self) -> None:
        port = self._port
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:
            self.give_up()
            return
        port._loop.remove_reader(self._sock)
        hand_on = self._shake_hands if first == HANDSHAKE_RECORD else self._be_plain
        self._task = port._loop.create_task(hand_on(), name="tls-arrival")
        port._tasks.add(self._task)
        self._task.add_done_callback(port._tasks.discard)

    async def _shake_hands(self) -> None:
        port = self._port
        self._is_handed_on = True
        try:
            await port._loop.connect_accepted_socket(
                port._make,
                self._sock,
                ssl=port._context,
                ssl_handshake_timeout=port._handshake_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            port.failed_count += 1
        finally:
            self._end()

    async def _be_plain(self) -> None:
        self._is_handed_on = True
        # Lost while it is handed on: there is nobody left to tell.
        with contextlib.suppress(OSError):
            try:
                await self._port._loop.connect_accepted_socket(
                    self._port._make_plain, self._sock
                )
            finally:
                self._end()
