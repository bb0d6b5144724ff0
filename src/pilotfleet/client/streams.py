"""Streams and listeners that a daemon runs for this client."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Closed, ConnectionReset

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.protocol.address import SocketAddress

__all__ = ["ClientListener", "ClientStream"]

HIGH_WATER: Final = 4 << 20
"""Bytes that wait in one stream before the whole connection stops being read."""
LOW_WATER: Final = 1 << 20
MAX_ACCEPTS: Final = 64
"""Streams that wait in one listener; further ones are closed."""


class ClientStream:
    """One stream. An async context manager that closes it."""

    __slots__ = (
        "_buffered_bytes",
        "_chunks",
        "_client",
        "_closed",
        "_ended",
        "_lost",
        "_offset",
        "_waiters",
        "id",
        "remote",
    )

    def __init__(self, client: DaemonClient, number: int, remote: SocketAddress):
        self.id = number
        """The connection id that the daemon chose."""
        self.remote = remote
        self._client = client
        self._chunks: deque[bytes] = deque()
        self._offset = 0
        self._buffered_bytes = 0
        self._ended = False
        self._lost = False
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def at_eof(self) -> bool:
        """Whether the other side ended the stream and everything was read."""
        return self._ended and not self._chunks

    async def read(self, n: int = 65536) -> bytes:
        """Return up to ``n`` bytes, ``b""`` at the end. May be cancelled.

        Raises:
            ConnectionReset: The daemon went away.
            Closed: The stream was closed on this side.
        """
        while not self._chunks:
            if self._closed:
                raise Closed(f"stream {self.id} is closed")
            if self._ended:
                if self._lost:
                    raise ConnectionReset("the daemon closed the connection")
                return b""
            await self._wait()
        return self._take(n)

    async def read_exactly(self, n: int) -> bytes:
        """Return exactly ``n`` bytes.

        Raises:
            ConnectionReset: The stream ended before; what came is lost.
        """
        parts: list[bytes] = []
        missing = n
        while missing:
            part = await self.read(missing)
            if not part:
                raise ConnectionReset(f"stream ended {missing} bytes too early")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send ``data``; wait while the daemon takes no more.

        Raises:
            Closed: The peer ended the stream, or it or the connection to the daemon is
                closed on this side.
        """
        if self._closed:
            raise Closed(f"stream {self.id} is closed")
        if self._ended:
            # The daemon would drop it: nobody reads what follows a peer's end.
            raise Closed(f"stream {self.id} was ended by the peer")
        await self._client._send_stream(self.id, data)

    async def close(self) -> None:
        """Close the stream; what was written still goes out."""
        if not self._closed:
            self._closed = True
            self._chunks.clear()
            self._buffered_bytes = 0
            self._wake()
            self._client._close_stream(self)

    def _wait(self) -> asyncio.Future[None]:
        # One for each reader, so that one that is cancelled does not end the others'.
        waiter = asyncio.get_running_loop().create_future()
        self._waiters = [other for other in self._waiters if not other.done()]
        self._waiters.append(waiter)
        return waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _take(self, n: int) -> bytes:
        chunk = self._chunks[0]
        piece = chunk[self._offset : self._offset + n]
        self._offset += len(piece)
        if self._offset == len(chunk):
            self._chunks.popleft()
            self._offset = 0
        was_full = self._buffered_bytes > LOW_WATER
        self._buffered_bytes -= len(piece)
        if was_full and self._buffered_bytes <= LOW_WATER:
            self._client._resume(self)
        return piece

    def _received(self, data: bytes) -> None:
        if self._closed:
            return
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > HIGH_WATER:
            self._client._pause(self)
        self._wake()

    def _end(self, *, lost: bool = False) -> None:
        self._lost = lost and not self._ended
        self._ended = True
        self._wake()


class ClientListener:
    """A bound port. Iterate over it, or call :meth:`accept`."""

    def __init__(self, client: DaemonClient, port: int) -> None:
        self.port = port
        self._client = client
        self._waiting: asyncio.Queue[ClientStream | None] = asyncio.Queue()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientStream:
        try:
            return await self.accept()
        except Closed:
            raise StopAsyncIteration from None

    async def accept(self) -> ClientStream:
        """Return the next stream that somebody opened to the port.

        Raises:
            Closed: The listener or the connection to the daemon is closed.
        """
        if self._closed:
            raise Closed(f"port {self.port} is closed")
        stream = await self._waiting.get()
        if stream is None:
            self._waiting.put_nowait(None)  # For the next one who waits.
            raise Closed(f"port {self.port} is closed")
        return stream

    async def close(self) -> None:
        """Release the port; streams that were accepted live on."""
        if self._closed:
            return
        self._end()
        try:
            await self._client._unbind(self)
        finally:
            for stream in self._abandoned():
                await stream.close()

    def _offer(self, stream: ClientStream) -> bool:
        if self._closed or self._waiting.qsize() >= MAX_ACCEPTS:
            return False
        self._waiting.put_nowait(stream)
        return True

    def _end(self) -> None:
        self._closed = True
        self._waiting.put_nowait(None)

    def _abandoned(self) -> list[ClientStream]:
        streams: list[ClientStream] = []
        while not self._waiting.empty():
            stream = self._waiting.get_nowait()
            if stream is not None:
                streams.append(stream)
        self._waiting.put_nowait(None)
        return streams
