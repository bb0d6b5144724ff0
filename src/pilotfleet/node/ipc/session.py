"""One connected client: its frames in, its frames out, its bounds.

Commands that only touch memory run where the frame is read, in order; all others
run as tasks of the session and answer when they are done (ipc.md section 4).

Bounds. Frames wait, unread in the socket, while too many requests are in flight,
too much stream data found no room, or too many replies were not fetched. A reply
may wait ten seconds for a client that reads nothing; then the client is
disconnected. Stream data may wait as long as it likes, since it fills no memory.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from pilotfleet.errors import Busy, Closed, DecodeError, InvalidState, PilotError
from pilotfleet.node.ipc.datagrams import DatagramQueue
from pilotfleet.node.ipc.streams import FRESH_S, IpcStream
from pilotfleet.node.ipc.texts import describe
from pilotfleet.protocol.ipc.commands import (
    Accept,
    Command,
    pack_accept,
    pack_error,
)
from pilotfleet.protocol.ipc.framing import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.ipc.server import IpcServer
    from pilotfleet.node.stream import Stream

__all__ = ["Arrival", "IpcSession"]

logger = logging.getLogger(__name__)

MAX_REQUESTS: Final = 1024
MAX_STREAMS: Final = 4096
MAX_BACKLOG: Final = 4 << 20
"""Bytes that streams did not take yet."""
MAX_REPLIES: Final = 4 << 20
"""Bytes of output that the client did not read yet."""
MAX_PUSHES: Final = 1024
MAX_DATAGRAMS: Final = 256
GATHER_BYTES: Final = 16 * 1024
"""Frames of one turn of the loop leave together, up to this. Each write of its own
would be a system call, and wake the client for one frame."""
STALL_S: Final = 10.0
HANG_UP_CHECK_S: Final = 1.0
DETACH_S: Final = 10.0
"""How long what is under way may take to end before a client moves."""
DETACH_POLL_S: Final = 0.005

_encode: Final = msgspec.json.Encoder().encode
_ids: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a connection came that another process of the daemon had before."""

    is_leg: bool = False
    """Whether a process made it to call operations for a client of its own."""
    greeting: bytes = b""
    """Frames to write before anything else."""
    pending: bytes = b""
    """What the client has sent already."""


