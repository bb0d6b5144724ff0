"""Selective acknowledgements: the payload of a pure ACK (wire.md section 11.7).

The wire does not tell SACK from data by anything but the first bytes. So there
are two tests. :func:`is_sack` is the strict one, for what we receive: all known
senders emit exactly the stated blocks. :func:`looks_like_sack` is the loose one
of the reference receiver, and no data segment we send may satisfy it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_BLOCKS",
    "Block",
    "decode_sack",
    "encode_sack",
    "is_sack",
    "looks_like_sack",
]

# From the specification.
MAGIC: Final = b"SACK"
MAX_BLOCKS: Final = 4

_BLOCK: Final = struct.Struct("!II")
_COUNT_OFFSET: Final = len(MAGIC)
_BLOCKS_OFFSET: Final = _COUNT_OFFSET + 1

Block: TypeAlias = tuple[int, int]
"""First sequence number held, and the first one after it that is not."""


def encode_sack(blocks: Sequence[Block]) -> bytes:
    """Return the payload for one to four ascending blocks."""
    assert 1 <= len(blocks) <= MAX_BLOCKS
    packed = [_BLOCK.pack(left, right) for left, right in blocks]
    return b"".join((MAGIC, bytes((len(blocks),)), *packed))


def decode_sack(payload: bytes) -> list[Block]:
    """Read the blocks; bytes after them are ignored.

    Raises:
        DecodeError: The payload is not SACK.
    """
    if not looks_like_sack(payload):
        raise DecodeError(f"payload of {len(payload)} bytes is not SACK")
    end = _BLOCKS_OFFSET + payload[_COUNT_OFFSET] * _BLOCK.size
    return [
        _BLOCK.unpack_from(payload, offset)
        for offset in range(_BLOCKS_OFFSET, end, _BLOCK.size)
    ]


def is_sack(payload: bytes) -> bool:
    """Return whether a received payload is SACK and nothing else."""
    return (
        payload.startswith(MAGIC)
        and looks_like_sack(payload)
        and len(payload) == _BLOCKS_OFFSET + payload[_COUNT_OFFSET] * _BLOCK.size
    )


def looks_like_sack(payload: bytes) -> bool:
    """Return whether some receiver would take this payload for SACK."""
    if not payload.startswith(MAGIC) or len(payload) < _BLOCKS_OFFSET:
        return False
    count = payload[_COUNT_OFFSET]
    size = _BLOCKS_OFFSET + count * _BLOCK.size
    return 1 <= count <= MAX_BLOCKS and len(payload) >= size
