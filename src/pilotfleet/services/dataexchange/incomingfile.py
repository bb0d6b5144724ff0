"""A file on its way: its chunks in order, on the disk (services.md section 4.6).

Until it is complete it lies in ``received/.partial`` with the transfer ID as its
name. How long it is says how much of it is there, so a transfer goes on where it
stopped after a lost connection and after the end of this process, however it ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.filestream import Reassembly
from pilotfleet.services.dataexchange.storedfiles import disk_error, make_private
from pilotfleet.transport.files import write_all
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.protocol.services.filestream import Chunk, Complete, Init
    from pilotfleet.services.dataexchange.mailbox import Mailbox
    from pilotfleet.services.dataexchange.storedfiles import Reservation

__all__ = ["HeldBytes", "IncomingFile", "base_name"]

# From the specification.
UNNAMED: Final = "received.bin"
MISMATCH: Final = "sha256 mismatch — file corrupt, .partial retained"

# Of our choosing.
MAX_HELD_BY_ALL: Final = 64 << 20
"""Bytes beyond gaps, of all transfers of a host. Chunks arrive in order from any
sender that we know, so this bounds only what senders do to harm."""
CORRUPT: Final = ".corrupt"
_READ_SIZE: Final = 1 << 20


class HeldBytes:
    """How much all transfers of a host hold beyond gaps."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class IncomingFile:
    """One file on its way; shared by the connections that send it."""

    __slots__ = (
        "_digest",
        "_hashed",
        "_held",
        "_mailbox",
        "_path",
        "_reassembly",
        "_reservation",
        "_written",
        "init",
        "lock",
        "users",
        "verdict",
    )

    def __init__(self, init: Init, mailbox: Mailbox, held: HeldBytes) -> None:
        self.init = init
        self.lock = asyncio.Lock()
        """Held by the one that writes."""
        self.users = 0
        """Connections."""
        self.verdict: Complete | None = None
        self._mailbox = mailbox
        self._held = held
        partial = mailbox.received.unfinished
        assert partial is not None
        self._path: Path = partial / init.transfer_id.hex()
        self._reassembly: Reassembly | None = None
        self._reservation: Reservation | None = None
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._written = 0

    @property
    def count(self) -> int:
        """Bytes that are written, without a gap."""
        return self._written

    async def open(self) -> None:
        """Find out how much of the file is there, and keep room for the rest.

        Raises:
            FolderFull: There is no room.
            StorageError: The disk refuses.
        """
        async with self.lock:
            if self._reassembly is None:
                self._written, self._reservation = await run_blocking(self._open)
                self._reassembly = Reassembly(self.init.size, start=self._written)

    async def add(self, chunks: list[Chunk]) -> None:
        """Write what follows the contiguous part.

        Raises:
            InvalidArgument: A chunk goes beyond the file; those before it are
                written.
            StorageError: The disk refuses.
        """
        async with self.lock:
            reassembly = self._reassembly
            if self.verdict is not None:
                return
            assert reassembly is not None
            pieces: list[bytes | memoryview] = []
            held = reassembly.held_bytes
            try:
                for chunk in chunks:
                    if self._has_room(chunk, reassembly):
                        pieces += reassembly.add(chunk.offset, chunk.data)
            finally:
                self._held.total += reassembly.held_bytes - held
                if pieces:
                    await run_blocking(self._append, pieces)

    def store(self) -> Path:
        """Move the file to where files are kept, if it is the right one. Blocks.

        Raises:
            StorageError: It is not, or the disk refuses.
        """
        with disk_error("read"):
            self._hash_file()
        if self._digest.digest() != self.init.sha256:
            # Out of the way: as the official daemon does it, the next attempt
            # would resume at the end of the same wrong bytes, for ever.
            with disk_error("rename"):
                os.replace(self._path, self._path.with_suffix(CORRUPT))
            raise StorageError(MISMATCH)
        name = base_name(self.init.name)
        return self._mailbox.received.adopt(
            self._path, lambda: self._mailbox.next_file_name(name)
        )

    def close(self) -> None:
        """Free the room that was kept. Idempotent."""
        if self._reservation is not None:
            self._reservation.close()
        if self._reassembly is not None:
            self._held.total -= self._reassembly.held_bytes
            self._reassembly.discard()

    def _has_room(self, chunk: Chunk, reassembly: Reassembly) -> bool:
        is_held = chunk.offset > reassembly.count
        return not is_held or self._held.total < MAX_HELD_BY_ALL

    def _open(self) -> tuple[int, Reservation]:
        with disk_error("open"):
            try:
                have = self._path.stat().st_size
            except FileNotFoundError:
                have = 0
        have = 0 if have > self.init.size else have
        reservation = self._mailbox.received.reserve(self.init.size - have)
        try:
            with disk_error("open"):
                make_private(self._path.parent)
                _prepare(self._path, have)
        except StorageError:
            reservation.close()
            raise
        return have, reservation

    def _append(self, pieces: list[bytes | memoryview]) -> None:
        with disk_error("write"):
            self._hash_file()
            # Not made again if somebody removed it: it would begin with a hole.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != self._written:
                    raise StorageError("write: partial file was changed by others")
                os.lseek(descriptor, self._written, os.SEEK_SET)
                for piece in pieces:
                    write_all(descriptor, piece)
                    self._note_written(piece)
            finally:
                os.close(descriptor)

    def _note_written(self, piece: bytes | memoryview) -> None:
        self._digest.update(piece)
        self._written += len(piece)
        self._hashed = self._written
        if self._reservation is not None:
            self._reservation.fill(len(piece))

    def _hash_file(self) -> None:
        """Hash what an earlier connection wrote."""
        if self._hashed == self._written:
            return
        with open(self._path, "rb") as file:
            while self._hashed < self._written and (part := file.read(_READ_SIZE)):
                self._digest.update(part)
                self._hashed += len(part)


def base_name(name: bytes) -> str:
    """Return the name without folders, never empty; what is no text is kept."""
    last = name.rstrip(b"/").rpartition(b"/")[2]
    return UNNAMED if last in (b"", b".") else os.fsdecode(last)


def _prepare(path: Path, have: int) -> None:
    """Make the file exist with its first ``have`` bytes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        # Also sets its time, so that it is not stale: it is in use again.
        os.ftruncate(descriptor, have)
    finally:
        os.close(descriptor)
