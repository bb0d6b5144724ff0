"""Forwarding between one stream and the client that owns it.

No task runs for a stream: its callback moves what is there. Back-pressure goes
both ways. While the client's socket is full the stream is not read, which closes
the window towards the peer; what the stream does not take waits here, and counts
towards the bound at which the client's socket is not read any more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import PilotError
from pilotfleet.protocol.ipc.commands import Command, pack_connection

if TYPE_CHECKING:
    import asyncio

    from pilotfleet.node.ipc.session import IpcSession
    from pilotfleet.node.stream import Stream

__all__ = ["IpcStream"]

READ_BYTES: Final = 256 * 1024
"""Largest Recv. Large, because each one costs the client a system call."""
FRESH_S: Final = 0.1
"""How long after its Accept a stream's CloseOK is held back: the stock client
forgets one that comes before its caller took the Accept (ipc.md section 12)."""


class IpcStream:
    """One stream and its place at a session."""

    __slots__ = (
        "_fresh_until",
        "_head",
        "_is_ended",
        "_is_released",
        "_pending",
        "_timer",
        "session",
        "stream",
    )

    def __init__(
        self, session: IpcSession, stream: Stream, *, fresh_until: float = 0.0
    ) -> None:
        self.session = session
        self.stream = stream
        self._head = pack_connection(stream.id)
        self._fresh_until = fresh_until
        self._pending: deque[memoryview] | None = None
        self._is_ended = False
        self._is_released = False
        self._timer: asyncio.TimerHandle | None = None
        stream.on_event = self._on_event

    def pump(self) -> None:
        """Move what has arrived to the client, and say when it was all."""
        session, stream = self.session, self.stream
        while not self._is_ended and not session.is_congested:
            data = stream.read_nowait(READ_BYTES)
            if not data:
                break
            session.send(Command.RECV, self._head, data)
            if len(data) < READ_BYTES:
                break
        if self._is_ended or self._is_released:
            return
        if session.is_congested:
            session.wait_for_room(self)
        elif stream.at_eof:
            self._end_soon()

    def write(self, data: memoryview) -> None:
        """Hand on what a client sent; what finds no room waits here."""
        if self._is_released:
            return
        if self._pending is None:
            data = data[self._write_now(data) :]
            if not data:
                return
            self._pending = deque()
        self._pending.append(data)
        self.session.add_backlog(len(data))

    def close(self) -> None:
        """Close the stream after what waits for it; nothing more is forwarded."""
        if self._is_released:
            return
        self._is_released = True
        if self._timer is not None:
            self._timer.cancel()
        if self._pending is None:
            self._finish()
        self._discard()

    def end(self) -> None:
        """Tell the client that nothing more will come, once."""
        if not self._is_ended:
            self._is_ended = True
            self.session.send(Command.CLOSE_OK, self._head)

    def _on_event(self, stream: Stream) -> None:
        if self._pending is not None:
            self._write_pending(self._pending)
        if self._is_released:
            self._discard()
        else:
            self.pump()

    def _discard(self) -> None:
        # Unread data would keep the peer's window shut, and its end unseen.
        while self.stream.read_nowait(READ_BYTES):
            pass

    def _write_now(self, data: memoryview) -> int:
        try:
            return self.stream.write_nowait(data)
        except PilotError:
            # A Send to a dead stream is dropped without an answer (section 4).
            return len(data)

    def _write_pending(self, pending: deque[memoryview]) -> None:
        while pending:
            data = pending.popleft()
            taken = self._write_now(data)
            self.session.add_backlog(-taken)
            if taken < len(data):
                pending.appendleft(data[taken:])
                return
        self._pending = None
        if self._is_released:
            self._finish()

    def _finish(self) -> None:
        self.stream.close_nowait()

    def _end_soon(self) -> None:
        delay = self._fresh_until - self.session.loop.time()
        if delay <= 0:
            self.end()
        elif self._timer is None:
            self._timer = self.session.loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        if not self._is_released:
            self.end()
