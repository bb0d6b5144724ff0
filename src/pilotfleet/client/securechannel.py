"""The secure channel of port 443 over a stream (services.md section 6).

::

    stream = await daemon.dial(peer, SECURE_PORT)
    async with await connect_secure(stream) as secure:
        await secure.write(b"for your eyes only")

The daemon does not listen on port 443; a program does, and calls ``accept_secure``
with each stream that it accepts. An official program finds the reference's library
on the other side, and the other way round.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from pilotfleet.errors import Closed, ConnectionReset, DecodeError, TimedOut
from pilotfleet.protocol.services.securechannel import (
    AUTH_FRAME_SIZE,
    EXCHANGE_TIMEOUT_S,
    NONCE_SIZE,
    PUBLIC_KEY_SIZE,
    SECURE_PORT,
    NonceMemory,
    Role,
    SecureExchange,
    check_auth,
    decode_auth_frame,
    encode_auth_frame,
    make_auth_frame,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from pilotfleet.protocol.identity import Identity

__all__ = [
    "SECURE_PORT",
    "Authentication",
    "ByteStream",
    "SecureStream",
    "accept_secure",
    "connect_secure",
]

READ_SIZE: Final = 65536
PIECE_BYTES: Final = 1 << 20
"""A longer write becomes several records: the reader must buffer a whole one."""


class ByteStream(Protocol):
    """What a channel needs below: client and node streams have it."""

    async def read(self, n: int, /) -> bytes:
        """Return up to ``n`` bytes, nothing at the end."""

    async def write(self, data: bytes, /) -> None:
        """Send ``data``."""

    async def close(self) -> None:
        """Close the stream."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """Both sides prove which node they are. Both must have agreed to do so."""

    identity: Identity
    node_id: int
    """Our own node."""
    peer_id: int
    """The node that the other side must be."""
    find_key: Callable[[int], Awaitable[bytes]]
    """Returns the Ed25519 key of a node, from the registry or a configuration."""
    memory: NonceMemory = field(default_factory=NonceMemory)
    """Share one among all channels, or a frame could be used again on another."""
    wall: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = os.urandom


class SecureStream:
    """A byte stream that only the two programs can read."""

    __slots__ = (
        "_at_eof",
        "_closed",
        "_plain",
        "_stream",
        "_write_lock",
        "opener",
        "peer_key",
        "public_key",
        "sealer",
    )

    def __init__(
        self, stream: ByteStream, exchange: SecureExchange, peer_key: bytes
    ) -> None:
        """Open the channel; ``connect_secure`` and ``accept_secure`` do this.

        Raises:
            DecodeError: ``peer_key`` is not a usable public key.
        """
        self._stream = stream
        self.sealer, self.opener = exchange.complete(peer_key)
        self.public_key = exchange.public_key
        self.peer_key = peer_key
        """What the peer sent in the exchange. Two people who compare the keys of
        both sides know that nobody stands between them."""
        self._plain = bytearray()
        self._write_lock = asyncio.Lock()
        self._at_eof = False
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

    @property
    def at_eof(self) -> bool:
        """Whether the other side ended the stream and everything was read."""
        return self._at_eof and not self._plain

    async def read(self, n: int = READ_SIZE) -> bytes:
        """Return up to ``n`` bytes, ``b""`` at the end. May be cancelled.

        Raises:
            DecodeError: A record was altered, repeated, left out or cut off. The
                channel is closed.
            ConnectionReset: The stream below broke.
            Closed: The channel was closed on this side.
        """
        while not self._plain:
            if self._closed:
                raise Closed("the secure channel is closed")
            if self._at_eof:
                return b""
            await self._fill()
        data = bytes(self._plain[:n])
        del self._plain[:n]
        return data

    async def read_exactly(self, n: int) -> bytes:
        """Return exactly ``n`` bytes. May be cancelled.

        Raises:
            ConnectionReset: The stream ended before.
        """
        while len(self._plain) < n:
            if self._closed:
                raise Closed("the secure channel is closed")
            if self._at_eof:
                missing = n - len(self._plain)
                raise ConnectionReset(f"stream ended {missing} bytes too early")
            await self._fill()
        return await self.read(n)

    async def write(self, data: bytes) -> None:
        """Send ``data``, as one record if it has at most 1 MiB.

        Cancelled, the channel is closed: half a record may be on its way.

        Raises:
            Closed: The channel is closed.
        """
        # One at a time: records must leave in the order of their counters.
        async with self._write_lock:
            view = memoryview(data)
            for begin in range(0, len(view), PIECE_BYTES):
                if self._closed:
                    raise Closed("the secure channel is closed")
                piece = bytes(view[begin : begin + PIECE_BYTES])
                try:
                    await self._stream.write(self.sealer.seal(piece))
                except BaseException:
                    await self.close()
                    raise

    async def close(self) -> None:
        """Close the channel and the stream; what was written still goes out."""
        if not self._closed:
            self._closed = True
            self._plain.clear()
            await self._stream.close()

    async def _fill(self) -> None:
        data = await self._stream.read(READ_SIZE)
        try:
            if not data:
                self.opener.finish()
                self._at_eof = True
            for plaintext in self.opener.feed(data):
                self._plain += plaintext
        except DecodeError:
            await self.close()
            raise


async def connect_secure(
    stream: ByteStream,
    *,
    authentication: Authentication | None = None,
    is_legacy: bool = False,
) -> SecureStream:
    """Open a channel on a stream that we dialled.

    On any failure, also when cancelled, the stream is closed.

    Args:
        authentication: Prove who we are, and let the peer do the same.
        is_legacy: For a peer of release 1.2.

    Raises:
        TimedOut: Not done within 10 s.
        DecodeError: The peer breaks the protocol, or is not who it must be.
        ConnectionReset: The stream ended.
    """
    return await _open(stream, Role.CLIENT, authentication, is_legacy)


async def accept_secure(
    stream: ByteStream,
    *,
    authentication: Authentication | None = None,
    is_legacy: bool = False,
) -> SecureStream:
    """Open a channel on a stream that we accepted; see :func:`connect_secure`."""
    return await _open(stream, Role.SERVER, authentication, is_legacy)


async def _open(
    stream: ByteStream,
    role: Role,
    authentication: Authentication | None,
    is_legacy: bool,
) -> SecureStream:
    try:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            secure = await _exchange(stream, role, is_legacy)
            if authentication is not None:
                await _authenticate(secure, role, authentication)
            return secure
    except TimeoutError:
        await stream.close()
        raise TimedOut(
            f"no secure channel within {EXCHANGE_TIMEOUT_S:g} s",
            hint="is it a secure channel that listens on the peer's port?",
        ) from None
    except BaseException:
        await stream.close()
        raise


async def _exchange(stream: ByteStream, role: Role, is_legacy: bool) -> SecureStream:
    exchange = SecureExchange(role, random_bytes=os.urandom, is_legacy=is_legacy)
    if role is Role.CLIENT:
        await stream.write(exchange.public_key)
    peer_key = await _read_exactly(stream, PUBLIC_KEY_SIZE)
    secure = SecureStream(stream, exchange, peer_key)
    if role is Role.SERVER:
        await stream.write(exchange.public_key)
    return secure


async def _authenticate(
    secure: SecureStream, role: Role, authentication: Authentication
) -> None:
    # The server's frame first: the client does not say who it is to just anybody.
    if role is Role.SERVER:
        await _prove(secure, authentication)
        await _check(secure, authentication)
    else:
        await _check(secure, authentication)
        await _prove(secure, authentication)


async def _prove(secure: SecureStream, authentication: Authentication) -> None:
    frame = make_auth_frame(
        authentication.identity,
        authentication.node_id,
        channel_key=secure.public_key,
        wall=authentication.wall(),
        nonce=authentication.random_bytes(NONCE_SIZE),
    )
    await secure.write(encode_auth_frame(frame))


async def _check(secure: SecureStream, authentication: Authentication) -> None:
    frame = decode_auth_frame(await secure.read_exactly(AUTH_FRAME_SIZE))
    if frame.node_id != authentication.peer_id:
        raise DecodeError(
            f"the peer says it is node {frame.node_id}, not {authentication.peer_id}"
        )
    check_auth(
        frame,
        channel_key=secure.peer_key,
        identity_key=await authentication.find_key(frame.node_id),
        memory=authentication.memory,
        wall=authentication.wall(),
    )


async def _read_exactly(stream: ByteStream, size: int) -> bytes:
    """Read no more than ``size`` bytes: what follows belongs to the records."""
    data = b""
    while len(data) < size:
        part = await stream.read(size - len(data))
        if not part:
            raise ConnectionReset(f"stream ended {size - len(data)} bytes too early")
        data += part
    return data
