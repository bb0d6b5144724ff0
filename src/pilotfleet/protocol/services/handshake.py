"""The trust handshake message on port 444 (trust.md sections 1 and 2).

One connection carries one JSON object. The signature covers the two node numbers
only, so it is the same for every message between two nodes; what keeps a recorded
message from being used again is its timestamp and the receiver's replay memory.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import decode_key_text, verify

if TYPE_CHECKING:
    from pilotfleet.protocol.identity import Identity

__all__ = [
    "HANDSHAKE_PORT",
    "MAX_MESSAGE",
    "READ_TIMEOUT_S",
    "HandshakeMessage",
    "Kind",
    "ReplayMemory",
    "decode_message",
    "encode_message",
    "is_fresh",
    "is_signed_by",
    "make_message",
    "signed_text",
]

# From the specification.
HANDSHAKE_PORT: Final = 444
MAX_MESSAGE: Final = 65_536
READ_TIMEOUT_S: Final = 10.0
MAX_PAST_S: Final = 300
MAX_FUTURE_S: Final = 30
REPLAY_S: Final = 600
MAX_REPLAY: Final = 8192
REVOKE_REASON: Final = "trust revoked"


class Kind(StrEnum):
    """The ``type`` of a message."""

    REQUEST = "handshake_request"
    ACCEPT = "handshake_accept"
    REJECT = "handshake_reject"
    REVOKE = "handshake_revoke"


class HandshakeMessage(msgspec.Struct, frozen=True):
    """One message. All seven keys are always sent, in this order."""

    type: str
    node_id: int
    public_key: str = ""
    justification: str = ""
    signature: str = ""
    reason: str = ""
    timestamp: int = 0


_decoder: Final = msgspec.json.Decoder(HandshakeMessage)
_encoder: Final = msgspec.json.Encoder()


def signed_text(sender: int, receiver: int) -> str:
    """Return the text that a message's signature covers."""
    return f"handshake:{sender}:{receiver}"


def make_message(
    kind: Kind,
    identity: Identity,
    *,
    sender: int,
    receiver: int,
    wall: float,
    justification: str = "",
    reason: str = "",
) -> HandshakeMessage:
    """Return a signed message."""
    return HandshakeMessage(
        type=kind.value,
        node_id=sender,
        public_key=identity.public_key_text,
        justification=justification,
        signature=identity.sign_text(signed_text(sender, receiver)),
        reason=REVOKE_REASON if kind is Kind.REVOKE else reason,
        timestamp=int(wall),
    )


def encode_message(message: HandshakeMessage) -> bytes:
    """Return the JSON text, with ``< > &`` escaped as the reference does."""
    text = _encoder.encode(message)
    for raw, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        text = text.replace(raw, escaped)
    return text


def decode_message(data: bytes) -> HandshakeMessage:
    """Read a message; unknown keys are ignored.

    Raises:
        DecodeError: Not a complete message.
    """
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"handshake message: {error}") from None
    if not 0 < message.node_id <= 0xFFFF_FFFF:
        raise DecodeError(f"handshake message from node {message.node_id}")
    return message


def is_fresh(message: HandshakeMessage, wall: float) -> bool:
    """Tell whether the timestamp is within 300 s behind and 30 s ahead."""
    return wall - MAX_PAST_S <= message.timestamp <= wall + MAX_FUTURE_S


def is_signed_by(message: HandshakeMessage, key_text: str, receiver: int) -> bool:
    """Tell whether the signature is by the base64 key ``key_text``."""
    try:
        signature = base64.b64decode(message.signature, validate=True)
        key = decode_key_text(key_text)
    except (DecodeError, binascii.Error, ValueError):
        return False
    return verify(key, signature, signed_text(message.node_id, receiver).encode())


class ReplayMemory:
    """The messages processed in the last ten minutes; refuses when full."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[object, ...], float] = OrderedDict()

    def admit(self, key: tuple[object, ...], now: float) -> bool:
        """Remember ``key``; tell whether it is new and there was room."""
        seen = self._seen
        while seen and next(iter(seen.values())) + REPLAY_S <= now:
            seen.popitem(last=False)
        if key in seen or len(seen) >= MAX_REPLAY:
            return False
        seen[key] = now
        return True
