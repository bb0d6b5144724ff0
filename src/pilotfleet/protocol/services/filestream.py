"""Resumable file transfer inside data exchange (services.md section 4.6).

The payload of a FILESTREAM frame is one of seven messages::

    u8 kind | 16-byte transfer ID | body

The sender opens a transfer with INIT, learns from INIT-ACK how much of the file
the receiver already has, and sends the rest in chunks with at most
:data:`WINDOW_CHUNKS` unacknowledged. DONE asks for the verdict, COMPLETE gives it.
A transfer ID is derived from the file's contents, so the same file resumes where
it stopped, on another connection and after a restart of either side.

:class:`SendWindow` and :class:`Reassembly` are the two sides without I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.services.dataexchange import MAX_FILENAME

__all__ = [
    "CHUNK_SIZE",
    "MAX_HELD",
    "MAX_HELD_CHUNKS",
    "TRANSFER_ID_SIZE",
    "WINDOW_CHUNKS",
    "ZERO_TRANSFER",
    "Abort",
    "Ack",
    "Chunk",
    "Complete",
    "Done",
    "FileStreamMessage",
    "Init",
    "InitAck",
    "Kind",
    "MalformedMessage",
    "Reassembly",
    "SendWindow",
    "decode_file_stream",
    "encode_file_stream",
    "transfer_id_of",
]

# From the specification.
TRANSFER_ID_SIZE: Final = 16
CHUNK_SIZE: Final = 49_152
WINDOW_CHUNKS: Final = 16
"""Unacknowledged chunks of a sender."""
MAX_HELD: Final = WINDOW_CHUNKS * CHUNK_SIZE
"""Bytes beyond a gap that a receiver holds for one transfer."""
MAX_HELD_CHUNKS: Final = 256
"""Of our choosing: a chunk of one byte costs a hundred to remember."""
ZERO_TRANSFER: Final = bytes(TRANSFER_ID_SIZE)
"""Names no transfer: the answer to a payload that is too short for an ID."""

_HEAD: Final = struct.Struct(f"!B{TRANSFER_ID_SIZE}s")
_INIT: Final = struct.Struct("!Q32sIH")
_COUNT: Final = struct.Struct("!Q")


class Kind(IntEnum):
    """The first byte of a message."""

    INIT = 1
    CHUNK = 2
    ACK = 3
    DONE = 4
    INIT_ACK = 5
    COMPLETE = 6
    ABORT = 7


@dataclass(frozen=True, slots=True)
class Init:
    """The sender announces a file."""

    transfer_id: bytes
    size: int
    sha256: bytes
    chunk_size: int
    name: bytes
    """As sent; may be anything, and longer than a sender should send."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of the file."""

    transfer_id: bytes
    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Ack:
    """The receiver has this many bytes without a gap."""

    transfer_id: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Done:
    """The sender has sent everything."""

    transfer_id: bytes


@dataclass(frozen=True, slots=True)
class InitAck:
    """The receiver is ready, and has this many bytes already."""

    transfer_id: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Complete:
    """The receiver's verdict."""

    transfer_id: bytes
    is_ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """Either side gives the transfer up."""

    transfer_id: bytes
    reason: str


FileStreamMessage: TypeAlias = Init | Chunk | Ack | Done | InitAck | Complete | Abort


class MalformedMessage(DecodeError):
    """A message whose body is not valid; the text is what the receiver answers."""

    def __init__(self, kind: str, transfer_id: bytes = ZERO_TRANSFER) -> None:
        super().__init__(f"malformed {kind}")
        self.transfer_id = transfer_id


def transfer_id_of(sha256: bytes) -> bytes:
    """Return the transfer ID for the SHA-256 of a whole file."""
    return sha256[:TRANSFER_ID_SIZE]


def encode_file_stream(message: FileStreamMessage) -> bytes:
    """Return the payload of a FILESTREAM frame.

    Raises:
        InvalidArgument: The name of an INIT is longer than 255 bytes.
    """
    match message:
        case Chunk(transfer, offset, data):
            head = _HEAD.pack(Kind.CHUNK, transfer)
            return b"".join((head, _COUNT.pack(offset), data))
        case Ack(transfer, count):
            return _HEAD.pack(Kind.ACK, transfer) + _COUNT.pack(count)
        case Init():
            return _encode_init(message)
        case Done(transfer):
            return _HEAD.pack(Kind.DONE, transfer)
        case InitAck(transfer, offset):
            return _HEAD.pack(Kind.INIT_ACK, transfer) + _COUNT.pack(offset)
        case Complete(transfer, is_ok, text):
            head = _HEAD.pack(Kind.COMPLETE, transfer)
            return head + (b"\0" if is_ok else b"\1") + text.encode()
        case Abort(transfer, reason):
            return _HEAD.pack(Kind.ABORT, transfer) + reason.encode()


def decode_file_stream(payload: bytes) -> FileStreamMessage:
    """Read the payload of a FILESTREAM frame.

    Raises:
        MalformedMessage: It is too short, or the body of its kind is not valid.
        DecodeError: The kind is unknown.
    """
    if len(payload) < _HEAD.size:
        raise MalformedMessage("stream frame")
    kind, transfer = _HEAD.unpack_from(payload)
    match kind:
        case Kind.CHUNK:
            offset = _count(payload, "CHUNK")
            data = memoryview(payload)[_HEAD.size + _COUNT.size :]
            return Chunk(transfer, offset, data)
        case Kind.ACK:
            return Ack(transfer, _count(payload, "ACK"))
        case Kind.INIT:
            return _decode_init(transfer, payload)
        case Kind.DONE:
            return Done(transfer)
        case Kind.INIT_ACK:
            return InitAck(transfer, _count(payload, "INIT-ACK"))
        case Kind.COMPLETE:
            return _decode_complete(transfer, payload)
        case Kind.ABORT:
            return Abort(transfer, payload[_HEAD.size :].decode(errors="replace"))
    raise DecodeError(f"file stream message of unknown kind {kind}")


