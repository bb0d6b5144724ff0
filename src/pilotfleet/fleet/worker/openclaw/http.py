"""One HTTP request and its whole answer, over a connection of its own.

Turns take from a third of a second to minutes, so a connection for each costs
nothing that shows, and one that breaks off belongs to exactly one task.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import h11

from pilotfleet.errors import ConnectionFailed, InvalidArgument, ProtocolError
from pilotfleet.transport.threads import run_blocking
from pilotfleet.transport.tls import system_tls_context

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Endpoint", "exchange", "parse_url"]

MAX_HEAD: Final = 64 * 1024
MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of an answer: a result of 1 MiB, with every character escaped."""
READ_SIZE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway listens, and what it asks for."""

    host: str
    port: int
    token: str = field(default="", repr=False)
    is_tls: bool = False
    path: str = ""
    """Put before every path; for a gateway behind a proxy."""

    @property
    def url(self) -> str:
        """What to call it in messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.path}"


def parse_url(text: str, *, token: str = "") -> Endpoint:
    """Read the address of a gateway, as ``http://127.0.0.1:18789``.

    Raises:
        InvalidArgument: It is no HTTP address, or it has a name or password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidArgument(f"{text!r} is not an address") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidArgument(f"{text!r} is not an address as http://127.0.0.1:18789")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgument("the gateway's address has more than host, port and path")
    is_tls = parts.scheme == "https"
    return Endpoint(
        host=parts.hostname,
        port=port or (443 if is_tls else 80),
        token=token,
        is_tls=is_tls,
        path=parts.path.rstrip("/"),
    )


async def exchange(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Send a request and return the status and the body of the answer.

    Without a time limit of its own. Cancellation closes the connection, by which
    a gateway stops what it does for it.

    Raises:
        ConnectionFailed: The server cannot be reached, or breaks off.
        ProtocolError: It does not speak HTTP, or answers with too much.
    """
    try:
        reader, writer = await _connect(endpoint)
        try:
            http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
            events = _request(endpoint, method, path, headers or {}, body)
            # Joined: two segments would wait for each other.
            writer.write(b"".join(http.send(event) or b"" for event in events))
            await writer.drain()
            return await _read_answer(http, reader)
        finally:
            writer.transport.abort()
    except OSError as error:  # Also for TLS.
        raise ConnectionFailed(f"{endpoint.url}: {_words(error)}") from error
    except h11.RemoteProtocolError as error:
        raise ProtocolError(f"{endpoint.url} does not speak HTTP: {error}") from error


async def _connect(
    endpoint: Endpoint,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = await run_blocking(system_tls_context) if endpoint.is_tls else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)


def _request(
    endpoint: Endpoint, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> list[h11.Event]:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    head = h11.Request(
        method=method,
        target=endpoint.path + path,
        headers=[
            ("host", f"{host}:{endpoint.port}"),
            ("connection", "close"),
            ("authorization", f"Bearer {endpoint.token}"),
            ("content-length", str(len(body))),
            *headers.items(),
        ],
    )
    return [head, h11.Data(data=body), h11.EndOfMessage()]


async def _read_answer(
    http: h11.Connection, reader: asyncio.StreamReader
) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        match await _next_event(http, reader):
            case h11.Response(status_code=status):
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > MAX_BODY:
                    raise ProtocolError(f"an answer of more than {MAX_BODY} bytes")
            case h11.EndOfMessage():
                return status, bytes(body)


async def _next_event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        data = await reader.read(READ_SIZE)
        http.receive_data(data)
        if not data:
            try:
                return http.next_event()
            except h11.RemoteProtocolError:
                # The end, where it does not end the answer.
                raise ConnectionResetError("it broke off") from None
    return event


def _words(error: OSError) -> str:
    # asyncio has other words for a refused connection than the system.
    errno = error.errno if isinstance(error, ConnectionError) else None
    return os.strerror(errno) if errno else str(error) or type(error).__name__
