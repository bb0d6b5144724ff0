"""What ``fleet up`` and ``fleet run`` have in common: signals, and the log."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
from typing import TYPE_CHECKING, Final

from pilotfleet.cli.logs import TEXT_FORMAT, TextFormatter
from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LOG_BACKUPS", "LOG_BYTES", "log_path", "log_to_file", "stop_on_signals"]

LOG_BYTES: Final = 10 * 1024 * 1024
LOG_BACKUPS: Final = 2
EXIT_INTERRUPTED: Final = 130


def log_path(home: Path) -> Path:
    """Return the log of a fleet's controller, made with its folder.

    Raises:
        StorageError: It cannot be made.
    """
    path = home / "logs" / "fleet.log"
    try:
        # Each by itself: what ``parents`` makes is open to others.
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StorageError(
            f"cannot use {home} as the fleet's home: {error.strerror}"
        ) from None
    return path


def log_to_file(home: Path) -> None:
    """Keep the log of this process in the fleet's home, and bounded.

    For a command whose stderr belongs to the user.
    """
    handler = logging.handlers.RotatingFileHandler(
        log_path(home), maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, delay=True
    )
    handler.setFormatter(TextFormatter(TEXT_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM cancel the current task, and the second one end it all.

    When this process is gone, the kernel ends the programs that it started.
    """
    task = asyncio.current_task()
    assert task is not None
    seen: list[int] = []

    def on_signal(number: int) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(EXIT_INTERRUPTED)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
