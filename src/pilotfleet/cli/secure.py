"""``--secure``: the secure channel of port 443 for one command, blocking.

An extension of ours: the official ``pilotctl`` has no way to use its library's
channel. The asyncio one for programs is :mod:`pilotfleet.client.securechannel`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pilotfleet.cli.connection import Deadline
from pilotfleet.errors import ConnectionReset, TimedOut
from pilotfleet.protocol.services.securechannel import (
    EXCHANGE_TIMEOUT_S,
    MAX_PLAINTEXT,
    PUBLIC_KEY_SIZE,
    Role,
    SecureExchange,
)

if TYPE_CHECKING:
    from typing import Self

    from pilotfleet.cli.connection import Stream

__all__ = ["SecureStream", "accept_secure", "connect_secure"]


def connect_secure(stream: Stream, deadline: Deadline) -> SecureStream:
    """Open a channel on a stream that we dialled; see :class:`SecureStream`."""
    return SecureStream(stream, Role.CLIENT, deadline)


def accept_secure(stream: Stream, deadline: Deadline) -> SecureStream:
    """Open a channel on a stream that we accepted; see :class:`SecureStream`."""
    return SecureStream(stream, Role.SERVER, deadline)


class SecureStream:
    """A stream of the daemon with the channel on it; used like the stream."""

    __slots__ = ("_early", "_opener", "_sealer", "_stream")

    def __init__(self, stream: Stream, role: Role, deadline: Deadline) -> None:
        """Exchange keys, within 10 s. On a failure the caller closes the stream.

        Raises:
            TimedOut: Not in time.
            DecodeError: The peer speaks something else.
            ConnectionReset: The stream ended.
        """
        self._stream = stream
        self._early = b""
        try:
            self._exchange(role, _sooner(deadline))
        except TimedOut:
            raise TimedOut(
                "no secure channel in time",
                hint="the peer's program must take secure channels on this port",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes, *, deadline: Deadline) -> None:
        """Seal data and hand it to the daemon."""
        view = memoryview(data)
        for start in range(0, len(data), MAX_PLAINTEXT):
            record = self._sealer.seal(bytes(view[start : start + MAX_PLAINTEXT]))
            self._stream.write(record, deadline=deadline)

    def read(self, *, deadline: Deadline) -> bytes:
        """Return the next data; nothing at the end.

        Raises:
            TimedOut: Nothing came in time.
            DecodeError: A record was altered, repeated, left out or cut off.
        """
        data, self._early = self._early, b""
        while not data:
            arrived = self._stream.read(deadline=deadline)
            if not arrived:
                self._opener.finish()
                return b""
            data = b"".join(self._opener.feed(arrived))
        return data

    def close(self) -> None:
        """End the stream."""
        self._stream.close()

    def _exchange(self, role: Role, deadline: Deadline) -> None:
        exchange = SecureExchange(role, random_bytes=os.urandom)
        if role is Role.CLIENT:
            self._stream.write(exchange.public_key, deadline=deadline)
        arrived = b""
        while len(arrived) < PUBLIC_KEY_SIZE:
            part = self._stream.read(deadline=deadline)
            if not part:
                raise ConnectionReset(
                    "the peer ended the stream before the secure channel was open"
                )
            arrived += part
        self._sealer, self._opener = exchange.complete(arrived[:PUBLIC_KEY_SIZE])
        # A stream has no borders: the first records may have come along.
        self._early = b"".join(self._opener.feed(arrived[PUBLIC_KEY_SIZE:]))
        if role is Role.SERVER:
            self._stream.write(exchange.public_key, deadline=deadline)


def _sooner(deadline: Deadline) -> Deadline:
    remaining = deadline.remaining
    if remaining is None or remaining > EXCHANGE_TIMEOUT_S:
        return Deadline(EXCHANGE_TIMEOUT_S)
    return deadline
