"""UDP in batches on a non-blocking socket.

On Linux a run of equal-size datagrams to one destination leaves in one system
call (``UDP_SEGMENT``), and a run that arrives together is read in one
(``UDP_GRO``). Elsewhere, and where the kernel refuses, datagrams go one by
one. IP fragmentation is off: a lost fragment would lose the whole datagram,
and larger sizes are found by probing instead.

A socket that ``gathers`` reads every few milliseconds while a crowd of peers talks,
instead of waking up for each; see :mod:`pilotfleet.transport.crowd`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import AlreadyExists, Unavailable
from pilotfleet.transport.crowd import GATHER_S, Crowd

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from pilotfleet.protocol.address import Endpoint

__all__ = ["RECEIVE_BUFFER_SIZE", "Datagram", "UdpSocket"]

Datagram: TypeAlias = "tuple[bytes, Endpoint]"
"""Contents, and where they came from or go to."""

# From linux/udp.h and linux/in.h; the socket module does not name them.
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
"""Set DF, and do not let a remembered path MTU veto our own probes."""
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

# Of our choosing.
RECEIVE_BUFFER_SIZE: Final = 65536
"""Holds the largest datagram, and the largest run that UDP_GRO merges."""
SOCKET_BUFFER_SIZE: Final = 4 * 1024 * 1024
"""Asked of the kernel each way (wire.md section 4). A limit, not a cost."""
READS_PER_WAKEUP: Final = 128
"""Then the neighbours have their turn. Fewer would leave acknowledgements unread for
so long, on a busy machine, that what they are for is sent again."""
DATAGRAMS_PER_WAKEUP: Final = 1024
"""No further read after so many: one read brings up to 64 where runs are merged."""
MAX_QUEUED: Final = 1024
"""Datagrams kept while the kernel takes no more."""
MAX_RUN_SEGMENTS: Final = 64
MAX_RUN_BYTES: Final = 65000

_LINUX: Final = sys.platform == "linux"
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_GRO_SIZE.size) if _LINUX else 0
_MAPPED_PREFIX: Final = "::ffff:"
_NO_GSO: Final = frozenset(
    {errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM}
)
"""Answers that mean this socket's route can never do UDP_SEGMENT."""


