"""A client of the daemon's Unix socket, official or ours (ipc.md).

The wire has no request ids, so the rules of ipc.md section 4 apply: one request at
a time, pushes routed by key, frames of connections that nobody knows yet are kept
until somebody does. A caller who gives up leaves a reply behind that no later
request may take for its own; the next request waits until that reply has come.

Extension calls (:meth:`DaemonClient.call`) carry ids and know none of these limits;
an official daemon refuses them, which raises :class:`NotSupported`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from pilotfleet.client.early import EarlyFrames
from pilotfleet.client.streams import ClientListener, ClientStream
from pilotfleet.errors import (
    Busy,
    Closed,
    ConnectionFailed,
    ConnectionRefused,
    DaemonError,
    DecodeError,
    InvalidArgument,
    NotRunning,
    NotSupported,
    PilotError,
    TimedOut,
)
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.ipc import commands, extension
from pilotfleet.protocol.ipc.commands import REPLIES, Command, ReceivedDatagram
from pilotfleet.protocol.ipc.framing import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["ClientListener", "ClientStream", "DaemonClient"]

DEFAULT_TIMEOUT_S: Final = 30.0
"""For Dial and Bind, as in the stock client."""
PIECE_BYTES: Final = 256 * 1024
"""Stream data per Send; larger frames only make the daemon wait for their end."""
GATHER_BYTES: Final = 16 * 1024
"""Frames of one turn of the loop leave together, up to this: each write of its own
would be a system call, and wake the daemon for one frame."""
MAX_DATAGRAMS: Final = 256
MAX_PUSHES: Final = 1024
MAX_ACCEPTS: Final = 64
"""Streams accepted before their port's BindOK was seen."""


class _Request:
    """The one request that is outstanding."""

    __slots__ = ("done", "expected", "given_up", "remote")

    def __init__(self, expected: int, remote: SocketAddress | None) -> None:
        self.expected = expected
        self.remote = remote
        """Where a Dial goes to."""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.given_up = False


