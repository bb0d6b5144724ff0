"""Signed request envelopes (ipc.md section 9, registry.md section 6.17).

A node proves to a third party that a request comes from it by signing a text that
names its address, the time, a nonce, the body's digest and the audience.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_SKEW_S", "Envelope", "body_digest"]

DEFAULT_SKEW_S: Final = 300
"""How far an envelope's time may be off, in both directions."""

_PREFIX: Final = "pilot-req-v1"
_TEXT: Final = re.compile(
    r"pilot-req-v1\|([0-9a-fA-F]{4})([0-9a-fA-F]{8})\|(0|[1-9][0-9]{0,14})"
    r"\|([0-9a-f]{16})\|([0-9a-f]{64})\|([a-z0-9.-]{1,64})",
    re.ASCII,
)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NONCE: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_AUDIENCE: Final = re.compile(r"[a-z0-9.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an envelope states."""

    address: Address
    timestamp: int
    nonce: str
    body_hash: str
    audience: str

    @classmethod
    def parse(cls, text: str) -> Envelope:
        """Read an envelope text.

        Raises:
            DecodeError: Not an envelope.
        """
        match = _TEXT.fullmatch(text) if len(text) <= 256 else None
        if match is None:
            raise DecodeError("malformed envelope")
        address = Address(int(match[1], 16), int(match[2], 16))
        return cls(address, int(match[3]), match[4], match[5], match[6])

    @property
    def text(self) -> str:
        """The exact text that is signed."""
        network, node = self.address
        return (
            f"{_PREFIX}|{network:04x}{node:08x}|{self.timestamp}"
            f"|{self.nonce}|{self.body_hash}|{self.audience}"
        )


def body_digest(request: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Check a SignEnvelope request; return audience, body hash and nonce.

    Raises:
        DecodeError: With the daemon's texts for what is missing.
    """
    audience = _text(request, "audience")
    body_hash, body = _text(request, "body_hash"), _text(request, "body_b64")
    nonce = _text(request, "nonce")
    if not audience:
        raise DecodeError("audience required")
    if not _AUDIENCE.fullmatch(audience):
        raise DecodeError("audience must be 1-64 of a-z 0-9 . -")
    if body_hash and body:
        raise DecodeError("body_hash and body_b64 are mutually exclusive")
    if not body_hash and "body_b64" not in request:
        raise DecodeError("body_hash or body_b64 required")
    if body_hash and not _HASH.fullmatch(body_hash):
        raise DecodeError("body_hash must be 64 lower-case hex digits")
    if nonce and not _NONCE.fullmatch(nonce):
        raise DecodeError("nonce must be 16 lower-case hex digits")
    return audience, body_hash or _hash_base64(body), nonce or None


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str):
        raise DecodeError(f"bad payload: {key} must be a text")
    return value


def _hash_base64(text: str) -> str:
    try:
        body = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DecodeError("bad payload: body_b64 is not base64") from None
    return hashlib.sha256(body).hexdigest()