def _encode_init(init: Init) -> bytes:
    if len(init.name) > MAX_FILENAME:
        raise InvalidArgument(f"file name of {len(init.name)} bytes (max 255)")
    numbers = _INIT.pack(init.size, init.sha256, init.chunk_size, len(init.name))
    return _HEAD.pack(Kind.INIT, init.transfer_id) + numbers + init.name


def _decode_init(transfer: bytes, payload: bytes) -> Init:
    start = _HEAD.size + _INIT.size
    if len(payload) < start:
        raise MalformedMessage("INIT", transfer)
    size, sha256, chunk_size, name_size = _INIT.unpack_from(payload, _HEAD.size)
    name = payload[start : start + name_size]
    # Longer names than a sender may send are taken, as the official receiver does.
    if len(payload) != start + name_size:
        raise MalformedMessage("INIT", transfer)
    return Init(transfer, size, sha256, chunk_size, name)


def _decode_complete(transfer: bytes, payload: bytes) -> Complete:
    if len(payload) <= _HEAD.size:
        raise MalformedMessage("COMPLETE", transfer)
    text = payload[_HEAD.size + 1 :].decode(errors="replace")
    return Complete(transfer, payload[_HEAD.size] == 0, text)


def _count(payload: bytes, kind: str) -> int:
    if len(payload) < _HEAD.size + _COUNT.size:
        raise MalformedMessage(kind, payload[1 : _HEAD.size])
    count: int = _COUNT.unpack_from(payload, _HEAD.size)[0]
    return count


class SendWindow:
    """What a sender may send next.

    Args:
        size: Length of the file.
        resume: How much the receiver already has; more than the file counts as all.
    """

    __slots__ = ("_acknowledged", "_next", "_size")

    def __init__(self, size: int, *, resume: int = 0) -> None:
        self._size = size
        self._acknowledged = self._next = min(resume, size)

    @property
    def acknowledged(self) -> int:
        """Bytes that the receiver has."""
        return self._acknowledged

    @property
    def is_sent(self) -> bool:
        """Every byte was sent at least once; DONE is next."""
        return self._next >= self._size

    def next_chunk(self) -> tuple[int, int] | None:
        """Return offset and length of the chunk to send, or None to wait for an ACK.

        The chunk counts as sent.
        """
        room = self._acknowledged + MAX_HELD - self._next
        length = min(CHUNK_SIZE, self._size - self._next)
        if length <= 0 or room < length:
            return None
        offset, self._next = self._next, self._next + length
        return offset, length

    def acknowledge(self, count: int) -> None:
        """Take an ACK; one that says less than an earlier one changes nothing.

        Raises:
            DecodeError: It counts bytes that were never sent.
        """
        if count > self._next:
            raise DecodeError(f"ACK of {count} bytes, but only {self._next} were sent")
        self._acknowledged = max(self._acknowledged, count)


class Reassembly:
    """Puts the chunks of one file in order.

    Args:
        size: Length of the file.
        start: How much of it is there already.
    """

    __slots__ = ("_held", "_held_bytes", "count", "size")

    def __init__(self, size: int, *, start: int = 0) -> None:
        self.size = size
        self.count = start
        """Bytes without a gap, from the beginning."""
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Every byte is there."""
        return self.count >= self.size

    @property
    def held_bytes(self) -> int:
        """Bytes beyond a gap."""
        return self._held_bytes

    def add(self, offset: int, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Take a chunk and return what follows the contiguous part now.

        A chunk beyond a gap is held while there is room and dropped otherwise; the
        sender sees from the ACK that it is missing.

        Raises:
            InvalidArgument: The chunk goes beyond the file.
        """
        if offset + len(data) > self.size:
            raise InvalidArgument(
                f"chunk at {offset} of {len(data)} bytes exceeds declared size "
                f"{self.size}"
            )
        if offset > self.count:
            self._hold(offset, data)
            return []
        fresh = data[self.count - offset :]
        if not fresh:
            return []
        pieces: list[bytes | memoryview] = [fresh]
        self.count += len(fresh)
        if self._held:
            pieces += self._release()
        return pieces

    def discard(self) -> None:
        """Drop what is held beyond a gap."""
        self._held.clear()
        self._held_bytes = 0

    def _hold(self, offset: int, data: bytes | memoryview) -> None:
        known = self._held.get(offset, b"")
        added = len(data) - len(known)
        if added <= 0 or self._held_bytes + added > MAX_HELD:
            return
        if not known and len(self._held) >= MAX_HELD_CHUNKS:
            return
        self._held[offset] = bytes(data)
        self._held_bytes += added

    def _release(self) -> list[bytes]:
        pieces = []
        for offset in sorted(self._held):
            if offset > self.count:
                break
            data = self._held.pop(offset)
            self._held_bytes -= len(data)
            if fresh := data[self.count - offset :]:
                pieces.append(fresh)
                self.count += len(fresh)
        return pieces
