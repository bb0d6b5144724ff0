"""The folder of a fleet: who may use it, and where its things are.

::

    lock  network.json  admin.token  registry.db     the fleet's own
    hub/  group-1/  sub-1/                           of the daemons: queues, events
    workers/agents/NAME/                             of the worker agents: their keys
    logs/NAME.log  logs/NAME.log.1
    run/NAME.sock  run/NAME.json                     sockets, and who is ready
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import AlreadyExists, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["link_agents", "open_home", "short_path"]

MAX_SOCKET_PATH: Final = 107
"""From ``linux/un.h``, without the NUL."""
LONGEST_IN_FOLDER: Final = 24
"""Bytes of a socket's name behind its folder, also while a daemon makes it."""


@contextlib.contextmanager
def open_home(home: Path) -> Iterator[Path]:
    """Take a fleet's home, and yield its folder of sockets under a short name.

    Raises:
        AlreadyExists: Another launcher has it.
        StorageError: It cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        lock = _lock(home)
    except OSError as error:
        raise StorageError(
            f"cannot use {home} as the fleet's home: {error.strerror}"
        ) from None
    try:
        with short_path(home / "run") as sockets:
            yield sockets
    finally:
        os.close(lock)


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[Path]:
    """Yield ``folder``, by another name where sockets in it could not be named.

    A socket's path has 107 bytes at most; a link in a private folder makes it shorter.
    """
    longest = len(os.fsencode(folder)) + 1 + LONGEST_IN_FOLDER
    if longest <= MAX_SOCKET_PATH:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pilot-") as private:
        link = Path(private) / "r"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def link_agents(home: Path, daemon: str) -> None:
    """Have a daemon keep its agents in the one folder of all workers.

    An agent so has its key in whichever group it is, also when groups get another
    size.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        agents = home / "workers" / "agents"
        for folder in (agents.parent, agents):
            folder.mkdir(mode=0o700, exist_ok=True)
        (home / daemon).mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link = home / daemon / "agents"
            link.symlink_to(Path("..", "workers", "agents"), target_is_directory=True)
    except OSError as error:
        raise StorageError(
            f"cannot use {home} as the fleet's home: {error.strerror}"
        ) from None


def _lock(home: Path) -> int:
    """Return a descriptor that keeps other launchers out until it is closed.

    Two fleets in one home would write the same files.
    """
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AlreadyExists(
            f"a fleet runs in {home} already",
            hint="wait until it has ended, or choose another --home",
        ) from None
    return lock
