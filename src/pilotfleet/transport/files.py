"""Files that a power failure finds either old or new, never half written."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["replace_file", "sync", "write_all"]


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file, only this user's unless ``mode`` says otherwise. Blocks.

    Afterwards it is on the disk, and so is its name.

    Raises:
        OSError: The disk refuses; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything; the system may take less in one call."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
