"""Messages, and open connections, between two processes of one daemon."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError, NotSupported
from pilotfleet.node.processes.messages import MAX_MESSAGE, Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Channel", "make_pair"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
"""Messages that the other process did not read yet."""
MESSAGES_PER_WAKEUP: Final = 64
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel.

    Raises:
        NotSupported: The system has no packets with connections in them.
        OSError: It has no room for one now.
    """
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        if error.errno in _SCARCE:
            raise
        raise NotSupported(
            f"this system cannot divide a daemon into processes: {error.strerror}",
            hint="leave out --processes, or start several daemons",
        ) from error


class Channel:
    """One end of a channel, in an event loop.

    Args:
        end: The socket; closed with the channel.
        on_message: Gets each message, and the connection that came with it, which
            it owns.
        on_end: Called once when the other process is gone; not after ``close``.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        on_message: Callable[[Message, socket.socket | None], None],
        on_end: Callable[[], None],
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        end.setblocking(False)
        self._loop.add_reader(end, self._read)

    def send(self, message: Message, connection: socket.socket | None = None) -> bool:
        """Send a message; the connection with it is given away, whatever happens.

        Returns:
            Whether it is on its way: not if the other process is gone, or does not
            read.
        """
        if self._is_closed or len(self._waiting) >= MAX_WAITING:
            _close(connection)
            return False
        self._waiting.append((encode(message), connection))
        if len(self._waiting) == 1:
            self._write()
        return True

    def close(self) -> None:
        """Close this end; what was not sent is lost."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    # Private

    def _write(self) -> None:
        while self._waiting:
            packet, connection = self._waiting[0]
            descriptors = [] if connection is None else [connection.fileno()]
            try:
                socket.send_fds(self._end, [packet], descriptors)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._end, self._write)
                return
            except OSError as error:
                # Also when it has ended: then reading says so as well.
                logger.debug("a message to another process was lost: %s", error)
            self._waiting.popleft()
            _close(connection)
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        for _ in range(MESSAGES_PER_WAKEUP):
            if self._is_closed:
                return
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._end, MAX_MESSAGE, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, descriptors = b"", []
            if not packet:
                self.close()
                self._on_end()
                return
            self._take(packet, descriptors)

    def _take(self, packet: bytes, descriptors: list[int]) -> None:
        connection = _as_socket(descriptors)
        try:
            message = decode(packet)
        except DecodeError as error:
            logger.error("%s", error)
            _close(connection)
            return
        self._on_message(message, connection)


def _as_socket(descriptors: list[int]) -> socket.socket | None:
    if not descriptors:
        return None
    first, *others = descriptors
    for other in others:
        os.close(other)
    # Python 3.11 has a flag for it, and does not pass it on.
    os.set_inheritable(first, False)
    return socket.socket(fileno=first)


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()
