"""One file on its way to a peer (services.md sections 4.2 and 4.6).

It goes in acknowledged pieces and resumes where an earlier attempt stopped; for a
receiver that knows no such transfer, in one frame.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.exchange import max_frame, open_exchange
from pilotfleet.cli.failures import NotDelivered
from pilotfleet.cli.mailfolder import size_text
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import (
    ConnectionFailed,
    DecodeError,
    InvalidArgument,
    PilotError,
    StorageError,
    TimedOut,
)
from pilotfleet.protocol.durations import format_duration
from pilotfleet.protocol.services.dataexchange import FrameType, encode_file
from pilotfleet.protocol.services.filestream import (
    CHUNK_SIZE,
    Abort,
    Ack,
    Chunk,
    Complete,
    Done,
    FileStreamMessage,
    Init,
    InitAck,
    SendWindow,
    decode_file_stream,
    encode_file_stream,
    transfer_id_of,
)

if TYPE_CHECKING:
    from pilotfleet.cli.exchange import Exchange
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

__all__ = ["Transfer"]

# From the specification.
INIT_ANSWER_S: Final = 5.0
"""A receiver that is silent for so long knows no file streams."""
ANSWER_S: Final = 60.0

# Of our choosing.
HASH_SIZE: Final = 1 << 20
MAX_ATTEMPTS: Final = 5
RETRY_PAUSE_S: Final = 1.0
PROGRESS_S: Final = 0.2

_FALLBACK_NOTE: Final = (
    "receiver does not support streamed transfer (pre-v1.12.0);"
    " falling back to single-frame TypeFile"
)


class TransferFailed(PilotError):
    """The receiver has not got the file."""

    code = "connection_failed"


class _NoStreams(Exception):
    """The receiver does not know file streams."""


class _Broken(Exception):
    """The stream ended under way; what arrived is kept there."""


class Transfer:
    """One file on its way to one peer."""

    def __init__(
        self,
        context: Context,
        file: BinaryIO,
        name: str,
        peer: Address,
        timeout_s: float,
    ) -> None:
        self._context = context
        self._file = file
        self._name = name
        self._peer = peer
        self._timeout_s = timeout_s
        self._deadline = Deadline(timeout_s)
        self._size = os.fstat(file.fileno()).st_size
        self._progress = _Progress(context, name, peer, self._size)
        self._sent = 0

    def send_streamed(self) -> dict[str, Any] | None:
        """Send in pieces; return nothing when the receiver does not know how.

        A stream that breaks is opened again while there is time, and the transfer
        goes on where it stopped.
        """
        digest = self._hash()
        started = time.perf_counter()
        resumed: int | None = None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                resumed = self._stream_once(digest)
                break
            except _NoStreams:
                self._context.output.note(_FALLBACK_NOTE)
                return None
            except TimedOut as error:
                limit = format_duration(self._timeout_s)
                reason = "waiting for receiver to verify and COMPLETE"
                raise self._failed(f"timed out after {limit} {reason}") from error
            except (ConnectionFailed, _Broken) as error:
                self._prepare_retry(attempt, error)
            finally:
                self._progress.clear()
        return {
            **self._summary(started, self._sent),
            "bytes_sent": self._sent,
            "bytes_resumed": resumed,
            "sha256": digest.hex(),
            "transport": "filestream",
            "verified": True,
        }

    def send_whole(self) -> dict[str, Any]:
        """Send in a single frame.

        Raises:
            InvalidArgument: The file does not fit.
            NotDelivered: The receiver refused it.
        """
        if self._size > max_frame():
            raise InvalidArgument(
                f"{self._name} has {size_text(self._size)}, and a single frame at most"
                f" {size_text(max_frame())}",
                hint="send it without --no-stream",
            )
        started = time.perf_counter()
        payload = encode_file(self._name, self._read(0, self._size))
        try:
            with self._open() as exchange:
                exchange.send(FrameType.FILE, payload, deadline=self._deadline)
                answer = exchange.receive_text(self._deadline)
        except TimedOut as error:
            limit = format_duration(self._timeout_s)
            raise TimedOut(
                f"send-file timed out waiting for ACK from {self._peer} after {limit}",
                hint=f"the receiver did not ACK within {limit} · check reachability:"
                f" pilotctl ping {self._peer} · for very large files try --timeout 5m",
            ) from error
        if not answer.startswith("ACK "):
            raise NotDelivered(printable(f"receiver rejected file: {answer}"))
        return {**self._summary(started, self._size), "ack": answer}

    # One attempt.

    def _prepare_retry(self, attempt: int, error: Exception) -> None:
        """Wait for the next attempt, or raise when there is none."""
        if attempt == 1 and isinstance(error, ConnectionFailed):
            # It was not a transfer that broke; there never was one.
            raise error
        if attempt == MAX_ATTEMPTS or self._deadline.has_passed:
            raise self._failed(str(error)) from error
        time.sleep(self._deadline.within(RETRY_PAUSE_S).remaining or 0.0)
        # The daemon itself may be a new one.
        self._context.close()

    def _stream_once(self, digest: bytes) -> int:
        """Send what the receiver lacks; return how much it had already."""
        self._sent = 0
        with self._open() as exchange:
            try:
                window = self._begin(exchange, digest)
                start = window.acknowledged
                self._send_chunks(exchange, transfer_id_of(digest), window)
                self._finish(exchange, transfer_id_of(digest), window)
            except ConnectionFailed as error:
                raise _Broken(str(error)) from error
        return start

    def _open(self) -> Exchange:
        return open_exchange(
            self._context, self._peer, target=str(self._peer), deadline=self._deadline
        )

    def _begin(self, exchange: Exchange, digest: bytes) -> SendWindow:
        """Announce the file and learn from where to send."""
        name = os.fsencode(self._name)
        transfer = transfer_id_of(digest)
        init = Init(transfer, self._size, digest, CHUNK_SIZE, name)
        self._send(exchange, init)
        try:
            frame = exchange.receive(self._deadline.within(INIT_ANSWER_S))
        except TimedOut as error:
            if self._deadline.has_passed:
                raise
            raise _NoStreams from error
        if frame.type != FrameType.FILESTREAM:
            raise _NoStreams
        answer = self._understand(frame.payload)
        if not isinstance(answer, InitAck):
            raise self._failed("the receiver's answer to INIT is not INIT-ACK")
        return SendWindow(self._size, resume=answer.offset)

    def _send_chunks(
        self, exchange: Exchange, transfer: bytes, window: SendWindow
    ) -> None:
        while not window.is_sent:
            piece = window.next_chunk()
            if piece is None:
                self._take_ack(exchange, window)
                continue
            offset, length = piece
            self._send(exchange, Chunk(transfer, offset, self._read(offset, length)))
            self._sent += length
            self._progress.show(window.acknowledged)

    def _finish(self, exchange: Exchange, transfer: bytes, window: SendWindow) -> None:
        self._send(exchange, Done(transfer))
        while not self._take_ack(exchange, window):
            self._progress.show(window.acknowledged)

    def _take_ack(self, exchange: Exchange, window: SendWindow) -> bool:
        """Take the next answer; tell whether it completes the transfer."""
        try:
            frame = exchange.receive(self._deadline.within(ANSWER_S))
        except TimedOut as error:
            if self._deadline.has_passed:
                raise
            raise _Broken(f"no answer within {format_duration(ANSWER_S)}") from error
        if frame.type != FrameType.FILESTREAM:
            raise self._failed(f"the receiver sent a frame of type {frame.type}")
        answer = self._understand(frame.payload)
        if isinstance(answer, Ack):
            try:
                window.acknowledge(answer.count)
            except DecodeError as error:
                raise self._failed(str(error)) from error
        return isinstance(answer, Complete)

    def _understand(self, payload: bytes) -> FileStreamMessage:
        """Read an answer of the receiver; a refusal is an error."""
        try:
            answer = decode_file_stream(payload)
        except DecodeError as error:
            raise self._failed(f"the receiver's answer: {error}") from error
        if isinstance(answer, Complete) and not answer.is_ok:
            raise self._failed(f"receiver: {answer.message}")
        if isinstance(answer, Abort):
            raise self._failed(f"receiver aborted: {answer.reason}")
        return answer

    def _send(self, exchange: Exchange, message: FileStreamMessage) -> None:
        payload = encode_file_stream(message)
        exchange.send(FrameType.FILESTREAM, payload, deadline=self._deadline)

    # The file.

    def _hash(self) -> bytes:
        import hashlib

        digest = hashlib.sha256()
        offset = 0
        while offset < self._size:
            data = self._read(offset, min(HASH_SIZE, self._size - offset))
            digest.update(data)
            offset += len(data)
        return digest.digest()

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) < length:
            raise StorageError(f"{self._name} became shorter while it was sent")
        return data

    # Results.

    def _summary(self, started: float, sent: int) -> dict[str, Any]:
        elapsed = time.perf_counter() - started
        return {
            "filename": self._name,
            "bytes": self._size,
            "destination": str(self._peer),
            "elapsed_ms": round(elapsed * 1000),
            "throughput_mbps": sent * 8 / elapsed / 1e6 if sent else 0,
        }

    def _failed(self, reason: str) -> TransferFailed:
        return TransferFailed(
            printable(f"streamed send-file failed: {reason}"),
            hint=f"check reachability: pilotctl ping {self._peer} · for very"
            " large/slow links raise --timeout",
        )


class _Progress:
    """A line on the terminal that rewrites itself; nothing anywhere else."""

    def __init__(self, context: Context, name: str, peer: Address, size: int) -> None:
        self._is_on = not context.json and sys.stderr.isatty()
        self._label = printable(f"sending {name} to {peer}")
        self._size = size
        self._started = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        """Say how much the receiver has."""
        now = time.monotonic()
        if not self._is_on or now - self._shown < PROGRESS_S:
            return
        self._shown = now
        percent = 100 * done // max(1, self._size)
        self._write(
            f"\r{self._label}… {percent}% of {size_text(self._size)}"
            f" {int(now - self._started)}s\x1b[K"
        )

    def clear(self) -> None:
        """Remove the line."""
        if self._is_on:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
