"""What the processes of one daemon tell each other.

One message is one packet between the parent and a process. At most one open
connection goes with it; only :class:`Take` carries one, and always does.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from pilotfleet.errors import DecodeError

__all__ = [
    "MAX_MESSAGE",
    "MAX_PENDING",
    "Addresses",
    "Failed",
    "Message",
    "Progress",
    "Ready",
    "Serving",
    "Take",
    "decode",
    "encode",
]

MAX_MESSAGE: Final = 128 * 1024
MAX_PENDING: Final = 64 * 1024
"""Bytes that a client sent ahead and that move with its connection."""


class Progress(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A process starts, and has registered so many of its agents."""

    done: int
    total: int


class Serving(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first agent of a process is registered: it takes clients."""


class Addresses(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The addresses of some agents of a process; any number before Ready."""

    addresses: dict[str, str]


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """All agents of a process have been started."""

    agents: int
    """Those that are registered."""


class Failed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A process cannot start, and ends."""

    code: str
    message: str
    hint: str = ""


class Take(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A connection for a process: from the parent, or from another process through it.

    Either a client, which that process serves from now on, or a leg: a connection that
    another process made to call operations for a client of its own.
    """

    to: int
    is_leg: bool = False
    agent: str = ""
    """Whom the client has selected; empty for the process's first agent."""
    request: int = 0
    """The id of the request by which it did so, to be answered."""
    pending: bytes = b""
    """What it has sent and nobody has worked on."""


Message: TypeAlias = Progress | Serving | Addresses | Ready | Failed | Take

_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_encoder: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Return the packet of a message."""
    return _encoder.encode(message)


def decode(packet: bytes) -> Message:
    """Read a packet.

    Raises:
        DecodeError: It is none.
    """
    try:
        return _decoder.decode(packet)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"message between processes: {error}") from None
