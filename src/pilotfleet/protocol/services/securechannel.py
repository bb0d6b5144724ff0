"""The secure channel of port 443: encryption from application to application.

Both sides send a fresh X25519 key; what follows are records, each sealed with
AES-256-GCM under the common key (services.md section 6). The client speaks first::

    client                            server
      32-byte public key  ──────────►
                          ◄──────────  32-byte public key
      [authentication]    ◄─────────►  [authentication, server first]
      records             ◄─────────►  records

The tunnel below is encrypted already, and the peer's node is known from it. The
channel adds that the daemons on both ends cannot read along, *if* the two sides also
authenticate; without that a daemon could still stand in the middle.

The nonce of a record is the sender's role and a counter. The reference does not look
at the counter; here each record must be the one after the last, so that none can be
repeated, exchanged or left out. Only the end of the stream cannot be told from a
stream that was cut between two records: an application that must know says goodbye.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import SIGNATURE_SIZE, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.identity import Identity

__all__ = [
    "AUTH_FRAME_SIZE",
    "EXCHANGE_TIMEOUT_S",
    "MAX_PLAINTEXT",
    "NONCE_SIZE",
    "PUBLIC_KEY_SIZE",
    "SECURE_PORT",
    "AuthFrame",
    "NonceMemory",
    "RecordOpener",
    "RecordSealer",
    "Role",
    "SecureExchange",
    "check_auth",
    "decode_auth_frame",
    "encode_auth_frame",
    "make_auth_frame",
]

# From the specification.
SECURE_PORT: Final = 443
EXCHANGE_TIMEOUT_S: Final = 10.0
"""The key exchange and the authentication together."""
PUBLIC_KEY_SIZE: Final = 32
MAX_RECORD: Final = 16_777_216
MIN_RECORD: Final = 12
MAX_SKEW_S: Final = 5
NONCE_MEMORY_S: Final = 3600
MAX_NONCES: Final = 100_000
NONCE_SIZE: Final = 16
AUTH_FRAME_SIZE: Final = 92

_INFO: Final = b"pilot-secure-v1"
_OLD_PREFIX: Final = b"pilot-secure-v1:"
_AUTH_PREFIX: Final = b"pilot-secure-auth:"
_LENGTH: Final = struct.Struct("!I")
_NONCE: Final = struct.Struct("!IQ")
_AUTH: Final = struct.Struct("!IQ16s64s")
_TAG_SIZE: Final = 16
_OVERHEAD: Final = _NONCE.size + _TAG_SIZE
MAX_PLAINTEXT: Final = MAX_RECORD - _OVERHEAD
"""Bytes of the application in one record."""


class Role(Enum):
    """Which side of the channel one is; the value begins its nonces."""

    SERVER = 1
    CLIENT = 2

    @property
    def peer(self) -> Role:
        """The other side's role."""
        return Role.CLIENT if self is Role.SERVER else Role.SERVER


class SecureExchange:
    """One side's part in the key exchange.

    A channel makes a new one each time: the key lives as long as the stream.
    """

    __slots__ = ("_private", "is_legacy", "public_key", "role")

    def __init__(
        self,
        role: Role,
        *,
        random_bytes: Callable[[int], bytes],
        is_legacy: bool = False,
    ) -> None:
        """Make a fresh key.

        Args:
            is_legacy: Derive the key and seal as release 1.2 did. There is no
                negotiation: a peer of another age cannot read a single record.
        """
        self.role = role
        self.is_legacy = is_legacy
        self._private = X25519PrivateKey.from_private_bytes(
            random_bytes(PUBLIC_KEY_SIZE)
        )
        self.public_key = self._private.public_key().public_bytes_raw()
        """The 32 bytes to send."""

    def complete(self, peer_key: bytes) -> tuple[RecordSealer, RecordOpener]:
        """Return what seals our records and opens the peer's.

        Raises:
            DecodeError: ``peer_key`` is not a usable public key.
        """
        cipher = AESGCM(self._derive(peer_key))
        return (
            RecordSealer(cipher, self.role, is_legacy=self.is_legacy),
            RecordOpener(cipher, self.role.peer, is_legacy=self.is_legacy),
        )

    def _derive(self, peer_key: bytes) -> bytes:
        if peer_key == self.public_key:
            # Our own key sent back: each side would open its own records.
            raise DecodeError("secure channel: the peer sent our own public key")
        try:
            # Refuses the points that would make the result zero for every key.
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer_key))
        except ValueError:
            raise DecodeError("secure channel: not a usable public key") from None
        if self.is_legacy:
            digest = hashes.Hash(hashes.SHA256())
            digest.update(_OLD_PREFIX + shared)
            return digest.finalize()
        return _hmac(_hmac(b"", shared), _INFO + b"\x01")


class RecordSealer:
    """Seals the records of one side."""

    __slots__ = ("_cipher", "_counter", "_is_legacy", "_role")

    def __init__(self, cipher: AESGCM, role: Role, *, is_legacy: bool) -> None:
        self._cipher = cipher
        self._role = role
        self._is_legacy = is_legacy
        self._counter = 0

    def seal(self, plaintext: bytes) -> bytes:
        """Return one record, length included.

        Raises:
            InvalidArgument: More than MAX_PLAINTEXT bytes.
        """
        if len(plaintext) > MAX_PLAINTEXT:
            raise InvalidArgument(
                f"{len(plaintext)} bytes for one record (max {MAX_PLAINTEXT})"
            )
        self._counter += 1
        nonce = _NONCE.pack(self._role.value, self._counter)
        extra = None if self._is_legacy else nonce[:4]
        sealed = self._cipher.encrypt(nonce, plaintext, extra)
        return _LENGTH.pack(len(nonce) + len(sealed)) + nonce + sealed


