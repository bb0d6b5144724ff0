"""The serving side of a fleet's control socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import PilotError, StorageError, error_to_fields
from pilotfleet.fleet.control import MAX_LINE, decode_request
from pilotfleet.fleet.home import short_path
from pilotfleet.transport.peeruser import is_own_user
from pilotfleet.transport.privatesocket import listen_privately

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.fleet.control import Request

__all__ = ["ControlServer", "Reply"]

MAX_CLIENTS: Final = 64
BACKLOG: Final = 64
REQUEST_S: Final = 30.0
"""How long a client may take to send its request."""
CLOSE_S: Final = 5.0
"""How long answers under way may take when the server closes."""
MAX_UNREAD: Final = 256 * 1024
"""Progress for a client that does not read is dropped beyond this."""


class Reply:
    """What is sent to a client before its answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def say(self, doing: str) -> None:
        """Tell what is being done, unless the client does not listen."""
        transport = self._writer.transport
        is_read = transport.get_write_buffer_size() < MAX_UNREAD
        if is_read and not transport.is_closing():
            self._writer.write(_line({"item": {"doing": doing}}))

    async def item(self, value: Any) -> None:
        """Send a part of the answer; waits for a client that is slow.

        Raises:
            OSError: The client is gone.
        """
        self._writer.write(_line({"item": value}))
        await self._writer.drain()


class ControlServer:
    """Takes requests on a Unix socket. An asynchronous context manager.

    A request whose client goes away is cancelled.
    """

    def __init__(
        self, path: Path, answer: Callable[[Request, Reply], Awaitable[Any]]
    ) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen; a socket that was left behind is replaced.

        Raises:
            StorageError: The socket cannot be made.
        """
        try:
            with short_path(self._path.parent) as folder:
                listener = listen_privately(folder / self._path.name, backlog=BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"cannot make socket {self._path}: {reason}") from None
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=listener, limit=MAX_LINE
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_listening()
        if self._clients:
            await asyncio.wait(self._clients, timeout=CLOSE_S)
        while self._clients:
            for task in self._clients:
                task.cancel()
            await asyncio.wait(self._clients)

    def stop_listening(self) -> None:
        """Take no further request; those under way are answered."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _on_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        is_own = is_own_user(writer.get_extra_info("socket"))
        if len(self._clients) >= MAX_CLIENTS or not is_own:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(reader, writer), name="fleet control"
        )
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                line = await _read_line(reader)
            if line:
                work = asyncio.ensure_future(self._reply(line, writer))
                await _unless_gone(work, reader)
        except (TimeoutError, OSError):
            pass
        finally:
            writer.close()

    async def _reply(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            answer = {"ok": await self._answer(decode_request(line), Reply(writer))}
        except PilotError as error:
            answer = {"error": error_to_fields(error)}
        writer.write(_line(answer))
        await writer.drain()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return a request; one that is too long is answered as one that is wrong."""
    try:
        return await reader.readline()
    except ValueError:
        return b"{"


async def _unless_gone(
    work: asyncio.Future[None], reader: asyncio.StreamReader
) -> None:
    """Wait for the work; cancel it when the client closes the connection."""
    gone = asyncio.ensure_future(reader.read(1))
    try:
        both: list[asyncio.Future[Any]] = [work, gone]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    if not work.cancelled():
        work.result()


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"