class DaemonClient(asyncio.Protocol):
    """One connection to a daemon. Made by :meth:`connect`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._turn = asyncio.Lock()
        self._request: _Request | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._streams: dict[int, ClientStream] = {}
        self._listeners: dict[int, ClientListener] = {}
        self._early = EarlyFrames()
        self._early_accepts: deque[tuple[int, ClientStream]] = deque()
        self._datagrams: deque[ReceivedDatagram] = deque()
        self._datagram_arrived = asyncio.Event()
        self._pushes: deque[dict[str, Any]] = deque()
        self._push_arrived = asyncio.Event()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._full: set[int] = set()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self.dropped_datagrams = 0

    @classmethod
    async def connect(cls, path: str | Path) -> Self:
        """Connect to the daemon at ``path``.

        Raises:
            NotRunning: No daemon listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_unix_connection(cls, str(path))
        except OSError as error:
            hint = f"start the daemon with: pilotctl daemon start  (tried {path})"
            raise NotRunning("daemon is not running", hint=hint) from error
        return client

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
    def is_closed(self) -> bool:
        """Whether the connection is gone, by whichever side."""
        return self._lost.is_set()

    async def close(self) -> None:
        """Close the connection; the daemon then closes its streams and ports."""
        if self._transport is not None and not self._lost.is_set():
            self._flush()
            self._transport.close()
            # A daemon that reads nothing must not keep us from closing.
            with suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    await self._lost.wait()
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the connection is gone."""
        await self._lost.wait()

    # Requests

    async def request(
        self, command: int, payload: bytes = b"", *, timeout: float | None = None
    ) -> bytes:
        """Send one request and return its reply's payload.

        May be cancelled; later requests then wait for the reply left behind.

        Raises:
            DaemonError: The daemon answered with an error text.
            TimedOut: No answer within ``timeout`` seconds.
            Closed: The connection is gone.
        """
        return await self._ask(command, payload, timeout=timeout)

    async def request_json(
        self, command: int, payload: bytes = b"", *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Send one request and return its reply's JSON object."""
        reply = await self._ask(command, payload, timeout=timeout)
        return extension.decode_object(reply)

    async def call(
        self, op: str, /, *, timeout: float | None = None, **params: Any
    ) -> dict[str, Any]:
        """Call an extension operation of a pilotfleet daemon.

        May be cancelled and be outstanding any number of times.

        Raises:
            NotSupported: The daemon is an official one, or lacks the operation.
            TimedOut: No answer within ``timeout`` seconds.
            PilotError: What the operation raised, by its code.
        """
        if len(self._calls) >= extension.MAX_OUTSTANDING:
            raise Busy(f"{len(self._calls)} calls to the daemon are outstanding")
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._calls[number] = reply
        try:
            body = extension.encode_request(number, op, params)
            frame = encode_frame(Command.EXTENSION, body)
            if timeout is None:
                await self._send(frame)
                return await reply
            async with asyncio.timeout(timeout):
                await self._send(frame)
                return await reply
        except TimeoutError:
            raise TimedOut(f"{op}: no answer from the daemon") from None
        finally:
            self._calls.pop(number, None)

    async def pushes(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the daemon's extension pushes until the connection is gone.

        For one consumer. While it lags, the whole connection is not read.
        """
        while True:
            while self._pushes:
                push = self._pushes.popleft()
                if len(self._pushes) < MAX_PUSHES // 2:
                    self._resume(self._pushes)
                yield push
            if self._lost.is_set():
                return
            self._push_arrived.clear()
            await self._push_arrived.wait()

    # Streams

    async def dial(
        self, address: Address, port: int, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> ClientStream:
        """Open a stream to ``port`` of ``address``.

        Raises:
            ConnectionRefused: Nothing listens there.
            TimedOut: No answer, by the daemon's limit or by ours.
            DaemonError: Any other refusal.
        """
        remote = SocketAddress(address, port)
        payload = commands.pack_socket_address(remote)
        try:
            reply = await self._ask(
                Command.DIAL, payload, timeout=timeout, remote=remote
            )
        except TimedOut:
            raise TimedOut("dial timeout") from None
        except DaemonError as error:
            raise _dial_error(str(error)) from None
        return self._streams[commands.unpack_connection(reply, "dial: no connection")]

    async def bind(
        self, port: int, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> ClientListener:
        """Claim a virtual port.

        Raises:
            DaemonError: The port is taken.
        """
        listener = ClientListener(self, port)
        reply = await self._ask(Command.BIND, commands.pack_port(port), timeout=timeout)
        listener.port = commands.unpack_port(reply, "bind: no port")
        self._listeners[listener.port] = listener
        # Accept frames can overtake BindOK (ipc.md section 4, client rule 5).
        for _ in range(len(self._early_accepts)):
            accepted = self._early_accepts.popleft()
            if accepted[0] == listener.port:
                self._offer(listener, accepted[1])
            else:
                self._early_accepts.append(accepted)
        return listener

    # Datagrams

    async def send_to(self, remote: SocketAddress, data: bytes) -> None:
        """Send a datagram; nobody says whether it left."""
        payload = commands.pack_socket_address(remote)
        await self._send(encode_frame(Command.SEND_TO, payload, data))

    async def send_to_confirm(
        self, remote: SocketAddress, data: bytes, *, timeout: float | None = None
    ) -> None:
        """Send a datagram; return when it was handed to the tunnel.

        Raises:
            DaemonError: It could not be sent, or the daemon lacks the command.
        """
        payload = commands.pack_socket_address(remote) + data
        await self._ask(Command.SEND_TO_CONFIRM, payload, timeout=timeout)

    async def datagrams(self) -> AsyncIterator[ReceivedDatagram]:
        """Yield datagrams for any port; those nobody fetches in time are dropped.

        For one consumer.
        """
        while True:
            while self._datagrams:
                yield self._datagrams.popleft()
            if self._lost.is_set():
                return
            self._datagram_arrived.clear()
            await self._datagram_arrived.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport (called by the event loop)."""
        # A cast: the transports of uvloop are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits (called by the event loop)."""
        self._lost.set()
        self._settled.set()
        self._writable.set()
        waiting: list[asyncio.Future[Any]] = [*self._calls.values()]
        if self._request is not None:
            waiting.append(self._request.done)
            self._request = None
        for future in waiting:
            if not future.done():
                future.set_exception(_lost_error())
        for stream in self._streams.values():
            stream._end(lost=True)
        for listener in self._listeners.values():
            listener._end()
        self._datagram_arrived.set()
        self._push_arrived.set()

    def data_received(self, data: bytes) -> None:
        """Route the frames in ``data`` (called by the event loop)."""
        try:
            for command, payload in self._decoder.feed(data):
                self._route(command, payload)
        except DecodeError:
            # The stream of frames cannot be followed any more.
            assert self._transport is not None
            self._transport.abort()

    def pause_writing(self) -> None:
        """Make writers wait (called by the event loop)."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on (called by the event loop)."""
        self._writable.set()

    # Sending

    async def _ask(
        self,
        command: int,
        payload: bytes,
        *,
        timeout: float | None,
        remote: SocketAddress | None = None,
    ) -> bytes:
        if command not in REPLIES:
            raise InvalidArgument(f"command 0x{command:02X} has no reply")
        frame = encode_frame(command, payload)
        try:
            async with asyncio.timeout(timeout), self._turn:
                await self._settled.wait()
                await self._writable.wait()
                return await self._exchange(
                    frame, _Request(REPLIES[Command(command)], remote)
                )
        except TimeoutError:
            name = Command(command).name.lower()
            raise TimedOut(f"{name}: no answer from the daemon") from None

    async def _exchange(self, frame: bytes, request: _Request) -> bytes:
        self._write(frame)
        self._request = request
        try:
            return await request.done
        finally:
            if self._request is request:  # Timed out or cancelled.
                request.given_up = True
                self._settled.clear()
                if request.expected == Command.DIAL_OK and not self._lost.is_set():
                    # Answers the dial at once; no other dial can be in flight.
                    self._write(encode_frame(Command.CANCEL))

    async def _send(self, frame: bytes) -> None:
        if not self._writable.is_set():
            await self._writable.wait()
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        # Closing: the loop learns that the connection is lost, and tells us, only when
        # the writer lets it; one that writes without a pause would not.
        transport = self._transport
        if transport is None or transport.is_closing() or self._lost.is_set():
            raise Closed("the connection to the daemon is closed")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes >= GATHER_BYTES:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._unsent_bytes = 0
        if unsent and self._transport is not None and not self._lost.is_set():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    async def _send_stream(self, number: int, data: bytes) -> None:
        head = commands.pack_connection(number)
        with memoryview(data) as view:
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                await self._send(encode_frame(Command.SEND, head, piece))

    def _close_stream(self, stream: ClientStream) -> None:
        self._streams.pop(stream.id, None)
        self._resume(stream)
        self._close_connection(stream.id)

    def _close_connection(self, number: int) -> None:
        self._early.ignore(number)
        if not self._lost.is_set():
            payload = commands.pack_connection(number)
            self._write(encode_frame(Command.CLOSE, payload))

    async def _unbind(self, listener: ClientListener) -> None:
        self._listeners.pop(listener.port, None)
        if self._lost.is_set():
            return
        # Daemons before 1.18 have no Unbind; they keep the port until we leave.
        with suppress(DaemonError, Closed, ConnectionFailed):
            await self._ask(
                Command.UNBIND,
                commands.pack_port(listener.port),
                timeout=DEFAULT_TIMEOUT_S,
            )

    # Receiving

    def _route(self, command: int, payload: bytes) -> None:
        match command:
            case Command.RECV:
                self._on_data(payload)
            case Command.CLOSE_OK:
                self._on_end(commands.unpack_connection(payload, "close: no id"))
            case Command.ACCEPT:
                self._on_accept(payload)
            case Command.RECV_FROM:
                self._on_datagram(payload)
            case Command.EXTENSION_OK:
                self._on_extension_reply(payload)
            case Command.EXTENSION_PUSH:
                self._on_push(payload)
            case Command.ERROR:
                self._on_error(commands.unpack_error(payload))
            case _:
                self._on_reply(command, payload)

    def _on_data(self, payload: bytes) -> None:
        number = commands.unpack_connection(payload, "recv: no id")
        stream = self._streams.get(number)
        if stream is not None:
            stream._received(payload[4:])
        else:
            self._early.add(number, payload[4:])

    def _on_end(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream._end()
        else:
            self._early.end(number)

    def _on_accept(self, payload: bytes) -> None:
        accept = commands.unpack_accept(payload)
        stream = self._adopt(accept.connection, accept.remote)
        listener = self._listeners.get(accept.local_port)
        if listener is not None:
            self._offer(listener, stream)
            return
        self._early_accepts.append((accept.local_port, stream))
        if len(self._early_accepts) > MAX_ACCEPTS:
            self._reject(self._early_accepts.popleft()[1])

    def _on_datagram(self, payload: bytes) -> None:
        if len(self._datagrams) >= MAX_DATAGRAMS:
            self.dropped_datagrams += 1
            return
        self._datagrams.append(commands.unpack_received_datagram(payload))
        self._datagram_arrived.set()

    def _on_push(self, payload: bytes) -> None:
        self._pushes.append(extension.decode_object(payload))
        self._push_arrived.set()
        if len(self._pushes) >= MAX_PUSHES:
            self._pause(self._pushes)

    def _on_extension_reply(self, payload: bytes) -> None:
        reply = extension.decode_reply(payload)
        future = self._calls.get(reply.id)
        if future is None or future.done():
            return
        if reply.error is not None:
            future.set_exception(extension.error_from_reply(reply.error))
        else:
            future.set_result(reply.result or {})

    def _on_error(self, message: str) -> None:
        if message == _EXTENSION_UNKNOWN:
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(_not_supported())
            return
        request = self._request
        if request is None:
            return  # Stray: 1.9.1 answers a failed Send like this.
        self._settle()
        if not request.done.done():
            request.done.set_exception(DaemonError(message))

    def _on_reply(self, command: int, payload: bytes) -> None:
        request = self._request
        expected = request is not None and request.expected == command
        if expected:
            self._settle()
        if command == Command.DIAL_OK:
            self._on_dialed(request if expected else None, payload)
        if expected and request is not None and not request.done.done():
            request.done.set_result(payload)

    def _on_dialed(self, request: _Request | None, payload: bytes) -> None:
        number = commands.unpack_connection(payload, "dial: no connection")
        if request is None or request.given_up or request.remote is None:
            self._close_connection(number)
        else:
            self._adopt(number, request.remote)

    def _settle(self) -> None:
        self._request = None
        self._settled.set()

    def _adopt(self, number: int, remote: SocketAddress) -> ClientStream:
        stream = self._streams[number] = ClientStream(self, number, remote)
        chunks, has_ended = self._early.take(number)
        for chunk in chunks:
            stream._received(chunk)
        if has_ended:
            stream._end()
        return stream

    def _offer(self, listener: ClientListener, stream: ClientStream) -> None:
        if not listener._offer(stream):
            self._reject(stream)

    def _reject(self, stream: ClientStream) -> None:
        stream._end()
        self._close_stream(stream)

    def _pause(self, who: object) -> None:
        """Stop reading until everybody who is full has room again."""
        if not self._full and self._transport is not None:
            self._transport.pause_reading()
        self._full.add(id(who))

    def _resume(self, who: object) -> None:
        if id(who) in self._full:
            self._full.discard(id(who))
            if not self._full and self._transport is not None:
                self._transport.resume_reading()


_EXTENSION_UNKNOWN: Final = f"unknown command: 0x{Command.EXTENSION:02X}"


def _dial_error(message: str) -> PilotError:
    if message == "connection refused":
        return ConnectionRefused(message)
    if message == "dial timeout":
        return TimedOut(message)
    return DaemonError(message)


def _lost_error() -> ConnectionFailed:
    return ConnectionFailed("the daemon closed the connection")


def _not_supported() -> NotSupported:
    return NotSupported(
        "the daemon does not offer this", hint="it needs a pilotfleet daemon"
    )
