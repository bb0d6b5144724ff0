"""Connections that carry frames: TCP, TLS and Unix sockets.

A connection knows no protocol. It feeds what arrives to a decoder and hands
whole frames on, in one call for all that came together. An idle connection
costs a transport and this object: no task, no timer, no buffer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Final, Protocol, cast

from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    ConnectionRefused,
    ConnectionReset,
    DecodeError,
    PilotError,
    TimedOut,
)
from pilotfleet.transport.tls import check_fingerprint, explain_tls_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = [
    "FrameDecoder",
    "FramedConnection",
    "connect_framed",
]

WRITE_HIGH_WATER: Final = 256 * 1024
"""Bytes in the write buffer above which ``drain`` waits."""
TURN_BYTES: Final = 64 * 1024
"""After a read of so many, all other connections have their turn: uvloop reads up to
32 times in a row, which is 8 MiB of each of hundreds that send as fast as they can."""


class FrameDecoder(Protocol):
    """Cuts a stream of bytes into frames."""

    def feed(self, data: bytes, /) -> list[bytes]:
        """Take bytes and return the frames that are complete now.

        Raises:
            DecodeError: The stream is broken for good.
        """


class FramedConnection(asyncio.Protocol):
    """One connection. Its owner gives the callbacks; all are synchronous."""

    __slots__ = (
        "_closed",
        "_decoder",
        "_error",
        "_is_paused",
        "_on_closed",
        "_on_frames",
        "_on_opened",
        "_peer",
        "_transport",
        "_writable",
        "blocked_since",
        "received_at",
        "received_bytes",
    )

    def __init__(
        self,
        decoder: FrameDecoder,
        *,
        on_frames: Callable[[FramedConnection, list[bytes]], None],
        on_closed: Callable[[FramedConnection, PilotError], None],
        on_opened: Callable[[FramedConnection], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._on_opened = on_opened
        self._transport: asyncio.Transport | None = None
        self._peer: Endpoint = ("", 0)
        self._error: PilotError | None = None
        self._writable: asyncio.Future[None] | None = None
        self._closed = False
        self._is_paused = False
        self.received_at = 0.0
        """Loop time when bytes last arrived."""
        self.received_bytes = 0
        self.blocked_since: float | None = None
        """Loop time since which the other side does not take our bytes."""

    @property
    def peer(self) -> Endpoint:
        """Address of the other side; empty for a Unix socket."""
        return self._peer

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            # The zone and flow of an IPv6 address are of no use to anybody.
            self._peer = (str(name[0]), int(name[1]))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received_at = asyncio.get_running_loop().time()
        if self._on_opened is not None:
            self._on_opened(self)

    def data_received(self, data: bytes) -> None:
        """Cut ``data`` into frames and hand them on; called by the loop."""
        self.received_at = asyncio.get_running_loop().time()
        self.received_bytes += len(data)
        try:
            frames = self._decoder.feed(data)
        except DecodeError as error:
            self.abort(error)
            return
        if frames and not self._closed:
            self._on_frames(self, frames)
        if len(data) >= TURN_BYTES:
            self._let_others_read()

    def connection_lost(self, error: Exception | None) -> None:
        """End; called by the event loop."""
        self._closed = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        # Not kept: its frames hold what arrived last, and they refer to us.
        reason, self._error = self._error, None
        if reason is None:
            text = f": {error}" if error is not None else ""
            reason = ConnectionReset(f"the other side closed the connection{text}")
        self._on_closed(self, reason)

    def pause_writing(self) -> None:
        """Note that the buffer is full; called by the event loop."""
        self.blocked_since = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        """Note that the buffer has room; called by the event loop."""
        self.blocked_since = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def send(self, data: bytes) -> None:
        """Send bytes that are already framed. Nothing if it is closed."""
        if self._transport is not None and not self._closed:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the other side has taken enough to send more."""
        while self.blocked_since is not None and not self._closed:
            if self._writable is None or self._writable.done():
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Stop reading: the sender will be slowed down by TCP."""
        self._is_paused = True
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        self._is_paused = False
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def close(self, error: PilotError | None = None) -> None:
        """Send what is buffered and close."""
        self._error = self._error or error or Closed("the connection was closed")
        if self._transport is not None:
            self._transport.close()

    def abort(self, error: PilotError) -> None:
        """Close at once; ``error`` is what the owner is told."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()

    def _let_others_read(self) -> None:
        transport = self._transport
        if self._is_paused or transport is None or transport.is_closing():
            return
        transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._read_again)

    def _read_again(self) -> None:
        if not self._is_paused:
            self.resume()


async def connect_framed(
    endpoint: Endpoint,
    make: Callable[[], FramedConnection],
    *,
    tls: ssl.SSLContext | None = None,
    fingerprint: str | None = None,
) -> FramedConnection:
    """Open a TCP or TLS connection.

    Bound its time with ``asyncio.timeout`` around the call.

    Raises:
        ConnectionRefused: Nothing listens there.
        CertificateRefused: The other side's certificate is not trusted.
        ConnectionFailed: Any other reason.
    """
    host, port = endpoint
    loop = asyncio.get_running_loop()
    name = f"{host}:{port}"
    try:
        transport, connection = await loop.create_connection(make, host, port, ssl=tls)
    except ConnectionRefusedError:
        raise ConnectionRefused(f"nothing listens at {name}") from None
    except TimeoutError:
        raise TimedOut(f"no answer from {name}") from None
    except (ssl.SSLError, ConnectionError) as error:
        if tls is None:
            raise ConnectionFailed(f"cannot connect to {name}: {error}") from error
        raise explain_tls_error(error, name) from error
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(f"cannot connect to {name}: {error}") from error
    if fingerprint is not None:
        session = cast("ssl.SSLObject", transport.get_extra_info("ssl_object"))
        try:
            check_fingerprint(session.getpeercert(binary_form=True), fingerprint, name)
        except ConnectionFailed:
            transport.abort()
            raise
    return connection
