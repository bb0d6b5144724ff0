"""The folders of messages and files that a node received, as they lie on disk.

services.md section 4.4 says how a daemon, ours or an official one, names and fills
the files. Everything in them came from other nodes, so a file that is not what it
should be is passed over, and text is cleaned before a terminal sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.errors import (
    DecodeError,
    InvalidArgument,
    NotFound,
    NotRunning,
    NotSupported,
    PilotError,
    StorageError,
)
from pilotfleet.protocol.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.cli.invocation import Context

__all__ = [
    "Folders",
    "age_text",
    "file_times",
    "is_inbox_id",
    "list_folder",
    "mail_folders",
    "message_ids",
    "read_message",
    "received_at",
    "remove_files",
    "sender_of",
    "size_text",
    "try_message",
]

_SUFFIX: Final = ".json"
_INBOX_ID: Final = re.compile(r"[A-Z]+-[0-9]{8}-[0-9]{6}\.[0-9]{3}(-[0-9]+)?")


class Folders(NamedTuple):
    """Where one node's mail lies."""

    inbox: str
    received: str


def mail_folders(context: Context) -> Folders:
    """Return the selected agent's folders.

    Our daemon says where they are. Without a daemon, or with an official one, they
    are below the home folder.

    Raises:
        NotRunning: An agent was selected and no daemon says where its folders are.
        NotSupported: An agent was selected and the daemon is an official one.
    """
    home = os.path.join(os.path.expanduser("~"), ".pilot")
    usual = Folders(os.path.join(home, "inbox"), os.path.join(home, "received"))
    try:
        places = context.daemon().call("mailbox")
    except (NotRunning, NotSupported):
        if context.agent is not None:
            raise
        return usual
    inbox, received = places.get("inbox"), places.get("received")
    return Folders(
        inbox if isinstance(inbox, str) else usual.inbox,
        received if isinstance(received, str) else usual.received,
    )


def list_folder(path: str) -> list[str] | None:
    """Return the names in a folder, none when there is no such folder.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise StorageError(f"read directory: open {path}: {reason}") from error


# Messages.


def is_inbox_id(text: str) -> bool:
    """Tell whether a text has the form of a message's file name."""
    return _INBOX_ID.fullmatch(text) is not None


def message_ids(names: Iterable[str]) -> list[str]:
    """Return the IDs of the messages among file names, newest first."""
    ids = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    # Names begin with the type; the time and the counter follow the first dash.
    return sorted(ids, key=lambda each: each[each.find("-") + 1 :], reverse=True)


def read_message(inbox: str, message_id: str) -> dict[str, Any]:
    """Return the record of one message.

    Raises:
        InvalidArgument: The ID is none, but a way out of the folder.
        NotFound: There is no such message.
        StorageError: The file cannot be read, or holds something else.
    """
    if message_id == ".." or "/" in message_id or "\0" in message_id:
        raise InvalidArgument(f'invalid message id "{message_id}"')
    try:
        with open(os.path.join(inbox, message_id + _SUFFIX), "rb") as file:
            record = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, UnicodeEncodeError):
        record = None
    except OSError as error:
        raise StorageError(f"read message: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"parse message: {error}") from error
    if record is None:
        raise NotFound(f'no message "{message_id}" — list ids with: pilotctl inbox')
    if not isinstance(record, dict):
        raise StorageError("parse message: not an object")
    return record


def try_message(inbox: str, message_id: str) -> dict[str, Any] | None:
    """Return the record of one message, none when there is no readable one."""
    try:
        return read_message(inbox, message_id)
    except PilotError:
        return None


def sender_of(record: dict[str, Any]) -> int | None:
    """Return the number of the node that a message is from."""
    try:
        return Address.parse(str(record.get("from"))).node
    except DecodeError:
        return None


def received_at(record: dict[str, Any]) -> float | None:
    """Return when a message arrived, in seconds since 1970."""
    from datetime import datetime

    value = record.get("received_at")
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return None


# Files.


def file_times(folder: str, names: Iterable[str]) -> list[tuple[float, str, int]]:
    """Return time of change, name and size of the regular files, newest first."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, name, status.st_size))
    return sorted(found, reverse=True)


def remove_files(folder: str, names: Iterable[str]) -> int:
    """Delete files and return how many there were.

    Raises:
        StorageError: One cannot be deleted.
    """
    removed = 0
    for name in names:
        try:
            os.unlink(os.path.join(folder, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot delete {name}: {error.strerror}") from error
        removed += 1
    return removed


# Text for people.


def age_text(seconds: float | None) -> str:
    """Return how long ago a time since 1970 was: ``5s ago``, ``2h3m ago``."""
    if seconds is None:
        return "time unknown"
    age = max(0, int(time.time() - seconds))
    minutes, rest = divmod(age, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d ago"
    if hours:
        return f"{hours}h{minutes}m ago"
    return f"{minutes}m{rest}s ago" if minutes else f"{rest}s ago"


def size_text(size: Any) -> str:
    """Return a number of bytes as people read it: ``11 B``, ``2.9 MB``."""
    if not isinstance(size, int):
        return "size unknown"
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KB", "MB", "GB"):
        value /= 1024
        if value < 1024 or unit == "GB":
            break
    return f"{value:.1f} {unit}"
