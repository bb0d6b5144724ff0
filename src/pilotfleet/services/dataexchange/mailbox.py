"""The inbox and the received files of one agent (services.md section 4.4).

Names and contents are those of the official daemon, so that the official
``pilotctl inbox`` and ``pilotctl received`` read them. What these functions have
returned from is on the disk: only then the sender is told so.

Everything here blocks and belongs into a thread.
"""

from __future__ import annotations

import base64
import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.dataexchange import FrameType, Tags, type_name
from pilotfleet.services.dataexchange.storedfiles import (
    FolderFull,
    FolderLimits,
    StoredFolder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "InboxMessage",
    "Mailbox",
    "MailboxConfig",
    "inbox_content",
    "saved_name",
    "time_stamp",
]

INBOX: Final = "inbox"
RECEIVED: Final = "received"
PARTIAL: Final = ".partial"
_MAX_NAME: Final = 255
"""Bytes of a file name that every usual file system takes."""
_ESCAPES: Final = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
"""What the official daemon writes so; all of it occurs inside strings only."""


@dataclass(frozen=True, slots=True)
class MailboxConfig:
    """What an agent keeps of what it is sent."""

    max_messages: int = 10_000
    """Files in the inbox; the oldest make room."""
    max_inbox_bytes: int = 256 << 20
    """Of the inbox; the oldest messages make room."""
    max_received_bytes: int = 2 << 30
    """Of the received files, unfinished ones included; nothing makes room."""
    always_base64: bool = False
    """Store every message as base64, not just what is no text."""


@dataclass(frozen=True, slots=True)
class InboxMessage:
    """A message as it arrived."""

    frame_type: int
    sender: str
    """Address text."""
    payload: bytes
    tags: Tags


class Mailbox:
    """Where one agent's messages and files are kept; usable by several threads.

    Args:
        home: The agent's folder.
        config: Limits.
        next_number: Counts what this process has stored, over all agents.
        clock: Nanoseconds since 1970.
    """

    __slots__ = ("_clock", "_config", "_inbox", "_next_number", "_received")

    def __init__(
        self,
        home: Path,
        config: MailboxConfig,
        *,
        next_number: Callable[[], int],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._next_number = next_number
        self._clock = clock
        self._inbox = StoredFolder(
            home / INBOX,
            FolderLimits(
                config.max_inbox_bytes, config.max_messages, drops_oldest=True
            ),
        )
        self._received = StoredFolder(
            home / RECEIVED,
            FolderLimits(config.max_received_bytes),
            unfinished=home / RECEIVED / PARTIAL,
        )

    @property
    def inbox(self) -> Path:
        """The folder of messages."""
        return self._inbox.path

    @property
    def received(self) -> StoredFolder:
        """The folder of files, with the unfinished ones in a folder inside."""
        return self._received

    def save_message(self, message: InboxMessage) -> Path:
        """Store a message in the inbox; return where.

        Raises:
            FolderFull: The inbox cannot hold it.
            StorageError: The disk refuses.
        """
        now = self._clock()
        content = inbox_content(message, now, always_base64=self._config.always_base64)
        kind = type_name(message.frame_type)
        try:
            return self._inbox.store(lambda: f"{kind}-{self._stamp(now)}.json", content)
        except FolderFull as error:
            raise _explain(error, "inbox byte budget exceeded") from error

    def save_file(self, name: str, data: bytes | memoryview) -> Path:
        """Store a received file; return where.

        Raises:
            FolderFull: There is no room.
            StorageError: The disk refuses, or the name is none.
        """
        try:
            return self._received.store(lambda: self.next_file_name(name), data)
        except FolderFull as error:
            raise _explain(error, "received-files quota exceeded") from error

    def next_file_name(self, name: str) -> str:
        """Return a new name for a file that was sent as ``name``.

        Raises:
            StorageError: No file can have such a name.
        """
        if "\0" in name:
            raise StorageError("file name holds a zero byte")
        return saved_name(name, self._stamp(self._clock()))

    def _stamp(self, now: int) -> str:
        return f"{time_stamp(now)}-{self._next_number():06}"


def saved_name(name: str, stamp: str) -> str:
    """Return the name under which a file is kept.

    A name that would become too long for the file system loses the end of its
    stem; the official daemon refuses such files.
    """
    stem, dot, extension = name.rpartition(".")
    if not dot:
        stem, extension = name, ""
    tail = f"-{stamp}{dot}{extension}"
    room = _MAX_NAME - len(os.fsencode(tail))
    if room < 0:
        # Nearly all of it is extension: then that has to give way.
        return saved_name(name.replace(".", "_"), stamp)
    # A name may be sent with 64 KiB: most of it goes at once.
    stem = stem[:room]
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + tail


def time_stamp(now_ns: int) -> str:
    """Return local time as in stored names, like ``20261122-135509.008``."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds).strftime("%Y%m%d-%H%M%S")
    return f"{moment}.{rest // 1_000_000:03}"


def inbox_content(
    message: InboxMessage, now_ns: int, *, always_base64: bool = False
) -> bytes:
    """Return what the file of a message holds, byte for byte as official."""
    fields: dict[str, object] = {"bytes": len(message.payload)}
    text = None
    if not always_base64 and message.frame_type != FrameType.BINARY:
        text = _text_of(message.payload)
    if text is None:
        fields["data_b64"] = base64.b64encode(message.payload).decode()
    else:
        fields["data"] = text
    fields["data_encoding"] = "base64" if text is None else "utf8"
    fields["from"] = message.sender
    if message.tags.message_id:
        fields["message_id"] = message.tags.message_id
    fields["received_at"] = _rfc3339(now_ns)
    if message.tags.reply_to:
        fields["reply_to"] = message.tags.reply_to
    fields["type"] = type_name(message.frame_type)
    content = msgspec.json.encode(fields)
    for character, escape in _ESCAPES:
        if character in content:
            content = content.replace(character, escape)
    return content


def _text_of(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _rfc3339(now_ns: int) -> str:
    seconds, rest = divmod(now_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds).astimezone()
    fraction = f".{rest:09}".rstrip("0").rstrip(".")
    offset = moment.strftime("%z")
    offset = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}{offset}"


def _explain(error: FolderFull, what: str) -> FolderFull:
    return FolderFull(f"{what}: {error}", used=error.used, max_bytes=error.max_bytes)
