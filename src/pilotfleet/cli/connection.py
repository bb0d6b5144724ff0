"""The daemon's socket for one command: blocking, one request at a time.

The asyncio client in :mod:`pilotfleet.client.daemon` is the one for programs. A
command line starts, asks and ends, and importing asyncio alone takes longer than
all of that, so it has this small client over the same frames.

The socket never blocks in one direction only: while a write waits, what the daemon
sends is taken, because a daemon that cannot get rid of its data stops reading.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    ConnectionFailed,
    DaemonError,
    DecodeError,
    NotRunning,
    NotSupported,
    PilotError,
    TimedOut,
    error_from_fields,
)
from pilotfleet.protocol.ipc.commands import (
    REPLIES,
    Accept,
    Command,
    ReceivedDatagram,
    pack_connection,
    pack_port,
    pack_socket_address,
    unpack_accept,
    unpack_connection,
    unpack_error,
    unpack_received_datagram,
)
from pilotfleet.protocol.ipc.framing import MAX_SEND, FrameDecoder, encode_frame

if TYPE_CHECKING:
    from typing import Self

    from pilotfleet.protocol.address import SocketAddress

__all__ = ["Daemon", "Deadline", "Stream", "is_too_old"]

READ_SIZE: Final = 256 << 10
MAX_BUFFERED: Final = 64 << 20
"""Stream data kept for readers that are not there yet."""
MAX_DATAGRAMS: Final = 4096


def is_too_old(error: PilotError) -> bool:
    """Tell whether an error means that the daemon does not know a command."""
    text = str(error)
    return "unknown command" in text or "unknown sub-command" in text


class Deadline:
    """A point in time after which waiting stops; none means never."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def within(self, seconds: float) -> Deadline:
        """Return this deadline, or ``seconds`` from now if that is sooner."""
        remaining = self.remaining
        return Deadline(seconds if remaining is None else min(seconds, remaining))

    @property
    def remaining(self) -> float | None:
        """Seconds left, not below zero; none means no limit."""
        if self._at is None:
            return None
        return max(0.0, self._at - time.monotonic())

    @property
    def has_passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0.0


NEVER: Final = Deadline(None)