class UdpSocket:
    """A bound UDP socket that delivers to a callback and sends without waiting.

    ``on_datagrams`` is called from the event loop with everything one wakeup
    brought. It must be quick and must not raise.

    Args:
        bind: Host and port; an empty host means every address of the machine,
            over IPv6 and IPv4 alike; port 0 lets the system choose.
        buffer: At least RECEIVE_BUFFER_SIZE bytes to receive into. Sockets of
            one event loop may share it; the callback gets copies.
        gathers: Whether small datagrams of many peers may wait for each other.

    Raises:
        AlreadyExists: Somebody else has the port.
        Unavailable: The system refuses the address.
    """

    __slots__ = (
        "_buffer",
        "_crowd",
        "_dual",
        "_fd",
        "_gathering",
        "_gso",
        "_loop",
        "_on_datagrams",
        "_queue",
        "_socket",
        "bytes_received",
        "bytes_sent",
        "datagrams_received",
        "datagrams_sent",
        "receive_errors",
        "send_drops",
        "send_errors",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bind: Endpoint,
        on_datagrams: Callable[[list[Datagram]], None],
        *,
        buffer: bytearray | None = None,
        gathers: bool = False,
    ) -> None:
        self._loop = loop
        self._on_datagrams = on_datagrams
        self._buffer = memoryview(buffer or bytearray(RECEIVE_BUFFER_SIZE))
        self._socket = _open(bind)
        self._dual = self._socket.family == socket.AF_INET6
        self._gso = _LINUX
        self._queue: deque[Datagram] | None = None
        self.bytes_received = self.bytes_sent = 0
        self.datagrams_received = self.datagrams_sent = 0
        self.receive_errors = self.send_errors = self.send_drops = 0
        self._crowd = Crowd(loop.time) if gathers else None
        self._gathering: asyncio.TimerHandle | None = None
        """Reads next, where no reader is registered."""
        self._fd = self._socket.fileno()
        loop.add_reader(self._fd, self._on_readable)

    @property
    def address(self) -> Endpoint:
        """Where the socket is bound."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the socket; what is queued is dropped."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._gathering is not None:
            self._gathering.cancel()
        if self._queue is not None:
            self._loop.remove_writer(self._fd)
            self._queue = None
        self._fd = -1
        self._socket.close()

    # Receiving

    def read_now(self) -> None:
        """Deliver what is there, as the event loop would in its next turn."""
        if self._fd >= 0:
            self._read()

    def _on_readable(self) -> None:
        gathering: asyncio.TimerHandle | None = None
        try:
            if self._read() and self._crowd is not None and self._crowd.is_there:
                gathering = self._loop.call_later(GATHER_S, self._on_readable)
        finally:
            # Also after an exception: a timer that has fired never reads again.
            before, self._gathering = self._gathering, gathering
            if before is None and gathering is not None:
                self._loop.remove_reader(self._fd)
            elif before is not None and gathering is None and self._fd >= 0:
                self._loop.add_reader(self._fd, self._on_readable)

    def _read(self) -> bool:
        """Deliver what is there; tell whether that was something, and all."""
        batch: list[Datagram] = []
        is_all = False
        for _ in range(READS_PER_WAKEUP):
            try:
                self._receive(batch)
            except (BlockingIOError, InterruptedError):
                is_all = True
                break
            except OSError:
                # An ICMP error of an earlier send; reading it clears it.
                self.receive_errors += 1
            if self._fd < 0:
                return False
            if len(batch) >= DATAGRAMS_PER_WAKEUP:
                break
        if not batch:
            return False
        self.datagrams_received += len(batch)
        if self._crowd is not None:
            self._crowd.note(batch)
        self._on_datagrams(batch)
        # The callback may have closed it.
        return is_all and self._fd >= 0

    def _receive(self, batch: list[Datagram]) -> None:
        view = self._buffer
        size, ancillary, _, source = self._socket.recvmsg_into((view,), _ANCILLARY_SIZE)
        self.bytes_received += size
        host = source[0]
        if self._dual and host.startswith(_MAPPED_PREFIX):
            host = host[len(_MAPPED_PREFIX) :]
        endpoint = (host, source[1])
        step = _segment_size(ancillary) if ancillary else 0
        if not 0 < step < size:
            batch.append((bytes(view[:size]), endpoint))
            return
        data = bytes(view[:size])
        batch.extend(
            (data[start : start + step], endpoint) for start in range(0, size, step)
        )

    # Sending

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send all, in order; what the kernel cannot take now is queued.

        When the queue is full the newest datagrams are dropped and counted,
        as any router would: the streams above notice and slow down.
        """
        if self._fd < 0:
            return
        if self._queue is not None:
            self._enqueue(datagrams)
            return
        sent = self._send_now(datagrams)
        if sent < len(datagrams):
            self._queue = deque()
            self._enqueue(datagrams[sent:])
            self._loop.add_writer(self._fd, self._on_writable)

    def _enqueue(self, datagrams: Sequence[Datagram]) -> None:
        assert self._queue is not None
        room = MAX_QUEUED - len(self._queue)
        self._queue.extend(datagrams[:room])
        self.send_drops += max(0, len(datagrams) - room)

    def _on_writable(self) -> None:
        assert self._queue is not None
        waiting = list(self._queue)
        sent = self._send_now(waiting)
        if sent < len(waiting):
            for _ in range(sent):
                self._queue.popleft()
            return
        self._queue = None
        self._loop.remove_writer(self._fd)

    def _send_now(self, datagrams: Sequence[Datagram]) -> int:
        """Send until the kernel blocks; return how many are done with."""
        index, count = 0, len(datagrams)
        while index < count:
            end = _run_end(datagrams, index) if self._gso else index + 1
            try:
                if end - index > 1:
                    end = self._send_run(datagrams, index, end)
                else:
                    self._send_one(*datagrams[index])
            except (BlockingIOError, InterruptedError):
                break
            index = end
        return index

    def _send_run(self, datagrams: Sequence[Datagram], start: int, end: int) -> int:
        """Send a run in one call; return the index of the next datagram."""
        parts = [data for data, _ in datagrams[start:end]]
        step = _SEGMENT_SIZE.pack(len(parts[0]))
        try:
            sent = self._socket.sendmsg(
                parts,
                ((_SOL_UDP, _UDP_SEGMENT, step),),
                0,
                self._target(datagrams[start][1]),
            )
        except (BlockingIOError, InterruptedError):
            raise
        except OSError as error:
            if error.errno in _NO_GSO:
                self._gso = False
            # One by one the kernel can say which of them it dislikes.
            self._send_one(*datagrams[start])
            return start + 1
        self.bytes_sent += sent
        self.datagrams_sent += end - start
        return end

    def _send_one(self, data: bytes, destination: Endpoint) -> None:
        try:
            self.bytes_sent += self._socket.sendto(data, self._target(destination))
            self.datagrams_sent += 1
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            # Too large for the path, unreachable, refused: UDP loses datagrams.
            self.send_errors += 1

    def _target(self, destination: Endpoint) -> Endpoint:
        if self._dual and ":" not in destination[0]:
            return _MAPPED_PREFIX + destination[0], destination[1]
        return destination


def _segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO and len(data) >= _GRO_SIZE.size:
            return int(_GRO_SIZE.unpack_from(data)[0])
    return 0


def _run_end(datagrams: Sequence[Datagram], start: int) -> int:
    """Return the end of the run that one UDP_SEGMENT call can take.

    All but the last must have the size of the first; the last may be shorter.
    """
    data, destination = datagrams[start]
    step = total = len(data)
    limit = min(len(datagrams), start + MAX_RUN_SEGMENTS)
    end = start + 1
    while end < limit:
        data, other = datagrams[end]
        size = len(data)
        total += size
        if size > step or total > MAX_RUN_BYTES or other != destination:
            break
        end += 1
        if size < step:
            break
    return end


def _open(bind: Endpoint) -> socket.socket:
    host, port = bind
    if not host:
        with contextlib.suppress(Unavailable):
            return _bind(socket.AF_INET6, ("::", port))
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return _bind(family, (host, port))


def _bind(family: socket.AddressFamily, address: Endpoint) -> socket.socket:
    place = f"{address[0]}:{address[1]}"
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"cannot make a udp socket: {error.strerror}") from error
    try:
        sock.setblocking(False)
        _configure(sock)
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyExists(
                f"udp port {address[1]} is in use on {address[0]}",
                hint="stop the other program, or choose another --listen port",
            ) from error
        raise Unavailable(f"cannot bind udp {place}: {error.strerror}") from error
    return sock


def _configure(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for force, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        _set_buffer(sock, force, plain)
    if not _LINUX:
        return
    options = [(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)]
    if sock.family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE))
    options.append((_SOL_UDP, _UDP_GRO, 1))
    for option in options:
        # Old kernels and some sandboxes lack one or the other; UDP works.
        with contextlib.suppress(OSError):
            sock.setsockopt(*option)


def _set_buffer(sock: socket.socket, force: int, plain: int) -> None:
    """Ask for a large buffer; the forced form needs CAP_NET_ADMIN."""
    if _LINUX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER_SIZE)
            return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_SIZE)
