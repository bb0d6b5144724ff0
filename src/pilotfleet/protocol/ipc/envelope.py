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

__all__ = ["DEFAULT_SKEW_S", "Envelope", "body_digest", "decode_base64"]

DEFAULT_SKEW_S: Final = 300
"""How far an envelope's time may be off, in both directions."""

_PREFIX: Final = "pilot-req-v1"
_FIELDS: Final = ("domain", "address", "time", "nonce", "body hash", "audience")
_ADDRESS: Final = re.compile(r"([0-9a-f]{4})([0-9a-f]{8})", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NONCE: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_AUDIENCE: Final = re.compile(r"[a-z0-9.-]*", re.ASCII)
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]", re.ASCII)
_MAX_TIMESTAMP: Final = (1 << 63) - 1
MAX_AUDIENCE: Final = 64
MAX_TEXT: Final = 512
"""What is longer is not looked at."""


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
        fields = text.split("|") if len(text) <= MAX_TEXT else []
        # The order and the words of the official daemon.
        if len(fields) != len(_FIELDS):
            raise DecodeError(f"reqsig: want 6 fields, got {max(len(fields), 1)}")
        prefix, address, timestamp, nonce, body_hash, audience = fields
        if prefix != _PREFIX:
            raise DecodeError(f'reqsig: bad domain "{prefix}"')
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise DecodeError("reqsig: address must be 12 lowercase hex chars")
        seconds = _timestamp(timestamp)
        _check(nonce=nonce, body_hash=body_hash, audience=audience)
        parsed = Address(int(match[1], 16), int(match[2], 16))
        return cls(parsed, seconds, nonce, body_hash, audience)

    def check_time(self, wall: float, skew_s: int) -> None:
        """Check that the envelope is of now.

        Raises:
            DecodeError: Its time is more than ``skew_s`` away from ``wall``.
        """
        if abs(wall - self.timestamp) > skew_s:
            raise DecodeError(
                f"reqsig: envelope timestamp outside ±{_window(skew_s)} window"
            )

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
    if body_hash and body:
        raise DecodeError("body_hash and body_b64 are mutually exclusive")
    if not body_hash and not body:
        raise DecodeError("body_hash or body_b64 required")
    if body:
        body_hash = hashlib.sha256(decode_base64(body, "body_b64")).hexdigest()
    _check(nonce=nonce or None, body_hash=body_hash, audience=audience)
    return audience, body_hash, nonce or None


def decode_base64(text: str, what: str) -> bytes:
    """Read standard base64; line ends in it mean nothing.

    Raises:
        DecodeError: It is none; the message says where, as the reference's does.
    """
    text = text.replace("\r", "").replace("\n", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        bad = _NOT_BASE64.search(text.rstrip("="))
        position = bad.start() if bad else len(text.rstrip("=")) // 4 * 4
        raise DecodeError(
            f"{what} not base64: illegal base64 data at input byte {position}"
        ) from None


def _check(*, nonce: str | None, body_hash: str, audience: str) -> None:
    if nonce is not None and not _NONCE.fullmatch(nonce):
        raise DecodeError("reqsig: nonce must be 16 lowercase hex chars")
    if not _HASH.fullmatch(body_hash):
        raise DecodeError("reqsig: body hash must be 64 lowercase hex chars")
    if not 1 <= len(audience) <= MAX_AUDIENCE:
        raise DecodeError("reqsig: audience must be 1-64 chars")
    if not _AUDIENCE.fullmatch(audience):
        raise DecodeError("reqsig: audience must match [a-z0-9.-]")


def _timestamp(text: str) -> int:
    if not text:
        raise DecodeError("reqsig: timestamp: empty")
    if not (text.isascii() and text.isdigit()):
        raise DecodeError("reqsig: timestamp: non-digit")
    if text[0] == "0" and text != "0":
        raise DecodeError("reqsig: timestamp: leading zero")
    seconds = int(text)
    if seconds > _MAX_TIMESTAMP:
        raise DecodeError("reqsig: timestamp: value out of range")
    return seconds


def _window(seconds: int) -> str:
    """Return a duration as the reference prints it: 10s, 5m0s, 24h0m0s."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str):
        raise DecodeError(f"bad payload: {key} must be a text")
    return value
