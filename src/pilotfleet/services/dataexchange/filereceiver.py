"""The receiving side of file streams (services.md section 4.6).

One :class:`FileReceiver` keeps the transfers of an agent that are under way. Two
connections that send the same file feed one transfer, and both get the verdict.
Each connection has a :class:`FileStreamSession`.

The chunks that came in one read are written and acknowledged together.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError, InvalidArgument, StorageError
from pilotfleet.protocol.services.filestream import (
    Abort,
    Ack,
    Chunk,
    Complete,
    Done,
    Init,
    InitAck,
    MalformedMessage,
    decode_file_stream,
)
from pilotfleet.services.dataexchange.incomingfile import HeldBytes, IncomingFile
from pilotfleet.services.dataexchange.storedfiles import FolderFull
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pilotfleet.protocol.services.filestream import FileStreamMessage
    from pilotfleet.services.dataexchange.mailbox import Mailbox

__all__ = ["FileReceiver", "FileStreamSession"]

logger = logging.getLogger(__name__)

NO_TRANSFER: Final = "no active transfer"
"""From the specification."""
MAX_TRANSFERS: Final = 16
"""At the same time on one connection; the official sender has one."""


class FileReceiver:
    """The transfers to one agent.

    Args:
        mailbox: Where files go.
        report: Told of events, as ``Agent.report``.
        held: Shared by the receivers of a host.
    """

    def __init__(
        self, mailbox: Mailbox, report: Callable[..., None], held: HeldBytes
    ) -> None:
        self._mailbox = mailbox
        self._report = report
        self._held = held
        self._active: dict[bytes, IncomingFile] = {}

    def open_session(self) -> FileStreamSession:
        """Return the state of a new connection."""
        return FileStreamSession(self)

    async def join(self, init: Init) -> IncomingFile:
        """Return the transfer that an INIT names, and make it if need be.

        Raises:
            StorageError: It cannot be received.
        """
        transfer = self._active.get(init.transfer_id)
        if transfer is None:
            transfer = IncomingFile(init, self._mailbox, self._held)
            self._active[init.transfer_id] = transfer
        elif (transfer.init.size, transfer.init.sha256) != (init.size, init.sha256):
            # Else one sender could make another's file the wrong one.
            raise StorageError("transfer is active with another size or hash")
        transfer.init = init
        transfer.users += 1
        try:
            await transfer.open()
        except FolderFull as error:
            self.leave(transfer)
            self._report(
                "received.full",
                type="FILESTREAM",
                frame_bytes=init.size,
                max_bytes=error.max_bytes,
            )
            raise StorageError(
                f"receiver disk quota exceeded: need {init.size}, "
                f"{max(0, error.max_bytes - error.used)} of {error.max_bytes} available"
            ) from error
        except BaseException:
            self.leave(transfer)
            raise
        return transfer

    def leave(self, transfer: IncomingFile) -> None:
        """Let go of a transfer; what is written of it stays."""
        transfer.users -= 1
        if not transfer.users:
            self.forget(transfer)

    def forget(self, transfer: IncomingFile) -> None:
        """Begin anew with the next INIT for this file."""
        transfer.close()
        if self._active.get(transfer.init.transfer_id) is transfer:
            del self._active[transfer.init.transfer_id]

    async def finish(self, transfer: IncomingFile) -> Complete:
        """Give the verdict on a transfer of which every byte is there."""
        async with transfer.lock:
            if transfer.verdict is None:
                transfer.verdict = await self._judge(transfer)
                self.forget(transfer)
        return transfer.verdict

    async def _judge(self, transfer: IncomingFile) -> Complete:
        transfer_id = transfer.init.transfer_id
        try:
            stored = await run_blocking(transfer.store)
        except StorageError as error:
            return Complete(transfer_id, False, str(error))
        name = os.fsencode(stored.name).decode(errors="replace")
        path = os.fsencode(stored).decode(errors="replace")
        self._report("file.received", filename=name, size=transfer.init.size, path=path)
        return Complete(transfer_id, True)


class FileStreamSession:
    """The file streams of one connection."""

    def __init__(self, receiver: FileReceiver) -> None:
        self._receiver = receiver
        self._open: dict[bytes, IncomingFile] = {}

    async def receive(self, payloads: Iterable[bytes]) -> list[FileStreamMessage]:
        """Take the payloads of frames that arrived together; return the answers.

        Chunks of one transfer in a row get one answer.
        """
        answers: list[FileStreamMessage] = []
        chunks: list[Chunk] = []
        for payload in payloads:
            message = _decode(payload)
            if chunks and not _continues(chunks, message):
                answers.append(await self._write(chunks))
                chunks = []
            if isinstance(message, Chunk):
                chunks.append(message)
            else:
                answers += await self._answer(message)
        if chunks:
            answers.append(await self._write(chunks))
        return answers

    def close(self) -> None:
        """Let go of all transfers; what is written of them stays."""
        while self._open:
            self._receiver.leave(self._open.popitem()[1])

    async def _answer(
        self, message: FileStreamMessage | DecodeError
    ) -> list[FileStreamMessage]:
        match message:
            case Init():
                return [await self._begin(message)]
            case Done(transfer_id):
                return [await self._finish(transfer_id)]
            case MalformedMessage(transfer_id=transfer_id):
                return [Complete(transfer_id, False, str(message))]
            case Abort(transfer_id, reason):
                logger.debug("sender gave file stream up: %s", reason)
                self._drop(transfer_id)
        # Anything else, also what is of an unknown kind, gets no answer.
        return []

    async def _begin(self, init: Init) -> FileStreamMessage:
        transfer = self._open.get(init.transfer_id)
        if transfer is not None and transfer.verdict is not None:
            # Another connection finished it; this one starts over.
            self._drop(init.transfer_id)
            transfer = None
        if transfer is None and len(self._open) >= MAX_TRANSFERS:
            reason = f"{MAX_TRANSFERS} transfers on one connection are enough"
            return Complete(init.transfer_id, False, reason)
        try:
            joined = await self._receiver.join(init)
        except StorageError as error:
            return Complete(init.transfer_id, False, str(error))
        if joined is transfer:
            joined.users -= 1
        self._open[init.transfer_id] = joined
        return InitAck(init.transfer_id, joined.count)

    async def _write(self, chunks: list[Chunk]) -> FileStreamMessage:
        transfer_id = chunks[0].transfer_id
        transfer = self._open.get(transfer_id)
        if transfer is None:
            return Abort(transfer_id, f"{NO_TRANSFER} (send INIT first)")
        try:
            await transfer.add(chunks)
        except InvalidArgument as error:
            return Complete(transfer_id, False, str(error))
        except StorageError as error:
            # For all connections that send this file.
            transfer.verdict = Complete(transfer_id, False, str(error))
            self._receiver.forget(transfer)
        verdict = transfer.verdict
        if verdict is not None and not verdict.is_ok:
            self._drop(transfer_id)
            return verdict
        return Ack(transfer_id, transfer.count)

    async def _finish(self, transfer_id: bytes) -> Complete:
        transfer = self._open.get(transfer_id)
        if transfer is None:
            return Complete(transfer_id, False, NO_TRANSFER)
        if transfer.count < transfer.init.size:
            have = f"have {transfer.count} of {transfer.init.size} bytes"
            return Complete(transfer_id, False, f"incomplete: {have}")
        verdict = await self._receiver.finish(transfer)
        self._drop(transfer_id)
        return verdict

    def _drop(self, transfer_id: bytes) -> None:
        transfer = self._open.pop(transfer_id, None)
        if transfer is not None:
            self._receiver.leave(transfer)


def _decode(payload: bytes) -> FileStreamMessage | DecodeError:
    try:
        return decode_file_stream(payload)
    except DecodeError as error:
        return error


def _continues(chunks: list[Chunk], message: object) -> bool:
    return isinstance(message, Chunk) and message.transfer_id == chunks[0].transfer_id