class RecordOpener:
    """Cuts the peer's bytes into records and opens them.

    After an error it is of no more use: every further call raises it again.
    """

    __slots__ = ("_broken", "_buffer", "_cipher", "_counter", "_is_legacy", "_role")

    def __init__(self, cipher: AESGCM, role: Role, *, is_legacy: bool) -> None:
        self._cipher = cipher
        self._role = role
        self._is_legacy = is_legacy
        self._counter = 0
        self._buffer = bytearray()
        self._broken = ""

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a record that is not complete; never more than one record."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the plaintexts of the records that are complete now.

        Raises:
            DecodeError: A record is too long, altered, repeated or out of order.
        """
        if self._broken:
            raise DecodeError(self._broken)
        try:
            return self._cut(data)
        except DecodeError as error:
            self._broken = str(error)
            self._buffer.clear()
            raise

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            DecodeError: In the middle of a record.
        """
        if self._buffer:
            raise DecodeError(
                f"secure channel: the stream ended {len(self._buffer)} bytes into a"
                " record"
            )

    def _cut(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        records: list[bytes] = []
        begin = 0
        while len(buffer) - begin >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, begin)
            # Judged before it is awaited, so that no more is buffered than allowed.
            if not MIN_RECORD <= size <= MAX_RECORD:
                raise DecodeError(
                    f"secure channel: record of {size} bytes"
                    f" ({MIN_RECORD} to {MAX_RECORD} are allowed)"
                )
            end = begin + _LENGTH.size + size
            if len(buffer) < end:
                break
            records.append(self._open(bytes(buffer[begin + _LENGTH.size : end])))
            begin = end
        del buffer[:begin]
        return records

    def _open(self, record: bytes) -> bytes:
        nonce = record[: _NONCE.size]
        prefix, counter = _NONCE.unpack(nonce)
        if prefix != self._role.value:
            raise DecodeError("secure channel: a record with the wrong role")
        if counter != self._counter + 1:
            raise DecodeError(
                f"secure channel: record {counter} instead of {self._counter + 1}"
            )
        extra = None if self._is_legacy else nonce[:4]
        try:
            plaintext = self._cipher.decrypt(nonce, record[_NONCE.size :], extra)
        except (InvalidTag, ValueError):
            raise DecodeError("secure channel: a record that was altered") from None
        self._counter = counter
        return plaintext


@dataclass(frozen=True, slots=True)
class AuthFrame:
    """What one side says inside the channel to prove which node it is."""

    node_id: int
    time: int
    """Unix seconds."""
    nonce: bytes
    signature: bytes

    def signed(self, channel_key: bytes) -> bytes:
        """Return what the signature covers; ``channel_key`` is the signer's."""
        head = _AUTH_PREFIX + self.node_id.to_bytes(4) + channel_key
        return head + self.time.to_bytes(8) + self.nonce


def make_auth_frame(
    identity: Identity, node_id: int, *, channel_key: bytes, wall: float, nonce: bytes
) -> AuthFrame:
    """Return the signed frame of a node that sent ``channel_key`` in the exchange."""
    unsigned = AuthFrame(node_id, int(wall), nonce, b"")
    signature = identity.sign(unsigned.signed(channel_key))
    return AuthFrame(node_id, int(wall), nonce, signature)


def encode_auth_frame(frame: AuthFrame) -> bytes:
    """Return the 92 bytes."""
    return _AUTH.pack(frame.node_id, frame.time, frame.nonce, frame.signature)


def decode_auth_frame(data: bytes) -> AuthFrame:
    """Read the 92 bytes.

    Raises:
        DecodeError: Another length.
    """
    if len(data) != AUTH_FRAME_SIZE:
        raise DecodeError(f"authentication frame of {len(data)} bytes")
    return AuthFrame(*_AUTH.unpack(data))


def check_auth(
    frame: AuthFrame,
    *,
    channel_key: bytes,
    identity_key: bytes,
    memory: NonceMemory,
    wall: float,
) -> None:
    """Check that ``frame`` is fresh, new and by the owner of ``identity_key``.

    Args:
        channel_key: The X25519 key that the peer sent in the exchange.
        identity_key: The Ed25519 key of ``frame.node_id``, from the registry.

    Raises:
        DecodeError: It is not.
    """
    if abs(frame.time - wall) > MAX_SKEW_S:
        raise DecodeError(
            f"authentication of node {frame.node_id} is off by"
            f" {abs(frame.time - wall):.0f} s (max {MAX_SKEW_S})"
        )
    if len(frame.signature) != SIGNATURE_SIZE or not verify(
        identity_key, frame.signature, frame.signed(channel_key)
    ):
        raise DecodeError(f"authentication is not by node {frame.node_id}")
    # The last test: what is not signed must not fill the memory.
    if not memory.admit(frame.nonce, wall):
        raise DecodeError(f"authentication of node {frame.node_id} was seen before")


class NonceMemory:
    """Nonces of the last hour; refuses when full. One serves all channels."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int = MAX_NONCES) -> None:
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._limit = limit

    def admit(self, nonce: bytes, wall: float) -> bool:
        """Remember ``nonce``; tell whether it is new and there was room."""
        seen = self._seen
        while seen and next(iter(seen.values())) + NONCE_MEMORY_S <= wall:
            seen.popitem(last=False)
        if nonce in seen or len(seen) >= self._limit:
            return False
        seen[nonce] = wall
        return True


def _hmac(key: bytes, data: bytes) -> bytes:
    digest = hmac.HMAC(key, hashes.SHA256())
    digest.update(data)
    return digest.finalize()
