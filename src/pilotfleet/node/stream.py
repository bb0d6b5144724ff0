"""The asynchronous shell of one stream.

A :class:`Stream` can be used in two ways. A service reads and writes it with
coroutines, and waits. The IPC server, which forwards thousands of streams
without a task for each, sets ``on_event`` and uses the ``…_nowait`` calls. Both
get real back-pressure: unread bytes close the receive window towards the peer,
and a full send buffer takes no more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    ConnectionRefused,
    ConnectionReset,
    PilotError,
    TimedOut,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from pilotfleet.node.agent import Agent
    from pilotfleet.protocol.address import SocketAddress
    from pilotfleet.protocol.stream.connection import StreamConnection

__all__ = ["Stream"]

LARGE_AFTER: Final = 64 * 1024
"""Bytes moved before larger segments are worth a probe."""
READ_SIZE: Final = 65536


class Stream:
    """One stream of an agent. An async context manager that closes it."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "_error",
        "_is_closed",
        "_is_finished",
        "_is_opened",
        "_moved",
        "_readers",
        "_writers",
        "agent",
        "on_event",
    )

    def __init__(
        self, agent: Agent, connection: StreamConnection, *, is_opened: bool
    ) -> None:
        self.agent = agent
        self.on_event: Callable[[Stream], None] | None = None
        """Called when it became readable or writable, ended, or was closed."""
        self._connection = connection
        self._is_opened = is_opened
        self._is_closed = False
        self._is_finished = False
        self._error: PilotError | None = None
        self._moved = 0
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []
        connection.owner = self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.agent.name}:{self.local_port} {self.remote}>"

    @property
    def id(self) -> int:
        """The connection id; unique on the agent, never on the wire."""
        return self._connection.id

    @property
    def local_port(self) -> int:
        """The port on this side."""
        return self._connection.local_port

    @property
    def remote(self) -> SocketAddress:
        """The other side."""
        return self._connection.remote

    @property
    def is_open(self) -> bool:
        """Whether data can still be written."""
        return self._is_opened and not self._is_closed and not self._is_finished

    @property
    def at_eof(self) -> bool:
        """Whether nothing is left to read and nothing will come."""
        connection = self._connection
        return connection.at_eof or (
            (self._is_finished or self._is_closed) and not connection.readable_bytes
        )

    @property
    def readable_bytes(self) -> int:
        """Bytes that can be read without waiting."""
        return self._connection.readable_bytes

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes written that the other side may not have."""
        return self._connection.unacknowledged_bytes

    @property
    def error(self) -> PilotError | None:
        """Why the stream failed, if it did."""
        return self._error

    # Reading

    def read_nowait(self, limit: int = READ_SIZE) -> bytes:
        """Return what is there, at most ``limit`` bytes; ``b""`` when nothing is."""
        data = self._connection.read(limit, self.agent.host.now())
        if data:
            self._count(len(data))
            if self._connection.has_to_acknowledge:
                # Reading has opened the window, which the peer must learn.
                self.agent.mark_dirty()
        return data

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """Return up to ``limit`` bytes, ``b""`` at the end. May be cancelled.

        Raises:
            ConnectionReset: The other side broke the stream off.
            Closed: It was closed on this side.
        """
        while not (data := self.read_nowait(limit)):
            if self._error is not None:
                raise _copy(self._error)
            if self._is_closed:
                raise Closed(f"stream to {self.remote} is closed")
            if self.at_eof:
                return b""
            await self._wait(self._readers)
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Return exactly ``count`` bytes.

        Cancellation loses what has been read.

        Raises:
            ConnectionReset: The stream ended before.
        """
        parts: list[bytes] = []
        missing = count
        while missing:
            part = await self.read(missing)
            if not part:
                raise ConnectionReset(f"stream ended {missing} bytes too early")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # Writing

    def write_nowait(self, data: bytes | memoryview) -> int:
        """Take as much of ``data`` as there is room for; return how much.

        Raises:
            ConnectionReset: The other side ended or broke the stream.
            Closed: It was closed on this side.
        """
        self._check_writable()
        taken = self._connection.write(data, self.agent.host.now())
        if taken:
            self._count(taken)
            self.agent.mark_dirty()
        return taken

    async def write(self, data: bytes | memoryview) -> None:
        """Hand on all of ``data``; wait while the peer takes no more.

        Cancellation leaves an unknown part of ``data`` written.

        Raises:
            ConnectionReset: The other side ended or broke the stream.
            Closed: It was closed on this side.
        """
        rest = memoryview(data)
        while True:
            rest = rest[self.write_nowait(rest) :]
            if not rest:
                return
            await self._wait(self._writers)

    def defer_acks(self, delay_s: float) -> None:
        """Let acknowledgements wait for data; see ``StreamConnection``."""
        self._connection.defer_acks(delay_s)

    async def close(self) -> None:
        """End the stream; what was written is delivered first. Idempotent."""
        self.close_nowait()

    def close_nowait(self) -> None:
        """End the stream without waiting for anything."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._is_finished:
            self._connection.close(self.agent.host.now())
            self.agent.mark_dirty()
        self._wake_all()

    def abort(self) -> None:
        """Break the stream off; what was written may be lost."""
        self._is_closed = True
        if not self._is_finished:
            self._is_finished = True
            self._connection.abort(self.agent.host.now())
            self.agent.mark_dirty()
        self._wake_all()

    async def wait_opened(self) -> None:
        """Wait for the answer to a dial.

        Raises:
            ConnectionRefused: Nothing listens there.
            TimedOut: No answer came.
            ConnectionFailed: The peer cannot be reached.
        """
        while not self._is_opened:
            if self._error is not None:
                raise _copy(self._error)
            if self._is_closed:
                raise Closed("context canceled")
            await self._wait(self._readers)

    def stats(self) -> dict[str, Any]:
        """Return the row of ipc.md section 10.3."""
        return dict(self._connection.stats())

    # Called by the agent, from the events of the protocol core

    def on_opened(self) -> None:
        """React to the peer's acceptance."""
        self._is_opened = True
        self._wake_all()

    def on_failed(self, reason: str, *, refused: bool) -> None:
        """React to a dial that failed."""
        self._is_finished = True
        self._error = _dial_error(reason, refused=refused)
        self._wake_all()

    def on_readable(self) -> None:
        """React to data, or to the end of it."""
        if self._readers:
            _wake(self._readers)
        if self.on_event is not None:
            self.on_event(self)

    def on_writable(self) -> None:
        """React to room in the send buffer."""
        if self._writers:
            _wake(self._writers)
        if self.on_event is not None:
            self.on_event(self)

    def on_closed(self, reason: str | None) -> None:
        """React to the connection's disappearance."""
        self._is_finished = True
        if reason is not None and not self._is_closed and self._error is None:
            self._error = ConnectionReset(f"stream to {self.remote} broke: {reason}")
        # It has no more to tell. A cycle of the two would keep what nobody read.
        self._connection.owner = None
        self._wake_all()

    # Private

    def _check_writable(self) -> None:
        if self._error is not None:
            raise _copy(self._error)
        if self._is_closed:
            raise Closed(f"stream to {self.remote} is closed")
        if self._is_finished or self._connection.at_eof:
            # There is no half-close (wire.md section 11.2).
            raise ConnectionReset(f"stream to {self.remote} was ended by the peer")

    def _count(self, moved: int) -> None:
        before = self._moved
        self._moved += moved
        if before <= LARGE_AFTER < self._moved:
            self.agent.want_large_payload(self.remote.address.node)

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        # One future for each waiter: a cancelled one must not wake another.
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def _wake_all(self) -> None:
        _wake(self._readers)
        _wake(self._writers)
        if self.on_event is not None:
            self.on_event(self)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


def _copy(error: PilotError) -> PilotError:
    """Return an error to raise instead of one that is kept.

    What was raised refers to the frames it left, and they to what they were reading.
    In an error that the stream keeps, that would be a cycle with megabytes in it.
    """
    return type(error)(str(error), hint=error.hint)


def _dial_error(reason: str, *, refused: bool) -> PilotError:
    # The words are those of ipc.md section 3; clients show them.
    if refused:
        return ConnectionRefused("connection refused")
    if "timeout" in reason or "no answer" in reason:
        return TimedOut("dial timeout")
    return ConnectionFailed(reason)