class IpcSession(asyncio.Protocol):
    """One client of an :class:`IpcServer`."""

    def __init__(
        self, server: IpcServer, agent: Agent, arrival: Arrival | None = None
    ) -> None:
        self.id = next(_ids)
        """Unique in this process."""
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.agent = agent
        """Whom this client acts for; the extension can change it."""
        self.streams: dict[int, IpcStream] = {}
        self.ports: set[int] = set()
        self.dials: set[asyncio.Task[None]] = set()
        self.watches: dict[str, asyncio.Task[Any]] = {}
        """What of the registry's directory this client follows, by its own names."""
        self.is_closed = False
        self.is_congested = False
        """Whether the client reads too slowly for more stream data."""
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pushes: deque[bytes] = deque()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._has_reply = False
        """Whether the client must fetch something of it in time."""
        self._hungry: dict[IpcStream, None] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._backlog = 0
        self._is_reading = True
        self._has_hung_up = False
        self._is_leaving = False
        self._arrival = arrival
        self.is_leg = arrival is not None and arrival.is_leg
        """Whether it belongs to a client of another process of this daemon."""
        self.datagrams = DatagramQueue(self)
        self._stall: asyncio.TimerHandle | None = None
        self._hang_up_check: asyncio.TimerHandle | None = None
        self._close_callbacks: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<IpcSession {self.id} as {self.agent.name}>"

    # For the extension's handlers

    def push(self, message: dict[str, Any]) -> bool:
        """Send an extension push; False when it cannot be taken now or ever."""
        if self.is_closed or len(self._pushes) >= MAX_PUSHES:
            return False
        self._push(encode_frame(Command.EXTENSION_PUSH, _encode(message)))
        return True

    async def wait_writable(self) -> None:
        """Return when the client has read enough for more to be pushed."""
        while self.is_congested:
            await self._writable.wait()

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the client is gone; at once if it is already."""
        if self.is_closed:
            callback()
        else:
            self._close_callbacks.append(callback)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client or close it (called by the event loop)."""
        # A cast: the transports of uvloop are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)
        if not self.server.admit(self, self._transport):
            self.is_closed = True
            self._transport.abort()
            return
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            self._write(arrival.greeting)
            # Nothing is read yet, so these bytes come first.
            self.data_received(arrival.pending)

    def connection_lost(self, error: Exception | None) -> None:
        """Release everything the client held (called by the event loop)."""
        self.is_closed = True
        for timer in (self._stall, self._hang_up_check):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        for port in self.ports:
            with suppress(PilotError):
                self.agent.unlisten(port)
        self.ports.clear()
        for entry in list(self.streams.values()):
            entry.close()
            self.drop_stream(entry)
        self.server.forget(self)
        for callback in self._close_callbacks:
            try:
                callback()
            except Exception:  # Handlers of services may raise anything.
                logger.exception("%r: close callback failed", self)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client (called by the event loop)."""
        try:
            self._frames.extend(self._decoder.feed(data))
        except DecodeError as error:
            logger.warning("%r: %s", self, error)
            self.abort()
            return
        self._work()

    def pause_writing(self) -> None:
        """Stop forwarding (called by the event loop)."""
        self.is_congested = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on forwarding (called by the event loop)."""
        self.is_congested = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        while self._pushes and not self.is_congested:
            self._write(self._pushes.popleft())
        if not self.is_congested:
            self._writable.set()
        # A copy: one that finds no room enters itself again.
        hungry, self._hungry = self._hungry, {}
        for entry in hungry:
            entry.pump()
        self._work()

    def close(self) -> None:
        """Disconnect the client after what was written to it."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Disconnect the client at once."""
        if self._transport is not None:
            self._transport.abort()

    async def detach(self, *, limit: int) -> tuple[socket.socket, bytes]:
        """Give the connection away, with at most ``limit`` bytes read and not run.

        Called by a task of this session. The client notices nothing; for everybody
        here it is gone.

        Raises:
            InvalidState: A service here keeps something for this connection.
            Busy: Other requests do not end, the client does not read its replies, or
                it has sent too much ahead.
            Closed: The client is gone.
        """
        if self._is_leaving:
            # Each would wait for the other to end.
            raise Busy("select-agent: another one is under way on this connection")
        if self._close_callbacks or self.watches:
            raise InvalidState(
                "this connection serves or watches agents, or called for others",
                hint="select the agent on another connection",
            )
        self._is_leaving = True
        self._set_reading(False)
        try:
            async with asyncio.timeout(DETACH_S):
                await self._settle()
            pending = b"".join(encode_frame(*frame) for frame in self._frames)
            pending += self._decoder.rest()
            if len(pending) > limit or self._close_callbacks or self.watches:
                raise Busy("select-agent: wait for the answers to other requests first")
            return self._take_connection(), pending
        except TimeoutError:
            raise Busy("select-agent: other requests have not ended") from None
        finally:
            self._is_leaving = False
            self._work()

    # Output

    def send(self, command: int, *parts: bytes | memoryview) -> None:
        """Write a frame; the caller minds ``is_congested`` where it can wait."""
        self._write(encode_frame(command, *parts))

    def reply(self, command: int, *parts: bytes) -> None:
        """Write a reply or an Accept, which the client must fetch in time."""
        self._has_reply = True
        self.send(command, *parts)
        if self.is_congested:
            self._watch_stall()

    def reply_error(self, message: str) -> None:
        """Answer a request with an error text."""
        self.reply(Command.ERROR, pack_error(message))

    def push_datagram(self, frame: bytes) -> bool:
        """Push a RecvFrom frame; False when it was dropped."""
        if self.is_closed or len(self._pushes) >= MAX_DATAGRAMS:
            return False
        self._push(frame)
        return True

    def wait_for_room(self, entry: IpcStream) -> None:
        """Have ``entry`` pumped once the client has read."""
        self._hungry[entry] = None

    def add_backlog(self, size: int) -> None:
        """Count stream data that waits for room in its stream."""
        self._backlog += size
        if size < 0:
            self._work()

    # Streams

    def add_stream(self, stream: Stream, *, is_accepted: bool = False) -> IpcStream:
        """Make this client the owner of ``stream``."""
        fresh_until = self.loop.time() + FRESH_S if is_accepted else 0.0
        entry = IpcStream(self, stream, fresh_until=fresh_until)
        self.streams[stream.id] = entry
        self.server.add_stream(entry)
        return entry

    def drop_stream(self, entry: IpcStream) -> None:
        """Forget a stream that the client closed."""
        self.streams.pop(entry.stream.id, None)
        self._hungry.pop(entry, None)
        self.server.drop_stream(entry)

    def accept(self, stream: Stream) -> None:
        """Take a stream that came for a bound port (``Agent.listen``)."""
        if self.is_closed or len(self.streams) >= MAX_STREAMS:
            stream.abort()
            return
        entry = self.add_stream(stream, is_accepted=True)
        accept = Accept(stream.local_port, stream.id, stream.remote)
        self.reply(Command.ACCEPT, pack_accept(accept))
        entry.pump()

    # Tasks

    def start(
        self, work: Coroutine[Any, Any, None], *, name: str
    ) -> asyncio.Task[None]:
        """Run ``work`` as a task of this session, cancelled with it."""
        task = self.loop.create_task(work, name=f"ipc {self.id} {name}")
        self._tasks.add(task)
        self.server.own(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._work()

    # Private

    def _work(self) -> None:
        """Run the frames that were read, as far as the bounds allow."""
        frames = self._frames
        while frames and not self._must_wait():
            self._run(*frames.popleft())
        self._set_reading(not frames and not self._is_leaving)

    async def _settle(self) -> None:
        """Wait until nothing is under way but the task that calls this."""
        own = asyncio.current_task()
        while True:
            if others := [task for task in self._tasks if task is not own]:
                await asyncio.wait(others)
            elif self._unread() or self._pushes:
                await asyncio.sleep(DETACH_POLL_S)
            else:
                return

    def _take_connection(self) -> socket.socket:
        """Return the connection, and end this session as if it had been closed."""
        assert self._transport is not None
        if self.is_closed or self._transport.is_closing():
            # Its number may be that of another client by now.
            raise Closed("the client is gone")
        number = self._transport.get_extra_info("socket").fileno()
        connection = socket.socket(fileno=os.dup(number))
        self.is_closed = True
        self._transport.abort()
        return connection

    def _run(self, command: int, payload: bytes) -> None:
        try:
            self.server.run(self, command, payload)
        except PilotError as error:
            self.reply_error(describe(error))
        except Exception:  # One command must not end the whole client.
            logger.exception("%r: command 0x%02X failed", self, command)
            self.reply_error("internal error")

    def _must_wait(self) -> bool:
        if self.is_closed:
            self._frames.clear()
            return True
        if self._is_leaving:
            return True
        if self._has_hung_up:
            return False
        return (
            len(self._tasks) >= MAX_REQUESTS
            or self._backlog > MAX_BACKLOG
            or (self.is_congested and self._unread() > MAX_REPLIES)
        )

    def _unread(self) -> int:
        if self._transport is None:
            return 0
        return self._transport.get_write_buffer_size() + self._unsent_bytes

    def _set_reading(self, wanted: bool) -> None:
        if self._transport is None or self.is_closed or wanted == self._is_reading:
            return
        self._is_reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            if self._hang_up_check is None:
                self._watch_hang_up()

    def _watch_hang_up(self) -> None:
        """Look whether the client left, which a socket that is not read hides."""
        self._hang_up_check = None
        if self._is_reading or self.is_closed or self._transport is None:
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        if poll.poll(0):
            # What is left fits the socket's buffer, so the bounds may rest.
            self._has_hung_up = True
            self._work()
        else:
            self._hang_up_check = self.loop.call_later(
                HANG_UP_CHECK_S, self._watch_hang_up
            )

    def _push(self, frame: bytes) -> None:
        if self.is_congested:
            self._pushes.append(frame)
        else:
            self._write(frame)

    def _write(self, frame: bytes) -> None:
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes >= GATHER_BYTES:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        has_reply, self._has_reply = self._has_reply, False
        self._unsent_bytes = 0
        if not unsent or self._transport is None or self.is_closed:
            return
        self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))
        if has_reply and self.is_congested:
            self._watch_stall()

    def _watch_stall(self) -> None:
        if self._stall is None and not self.is_closed:
            self._stall = self.loop.call_later(STALL_S, self._on_stalled)

    def _on_stalled(self) -> None:
        logger.warning("%r: a reply was not read for %g s", self, STALL_S)
        self.abort()
