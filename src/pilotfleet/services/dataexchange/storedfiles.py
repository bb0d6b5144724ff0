"""Folders of files that peers fill: durable writes, and a bound on their size.

Everything here blocks and belongs into a thread. A :class:`StoredFolder` may be
used by several threads at once.

The bound is kept with a running total, so that a write need not look at thousands
of files. Others, such as ``pilotctl inbox --clear``, remove files without telling
us; the folder is read again before anything is refused or removed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import StorageError
from pilotfleet.transport.files import sync, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "FolderFull",
    "FolderLimits",
    "Reservation",
    "StoredFolder",
    "disk_error",
    "make_private",
]

TEMPORARY: Final = ".incoming-"
"""Begins the name of a file that is being written.

The official ``pilotctl received`` lists whatever lies in the folder, so that such a
file is made in the folder of unfinished ones, where there is one.
"""
STALE_S: Final = 24 * 3600.0
"""When room is needed, an unfinished file that did not grow for this long goes."""
_KEPT_SHARE: Final = 0.9
"""How full a folder may be after the oldest files were removed."""
_SLACK_SHARE: Final = 100
"""Removing one file more in a hundred saves reading the folder at each write."""


@dataclass(frozen=True, slots=True)
class FolderLimits:
    """How much a folder may hold."""

    max_bytes: int
    max_files: int | None = None
    """None: only the bytes count."""
    drops_oldest: bool = False
    """Whether the oldest files make room for new ones."""


class FolderFull(StorageError):
    """A file does not fit."""

    def __init__(self, message: str, *, used: int, max_bytes: int) -> None:
        super().__init__(message)
        self.used = used
        self.max_bytes = max_bytes


class _Entry(NamedTuple):
    modified_ns: int
    name: str
    size: int


class StoredFolder:
    """One folder, and what is stored in it.

    Args:
        path: The folder; made with the first file.
        limits: How much it may hold.
        unfinished: A folder inside for files that are not complete, which count as
            well; None makes them in the folder itself.
    """

    __slots__ = (
        "_count",
        "_is_read",
        "_limits",
        "_lock",
        "_numbers",
        "_reservations",
        "_used",
        "path",
        "unfinished",
    )

    def __init__(
        self, path: Path, limits: FolderLimits, *, unfinished: Path | None = None
    ) -> None:
        self.path = path
        self.unfinished = unfinished
        self._limits = limits
        self._lock = threading.Lock()
        self._is_read = False
        self._used = 0
        self._count = 0
        self._reservations: set[Reservation] = set()
        self._numbers = itertools.count()

    @property
    def _workshop(self) -> Path:
        return self.path if self.unfinished is None else self.unfinished

    def store(self, next_name: Callable[[], str], data: bytes | memoryview) -> Path:
        """Store a file; when this returns, a power failure does not take it away.

        Args:
            next_name: Gives one name after the other; the first free one is taken.
            data: What the file holds.

        Raises:
            FolderFull: It does not fit.
            StorageError: The disk refuses; the folder is as it was.
        """
        with self.reserve(len(data)) as reservation, disk_error("write"):
            temporary = self._workshop / f"{TEMPORARY}{next(self._numbers)}"
            make_private(self._workshop)
            try:
                _write_synced(temporary, data)
                path = self._commit(temporary, next_name, reservation)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            sync(self.path)
        return path

    def adopt(self, finished: Path, next_name: Callable[[], str]) -> Path:
        """Move one of the unfinished files, whose size is counted, to the others.

        Raises:
            StorageError: The disk refuses.
        """
        with disk_error("rename"):
            sync(finished)
            path = self._commit(finished, next_name, Reservation(self, 0))
            sync(self.path)
        return path

    def reserve(self, size: int) -> Reservation:
        """Keep room for ``size`` bytes until the reservation is closed.

        Raises:
            FolderFull: There is none.
            StorageError: The folder cannot be made or read.
        """
        with disk_error("open folder"):
            make_private(self.path)
            with self._lock:
                if not self._is_read:
                    self._clean_up()
                    self._read()
                    self._is_read = True
                if not self._fits(size):
                    self._make_room(size)
                if not self._fits(size):
                    raise self._full(size)
                reservation = Reservation(self, size)
                self._reservations.add(reservation)
        return reservation

    def fill(self, reservation: Reservation, size: int) -> None:
        """Note that ``size`` bytes of a reservation are on the disk now."""
        with self._lock:
            self._fill(reservation, size)

    def free(self, reservation: Reservation) -> None:
        """End a reservation.

        Without the lock, which a thread may hold while it reads a large folder: the
        event loop calls this.
        """
        self._reservations.discard(reservation)

    @property
    def _reserved(self) -> int:
        # A copy, as others may be freed meanwhile.
        return sum(each.left for each in tuple(self._reservations))

    def _fill(self, reservation: Reservation, size: int) -> None:
        reservation.left -= size
        self._used += size

    def _commit(
        self, written: Path, next_name: Callable[[], str], reservation: Reservation
    ) -> Path:
        # At once, or who reads the folder meanwhile would count the file twice.
        with self._lock:
            while (path := self.path / next_name()).exists():
                pass
            os.rename(written, path)
            self._fill(reservation, reservation.left)
            self._count += 1
        return path

    def _fits(self, size: int) -> bool:
        limits = self._limits
        if limits.max_files is not None and self._count >= limits.max_files:
            return False
        return self._used + self._reserved + size <= limits.max_bytes

    def _full(self, size: int) -> FolderFull:
        used = self._used + self._reserved
        maximum = self._limits.max_bytes
        return FolderFull(f"{used} + {size} > {maximum}", used=used, max_bytes=maximum)

    def _make_room(self, size: int) -> None:
        entries = self._read()
        if not self._limits.drops_oldest or size > self._limits.max_bytes:
            self._drop_stale()
            return
        most_bytes, most_files = self._goal(size)
        most_bytes -= self._reserved + size
        for entry in sorted(entries):
            if self._used <= most_bytes and self._count <= most_files:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / entry.name)
            self._used -= entry.size
            self._count -= 1

    def _goal(self, size: int) -> tuple[int, int]:
        """Return how many bytes and other files there may be beside a new file."""
        limits = self._limits
        most = int(limits.max_bytes * _KEPT_SHARE)
        if size > most:
            most = limits.max_bytes
        if limits.max_files is None:
            return most, self._count
        return most, limits.max_files - 1 - limits.max_files // _SLACK_SHARE

    def _read(self) -> list[_Entry]:
        """Read the folder; return the files that may be removed."""
        entries = _complete(self.path)
        self._count = len(entries)
        self._used = sum(entry.size for entry in entries)
        if self.unfinished is not None:
            self._used += sum(entry.size for entry in _complete(self.unfinished))
        return entries

    def _clean_up(self) -> None:
        """Remove what a process that was killed had not finished writing."""
        for entry in _entries(self._workshop):
            if entry.name.startswith(TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._workshop / entry.name)

    def _drop_stale(self) -> None:
        if self.unfinished is None:
            return
        oldest_ns = time.time_ns() - int(STALE_S * 1e9)
        for entry in _complete(self.unfinished):
            if entry.modified_ns < oldest_ns:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.unfinished / entry.name)
                self._used -= entry.size


class Reservation:
    """Room in a folder; a context manager that frees what was not filled."""

    __slots__ = ("_folder", "left")

    def __init__(self, folder: StoredFolder, size: int) -> None:
        self._folder = folder
        self.left = size
        """Bytes that are not written yet."""

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fill(self, size: int) -> None:
        """Note that ``size`` bytes of it are on the disk now."""
        self._folder.fill(self, size)

    def close(self) -> None:
        """Free the rest. Idempotent."""
        self._folder.free(self)


@contextlib.contextmanager
def disk_error(action: str) -> Iterator[None]:
    """Turn a refusal of the disk into a StorageError without our paths in it.

    The text goes to the sender, whom our folders do not concern.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise StorageError(f"{action}: {reason}") from error


def make_private(path: Path) -> None:
    """Make a folder that only this user can enter, unless it exists.

    It is on the disk then: no file in it could outlive it.
    """
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(path.parent)


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a new file that only this user can read, and wait for the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(folder: Path) -> list[_Entry]:
    """Return the files in a folder but those that are being written.

    Room for those is reserved already.
    """
    return [each for each in _entries(folder) if not each.name.startswith(TEMPORARY)]


def _entries(folder: Path) -> list[_Entry]:
    entries = []
    try:
        with os.scandir(folder) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):
                    info = each.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode):
                        entry = _Entry(info.st_mtime_ns, each.name, info.st_size)
                        entries.append(entry)
    except FileNotFoundError:
        pass
    return entries
