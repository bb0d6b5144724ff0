"""Tunnel frames: the datagrams that begin with four ASCII letters (wire.md 4, 6.1).

The sealed frame is built and opened in `session`, next to its cipher; this module
holds its layout and the key exchange frames.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol import identity

if TYPE_CHECKING:
    from pilotfleet.protocol.identity import Identity

__all__ = [
    "AUTHENTICATED",
    "KEY_REQUEST",
    "MAGIC_SIZE",
    "NODE_END",
    "NONCE_END",
    "PREFIX_END",
    "PUNCH",
    "SEALED",
    "SEALED_MIN",
    "KeyExchange",
    "decode_key_exchange",
    "encode_authenticated",
    "encode_key_request",
]

# From the specification.
AUTHENTICATED: Final = b"PILA"
KEY_REQUEST: Final = b"PILK"
SEALED: Final = b"PILS"
PUNCH: Final = b"PILP"
"""The whole punch packet: 1.18.0 sends the four letters and nothing else."""

MAGIC_SIZE: Final = 4
NODE_END: Final = 8
"""In every frame with a sender, its node id ends here."""
PREFIX_END: Final = 12
NONCE_END: Final = 20
SEALED_MIN: Final = 36

_KEY_REQUEST: Final = struct.Struct("!4sI32s")
_AUTHENTICATED: Final = struct.Struct("!4sI32s32s64s")
_PROOF: Final = struct.Struct("!4sI32s")
_PROOF_LABEL: Final = b"auth"
"""Without a colon: documents that write ``auth:`` are wrong (section 6.1)."""


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """A PILA, or a PILK when the identity key is missing."""

    node: int
    tunnel_key: bytes
    """The sender's X25519 public key."""
    identity_key: bytes | None = None
    """The sender's Ed25519 public key, worth nothing unless the registry agrees."""
    signature: bytes = b""

    def is_signed_by(self, public_key: bytes) -> bool:
        """Tell whether the frame was signed with this Ed25519 key."""
        message = _signed_message(self.node, self.tunnel_key)
        return identity.verify(public_key, self.signature, message)


def encode_authenticated(node: int, tunnel_key: bytes, signer: Identity) -> bytes:
    """Return a PILA."""
    signature = signer.sign(_signed_message(node, tunnel_key))
    return _AUTHENTICATED.pack(
        AUTHENTICATED, node, tunnel_key, signer.public_key, signature
    )


def encode_key_request(node: int, tunnel_key: bytes) -> bytes:
    """Return a PILK."""
    return _KEY_REQUEST.pack(KEY_REQUEST, node, tunnel_key)


def decode_key_exchange(frame: bytes) -> KeyExchange:
    """Read a PILA or PILK; bytes past its fixed length are ignored.

    Raises:
        DecodeError: Neither of the two, or too short.
    """
    magic = frame[:MAGIC_SIZE]
    if magic == AUTHENTICATED and len(frame) >= _AUTHENTICATED.size:
        return KeyExchange(*_AUTHENTICATED.unpack_from(frame)[1:])
    if magic == KEY_REQUEST and len(frame) >= _KEY_REQUEST.size:
        return KeyExchange(*_KEY_REQUEST.unpack_from(frame)[1:])
    raise DecodeError(f"{len(frame)} bytes are not a key exchange frame")


def _signed_message(node: int, tunnel_key: bytes) -> bytes:
    return _PROOF.pack(_PROOF_LABEL, node, tunnel_key)
