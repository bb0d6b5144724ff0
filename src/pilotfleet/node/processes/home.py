"""A daemon's home, and among how many processes what is kept there is divided.

Every process of every daemon holds a shared lock on it. Who finds it divided among
another number of processes must be alone to divide it anew: the new files are made
beside the old ones, and count from the moment that the number is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import AlreadyExists, ConfigError, StorageError
from pilotfleet.node.home import make_folder
from pilotfleet.node.processes.division import FOLDER, process_homes
from pilotfleet.transport.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["hold_home", "own_home"]

LOCK: Final = "daemon.lock"
COUNT: Final = "count"
MAX_COUNT_FILE: Final = 16
MAX_COUNT: Final = 1000
"""More than any daemon may have."""


@contextlib.contextmanager
def own_home(
    home: Path,
    count: int,
    *,
    redivide: Callable[[Mapping[int, Path], Mapping[int, Path]], None],
    clear: Callable[[Mapping[int, Path]], None],
) -> Iterator[None]:
    """Hold a home that is divided among ``count`` processes, for a daemon's life.

    Args:
        home: The daemon's.
        count: How many processes it shall have.
        redivide: Makes the files in new homes of processes from those in old ones.
        clear: Removes the files in homes that do not count any more.

    Raises:
        AlreadyExists: It is divided otherwise, and another daemon runs with it.
        ConfigError: The note of the number is damaged.
        StorageError: The disk refuses.
    """
    with hold_home(home) as lock:
        # Again, as the lock lets others in for a moment when it is made shared.
        while (before := _read_count(home)) != count:
            _lock_alone(lock, home, before)
            # Another daemon may have come first, and divided it so: then what would be
            # the old files are the new ones.
            if (before := _read_count(home)) != count:
                old, new = process_homes(home, before), process_homes(home, count)
                redivide(old, new)
                _write_count(home, count)
                clear(old)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def hold_home(home: Path) -> Iterator[int]:
    """Keep others from dividing a home anew; yields the lock's descriptor.

    Raises:
        AlreadyExists: Another daemon is dividing it just now.
        StorageError: The lock cannot be made.
    """
    make_folder(home)
    path = home / LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise AlreadyExists(
            f"another daemon is starting with the home {home}",
            hint="wait for it, or give this one its own --home",
        ) from None
    try:
        yield lock
    finally:
        os.close(lock)


def _lock_alone(lock: int, home: Path, count: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise AlreadyExists(
            f"another daemon runs with the home {home}, and what it keeps there is"
            f" divided among {count} processes",
            hint=f"stop it first, use --processes {count}, or another --home",
        ) from None


def _read_count(home: Path) -> int:
    """Return among how many processes a home is divided; a fresh one is not."""
    path = home / FOLDER / COUNT
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_COUNT_FILE).strip()
    except FileNotFoundError:
        return 1
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not text.isdigit() or not 1 <= int(text) <= MAX_COUNT:
        raise ConfigError(
            f"{path} is damaged: it says among how many processes tasks are divided",
            hint="write the number of the folders N-of-NUMBER beside it into the file",
        )
    return int(text)


def _write_count(home: Path, count: int) -> None:
    folder = home / FOLDER
    make_folder(folder)
    try:
        replace_file(folder / COUNT, b"%d\n" % count)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {folder / COUNT}: {reason}") from error