class Daemon:
    """A connection to the daemon.

    Raises:
        NotRunning: From the constructor: nothing answers on the socket.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NotRunning(
                "daemon is not running",
                hint=f"start the daemon with: pilotctl daemon start  (tried {path})",
            ) from error
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._decoder = FrameDecoder()
        self._reply: tuple[int, bytes] | None = None
        self._expected = 0
        self._chunks: dict[int, deque[bytes]] = {}
        self._buffered = 0
        self._ended: set[int] = set()
        self._accepted: deque[Accept] = deque()
        self._pushes: deque[bytes] = deque()
        self._datagrams: deque[ReceivedDatagram] = deque(maxlen=MAX_DATAGRAMS)
        self._datagram_port: int | None = None
        self._calls = 0
        self.limit = NEVER
        """Bounds every wait on this connection, beside the deadline of each."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; the daemon closes our streams."""
        self._socket.close()

    # Requests.

    def request(
        self, command: Command, payload: bytes = b"", *, deadline: Deadline = NEVER
    ) -> bytes:
        """Send a request and return the payload of its reply.

        Raises:
            DaemonError: The daemon refused; the message is its text.
            TimedOut: No reply in time. Nothing more can be asked on this
                connection, since replies carry no number.
            ConnectionFailed: The daemon went away.
        """
        self._expected, self._reply = REPLIES[command], None
        self._write(encode_frame(command, payload), deadline)
        while self._reply is None:
            self._wait(deadline)
        reply, body = self._reply
        self._expected = 0
        if reply == Command.ERROR:
            raise DaemonError(unpack_error(body))
        return body

    def request_json(
        self, command: Command, payload: bytes = b"", *, deadline: Deadline = NEVER
    ) -> dict[str, Any]:
        """Send a request whose reply is a JSON object and return the object."""
        return _decode_object(self.request(command, payload, deadline=deadline))

    def call(self, op: str, **parameters: Any) -> dict[str, Any]:
        """Call an extension operation of our own daemon.

        Raises:
            NotSupported: The daemon is an official one, or too old.
            PilotError: What the operation raised, by its code.
        """
        self._calls += 1
        request = {**parameters, "id": self._calls, "op": op}
        try:
            reply = self.request_json(Command.EXTENSION, json.dumps(request).encode())
        except DaemonError as error:
            if not is_too_old(error):
                raise
            raise NotSupported(
                f"the daemon does not offer {op!r}",
                hint="it needs pilotfleet's pilot-daemon",
            ) from error
        failure = reply.get("error")
        if isinstance(failure, dict):
            raise error_from_fields(failure)
        result = reply.get("result")
        return result if isinstance(result, dict) else {}

    # Streams and datagrams.

    def dial(self, remote: SocketAddress, *, deadline: Deadline = NEVER) -> Stream:
        """Open a stream to a peer."""
        body = self.request(
            Command.DIAL, pack_socket_address(remote), deadline=deadline
        )
        return Stream(self, unpack_connection(body, "dial: reply without id"), remote)

    def bind(self, port: int) -> None:
        """Take streams that peers open to a port."""
        self.request(Command.BIND, pack_port(port))

    def accept(self, port: int, *, deadline: Deadline = NEVER) -> Stream:
        """Return the next stream that a peer opened to a bound port."""
        while True:
            while self._accepted:
                accept = self._accepted.popleft()
                if accept.local_port == port:
                    return Stream(self, accept.connection, accept.remote)
            self._wait(deadline)

    def keep_datagrams(self, port: int) -> None:
        """Keep the datagrams that arrive for a port from now on."""
        self._datagram_port = port

    def receive_datagram(self, *, deadline: Deadline = NEVER) -> ReceivedDatagram:
        """Return the next datagram that was kept."""
        while not self._datagrams:
            self._wait(deadline)
        return self._datagrams.popleft()

    def send_to(self, remote: SocketAddress, data: bytes) -> bool:
        """Send a datagram; tell whether the daemon confirmed it.

        Raises:
            DaemonError: The daemon knows that it could not be sent.
        """
        payload = pack_socket_address(remote) + data
        try:
            self.request(Command.SEND_TO_CONFIRM, payload)
        except DaemonError as error:
            if not is_too_old(error):
                raise
            self._write(encode_frame(Command.SEND_TO, payload), NEVER)
            return False
        return True

    def receive_push(self, *, deadline: Deadline = NEVER) -> dict[str, Any]:
        """Return the next push of our own daemon.

        Raises:
            TimedOut: None came in time.
            ConnectionFailed: The daemon went away.
        """
        while not self._pushes:
            self._wait(deadline)
        return _decode_object(self._pushes.popleft())

    # For streams.

    def write_stream(self, connection: int, data: bytes, deadline: Deadline) -> None:
        """Send stream data, in pieces that fit a frame."""
        view = memoryview(data)
        for start in range(0, len(data), MAX_SEND):
            piece = bytes(view[start : start + MAX_SEND])
            frame = encode_frame(Command.SEND, pack_connection(connection), piece)
            self._write(frame, deadline)

    def read_stream(self, connection: int, deadline: Deadline) -> bytes:
        """Return the next stream data; nothing at the end."""
        while True:
            chunks = self._chunks.get(connection)
            if chunks:
                chunk = chunks.popleft()
                self._buffered -= len(chunk)
                return chunk
            if connection in self._ended:
                return b""
            self._wait(deadline)

    def take_stream(self, connection: int) -> bytes:
        """Return stream data that has arrived already, or nothing."""
        data = b"".join(self._chunks.pop(connection, ()))
        self._buffered -= len(data)
        return data

    def close_stream(self, connection: int) -> None:
        """End a stream."""
        self._write(encode_frame(Command.CLOSE, pack_connection(connection)), NEVER)

    # Private.

    def _write(self, frame: bytes, deadline: Deadline) -> None:
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                self._wait(deadline, writing=True)
            except OSError as error:
                raise _gone(error) from error

    def _wait(self, deadline: Deadline, *, writing: bool = False) -> None:
        """Take what the daemon sends, or return once writing is possible."""
        events = select.POLLIN | (select.POLLOUT if writing else 0)
        self._poll.register(self._socket, events)
        remaining = deadline.remaining
        limit = self.limit.remaining
        if limit is not None:
            remaining = limit if remaining is None else min(limit, remaining)
        milliseconds = None if remaining is None else remaining * 1000
        ready = self._poll.poll(milliseconds)
        if not ready:
            raise TimedOut("no answer from the daemon in time")
        if not ready[0][1] & ~select.POLLOUT:
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise _gone(error) from error
        if not data:
            raise ConnectionFailed("the daemon closed the connection")
        for command, payload in self._decoder.feed(data):
            self._route(command, payload)

    def _route(self, command: int, payload: bytes) -> None:
        match command:
            case Command.RECV:
                connection = unpack_connection(payload, "recv: missing conn_id")
                self._keep(connection, payload[4:])
            case Command.CLOSE_OK:
                connection = unpack_connection(payload, "close: missing conn_id")
                self._ended.add(connection)
                if self._expected == Command.CLOSE_OK:
                    self._reply = command, payload
            case Command.ACCEPT:
                self._accepted.append(unpack_accept(payload))
            case Command.RECV_FROM:
                datagram = unpack_received_datagram(payload)
                if datagram.port == self._datagram_port:
                    self._datagrams.append(datagram)
            case Command.EXTENSION_PUSH:
                # Read only while somebody waits for one, or for a reply: what comes
                # in between is little.
                self._pushes.append(payload)
            case Command.ERROR if self._expected:
                self._reply = command, payload
            case self._expected:
                self._reply = command, payload

    def _keep(self, connection: int, data: bytes) -> None:
        self._buffered += len(data)
        if self._buffered > MAX_BUFFERED:
            raise ConnectionFailed("more unread stream data than can be kept")
        self._chunks.setdefault(connection, deque()).append(data)


class Stream:
    """A stream to a peer through the daemon."""

    __slots__ = ("_daemon", "_id", "remote")

    def __init__(self, daemon: Daemon, connection: int, remote: SocketAddress) -> None:
        self._daemon = daemon
        self._id = connection
        self.remote = remote

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes, *, deadline: Deadline = NEVER) -> None:
        """Hand data to the daemon, waiting while it takes no more."""
        self._daemon.write_stream(self._id, data, deadline)

    def read(self, *, deadline: Deadline = NEVER) -> bytes:
        """Return the next data; nothing at the end.

        Raises:
            TimedOut: Nothing came in time.
        """
        return self._daemon.read_stream(self._id, deadline)

    def read_arrived(self) -> bytes:
        """Return what has arrived already, without waiting."""
        return self._daemon.take_stream(self._id)

    def close(self) -> None:
        """End the stream; it does not matter if the daemon is gone or stuck."""
        with contextlib.suppress(ConnectionFailed, TimedOut):
            self._daemon.close_stream(self._id)


def _gone(error: OSError) -> ConnectionFailed:
    return ConnectionFailed(f"lost the connection to the daemon: {error.strerror}")


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DecodeError("the daemon's reply is not JSON") from error
    if not isinstance(value, dict):
        raise DecodeError("the daemon's reply is not an object")
    return value
