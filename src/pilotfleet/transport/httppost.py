"""Posting to an HTTP server, one request after the other.

h11, which uvicorn brings along, speaks HTTP; the connection is ours, because what a
name resolves to must be judged before anything is sent there: a client that looks
the name up once more could be led somewhere else in between.

Redirects are not followed. Of an answer only the status counts, and its body is read
only as far as it takes to use the connection again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final, Protocol

import h11

from pilotfleet.errors import ConnectionFailed, PermissionDenied, ProtocolError
from pilotfleet.transport.threads import run_blocking
from pilotfleet.transport.tls import system_tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["HttpPoster", "Server"]

# Of our choosing.
MAX_HEAD: Final = 64 * 1024
"""Bytes of an answer's status line and headers."""
MAX_BODY: Final = 16 * 1024
"""Bytes of an answer's body that are read; a longer one costs the connection."""
READ_SIZE: Final = 16 * 1024
REST_S: Final = 1.0
"""How long the rest of an answer may take; after that the connection is closed."""
CLOSE_S: Final = 1.0


class Server(Protocol):
    """Where to post to."""

    @property
    def host(self) -> str:
        """Name or IP address."""

    @property
    def port(self) -> int:
        """TCP port."""

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted and the server proves its name."""


class HttpPoster:
    """Posts to one server; keeps its connection until `aclose`.

    Args:
        server: Where to post to.
        check_address: Raises for an IP address that is not to be contacted.
    """

    def __init__(self, server: Server, *, check_address: Callable[[str], None]) -> None:
        self._server = server
        self._check_address = check_address
        self._connection: _Connection | None = None

    async def post(
        self, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> int:
        """Post ``body`` and return the status of the answer.

        Without a time limit of its own. Cancellation closes the connection.

        Raises:
            PermissionDenied: The name resolves to refused addresses only.
            ConnectionFailed: The server cannot be reached, or breaks off.
            ProtocolError: It does not speak HTTP.
        """
        used, self._connection = self._connection, None
        if used is not None:
            # A server may close an idle connection at any time. That it did so just
            # now shows by an end without any answer, and is no failure of its.
            with contextlib.suppress(ConnectionFailed):
                return await self._exchange(used, path, headers, body)
        return await self._exchange(await self._connect(), path, headers, body)

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _exchange(
        self,
        connection: _Connection,
        path: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
    ) -> int:
        try:
            status = await connection.exchange(path, headers, body)
            if connection.is_reusable:
                self._connection = connection
            return status
        except OSError as error:
            raise ConnectionFailed(_words(error)) from error
        except h11.RemoteProtocolError as error:
            raise ProtocolError(f"the server does not speak HTTP: {error}") from error
        finally:
            if self._connection is not connection:
                await connection.aclose()

    async def _connect(self) -> _Connection:
        server = self._server
        context = await run_blocking(system_tls_context) if server.is_tls else None
        failure: OSError | None = None
        for address in await self._look_up():
            try:
                reader, writer = await asyncio.open_connection(
                    address,
                    server.port,
                    ssl=context,
                    server_hostname=server.host if context else None,
                )
                return _Connection(reader, writer)
            except OSError as error:  # Also for TLS.
                failure = error
        assert failure is not None
        raise ConnectionFailed(_words(failure)) from failure

    async def _look_up(self) -> list[str]:
        """Return the server's addresses, the refused ones left out."""
        server, refusal = self._server, None
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                server.host, server.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise ConnectionFailed(
                f"cannot look up {server.host!r}: {error}"
            ) from error
        addresses = []
        for *_, (address, *_) in found:
            try:
                self._check_address(str(address))
                addresses.append(str(address))
            except PermissionDenied as error:
                refusal = error
        if not addresses:
            raise refusal or ConnectionFailed(f"{server.host!r} has no address")
        return addresses


class _Connection:
    """One connection and what h11 knows of it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE

    async def exchange(
        self, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> int:
        http = self._http
        head = h11.Request(method="POST", target=path, headers=list(headers))
        # Joined: two segments would wait for each other with Nagle and delayed ACK.
        parts = [
            http.send(head),
            http.send(h11.Data(data=body)),
            http.send(h11.EndOfMessage()),
        ]
        self._writer.write(b"".join(part for part in parts if part))
        await self._writer.drain()
        while not isinstance(event := await self._next_event(), h11.Response):
            # An interim answer; one that ends the connection raises.
            pass
        # The status is all that counts, whatever becomes of the rest.
        with contextlib.suppress(OSError, TimeoutError, h11.RemoteProtocolError):
            async with asyncio.timeout(REST_S):
                await self._finish()
        return event.status_code

    async def aclose(self) -> None:
        """Close without waiting for long; cancelled, close at once."""
        self._writer.close()
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()

    async def _finish(self) -> None:
        """Read the rest of the answer if it is short; then start over."""
        left = MAX_BODY
        while left > 0:
            match await self._next_event():
                case h11.Data(data=data):
                    left -= len(data)
                case h11.EndOfMessage():
                    break
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            data = await self._reader.read(READ_SIZE)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise ConnectionResetError("the server closed the connection")
            self._http.receive_data(data)


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
