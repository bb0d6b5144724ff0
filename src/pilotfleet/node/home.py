"""Files of an agent: its folder and its identity (cli.md section 3.1)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import (
    AlreadyExists,
    ConfigError,
    DecodeError,
    PermissionDenied,
    StorageError,
)
from pilotfleet.protocol.identity import SEED_SIZE, Identity
from pilotfleet.transport.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "load_or_create_identity",
    "lock_identity",
    "make_folder",
    "save_identity",
]

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_IDENTITY_FILE: Final = 64 * 1024


def make_folder(path: Path) -> None:
    """Make a folder that only this user can enter, unless it exists.

    Raises:
        PermissionDenied: The system does not let us.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _storage_error(f"cannot make folder {path}", error) from error


def load_or_create_identity(path: Path) -> Identity:
    """Read the identity in ``path``, or make a new one there.

    Raises:
        ConfigError: The file is damaged.
        PermissionDenied: Others can read the key, or we cannot.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    identity = Identity(os.urandom(SEED_SIZE))
    make_folder(path.parent)
    save_identity(path, identity)
    return identity


@contextlib.contextmanager
def lock_identity(path: Path) -> Iterator[None]:
    """Keep other daemons from using the identity in ``path`` at the same time.

    Two daemons with one key would take each other's packets away in turns.

    Raises:
        AlreadyExists: Another daemon runs with it.
    """
    make_folder(path.parent)
    lock = path.with_suffix(".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _storage_error(f"cannot write {lock}", error) from error
    try:
        # The lock ends with the process, however that ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AlreadyExists(
            f"another daemon runs with the identity {path}",
            hint="stop it, or give this one its own --home or --identity",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def save_identity(path: Path, identity: Identity) -> None:
    """Replace the identity in ``path``; afterwards it is on the disk.

    Raises:
        StorageError: The disk refuses; the old file is as it was.
    """
    try:
        # A key that a power failure takes away is a new node in the registry,
        # without the trust and the name of the old one.
        replace_file(path, identity.to_json())
    except OSError as error:
        raise _storage_error(f"cannot write identity {path}", error) from error


def _load(path: Path) -> Identity:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_IDENTITY_FILE)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _storage_error(f"cannot read identity {path}", error) from error
    if mode & _OTHERS:
        raise PermissionDenied(
            f"identity file {path} is open to other users "
            f"(mode {stat.S_IMODE(mode):04o})",
            hint=f"run: chmod 600 {path}",
        )
    try:
        return Identity.from_json(data)
    except DecodeError as error:
        raise ConfigError(
            f"identity file {path} is damaged: {error}",
            hint="restore it from a backup, or move it away to start as a new node",
        ) from error


def _storage_error(what: str, error: OSError) -> PermissionDenied | StorageError:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return PermissionDenied(
            f"{what}: {reason}", hint="choose a folder you can write with --home"
        )
    return StorageError(f"{what}: {reason}")
