"""X25519 tunnel keys and the session key made of two of them (wire.md 5.1, 5.2)."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KEY_SIZE", "KeyPair", "derive_session_key"]

# From the specification.
KEY_SIZE: Final = 32
_SALT: Final = bytes(32)
_INFO: Final = b"pilot-tunnel-v1\x01"
"""HKDF info, and the counter byte of its only output block."""


class KeyPair:
    """An X25519 key pair. ``repr`` shows the public part only."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> KeyPair:
        """Make a key pair of fresh random bytes."""
        return cls(random_bytes(KEY_SIZE))

    def session_key(self, peer_public: bytes) -> bytes:
        """Return the AES-256 key shared with the owner of ``peer_public``.

        Raises:
            DecodeError: The key is not 32 bytes or a point of low order.
        """
        try:
            public = X25519PublicKey.from_public_bytes(peer_public)
            # Raises for the all-zero result that low-order points lead to.
            shared = self._private.exchange(public)
        except ValueError:
            raise DecodeError("tunnel key of the peer is not usable") from None
        return derive_session_key(shared)

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()[:8]}…)"


def derive_session_key(shared: bytes) -> bytes:
    """Return HKDF-SHA256 of the X25519 result; the public keys are not mixed in."""
    pseudo_random_key = hmac.digest(_SALT, shared, "sha256")
    return hmac.digest(pseudo_random_key, _INFO, "sha256")
