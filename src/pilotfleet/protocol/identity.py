"""Ed25519 identities and their file form (cli.md section 3.1).

The only place that knows the library: libsodium, because OpenSSL takes twice as long
for each signature and each verification. It accepts what OpenSSL and Go accept, but
for what no honest program makes: keys and points of small order, with which one
signature fits many messages, and keys that are not written in the one canonical way.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from pilotfleet.errors import DecodeError

__all__ = [
    "PUBLIC_KEY_SIZE",
    "SEED_SIZE",
    "SIGNATURE_SIZE",
    "Identity",
    "decode_key_text",
    "encode_key_text",
    "verify",
]

PUBLIC_KEY_SIZE: Final = 32
SEED_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64


class _File(msgspec.Struct):
    private_key: str
    public_key: str


class Identity:
    """An Ed25519 key pair. ``repr`` shows the public part only."""

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise DecodeError(f"identity seed of {len(seed)} bytes, need {SEED_SIZE}")
        self.public_key, self._key = crypto_sign_seed_keypair(seed)

    @classmethod
    def from_json(cls, data: bytes) -> Identity:
        """Read ``identity.json``.

        Raises:
            DecodeError: Not such a file, or its two keys do not belong together.
        """
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(f"identity file: {error}") from None
        private = _decode_base64(file.private_key, "private key")
        public = _decode_base64(file.public_key, "public key")
        if len(private) != SEED_SIZE + PUBLIC_KEY_SIZE:
            raise DecodeError(f"identity file: private key of {len(private)} bytes")
        identity = cls(private[:SEED_SIZE])
        if not identity.public_key == public == private[SEED_SIZE:]:
            raise DecodeError("identity file: public and private key do not match")
        return identity

    def to_json(self) -> bytes:
        """Return the contents of ``identity.json``. Secret: keep it 0600."""
        private = encode_key_text(self._key)
        file = _File(private, encode_key_text(self.public_key))
        return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"

    @property
    def public_key_text(self) -> str:
        """The public key in standard base64, as registry messages carry it."""
        return encode_key_text(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over ``message``."""
        return crypto_sign(message, self._key)[:SIGNATURE_SIZE]

    def sign_text(self, text: str) -> str:
        """Return the base64 signature over ``text``, as messages carry it."""
        return encode_key_text(self.sign(text.encode()))

    def __repr__(self) -> str:
        return f"Identity({self.public_key_text[:8]}…)"


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether ``signature`` over ``message`` is by ``public_key``.

    Works without the interpreter's lock.
    """
    # The library looks at neither size: it reads the key from where it begins, and
    # takes the first bytes of signature and message together for the signature.
    if len(public_key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


def encode_key_text(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def decode_key_text(text: str) -> bytes:
    """Read a base64 public key.

    Raises:
        DecodeError: Not base64, or not 32 bytes.
    """
    key = _decode_base64(text, "public key")
    if len(key) != PUBLIC_KEY_SIZE:
        raise DecodeError(f"public key of {len(key)} bytes, need {PUBLIC_KEY_SIZE}")
    return key


def _decode_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DecodeError(f"{what} is not base64") from None
