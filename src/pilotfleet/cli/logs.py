"""How the long-running programs log.

Everything goes to stderr. If that is a file, as after ``pilotctl daemon start``,
it is rotated when it has grown: unrotated logs have filled disks and stopped whole
fleets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, Final

from pilotfleet.cli.terminal import printable
from pilotfleet.errors import InvalidArgument
from pilotfleet.transport.files import write_all

__all__ = [
    "TEXT_FORMAT",
    "JsonFormatter",
    "TextFormatter",
    "configure_logging",
    "pass_on",
]

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
TEXT_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
DEFAULT_MAX_BYTES: Final = 50 * 1024 * 1024
DEFAULT_BACKUPS: Final = 3
CHECK_EVERY: Final = 100
"""Records between two looks at the size of the file."""


class TextFormatter(logging.Formatter):
    """One line for each record, whatever other people's words are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own."""
        record.message = printable(record.message).replace("\n", "\\n")
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object on one line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time as RFC 3339, in UTC."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{int(record.msecs):03d}Z"


class RotatingStderr(logging.StreamHandler[Any]):
    """Writes to stderr and bounds it where it is a file."""

    def __init__(self, *, max_bytes: int, backups: int) -> None:
        super().__init__(sys.stderr)
        self._max_bytes = max_bytes
        self._backups = backups
        self._until_check = CHECK_EVERY

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, now and then after a look at the size."""
        self._until_check -= 1
        self._look_at_size()
        super().emit(record)

    def pass_on(self, lines: bytes) -> None:
        """Write lines of another process, which are formatted already."""
        self.acquire()
        try:
            self._until_check -= lines.count(b"\n")
            # As with a record: a log that cannot be written stops nobody.
            with contextlib.suppress(OSError):
                self._look_at_size()
                write_all(sys.stderr.fileno(), lines)
        finally:
            self.release()

    def _look_at_size(self) -> None:
        if self._until_check <= 0:
            self._until_check = CHECK_EVERY
            # A log that cannot be rotated is still a log.
            with contextlib.suppress(OSError):
                self._rotate_if_large()

    def _rotate_if_large(self) -> None:
        if not self._max_bytes:
            return
        descriptor = sys.stderr.fileno()
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_size < self._max_bytes:
            return
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        for number in range(self._backups, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{number - 1}", f"{path}.{number}")
        if self._backups:
            os.replace(path, f"{path}.1")
        else:
            os.unlink(path)
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, descriptor):
            # Whatever shares the old file with stderr moves along.
            if os.path.sameopenfile(standard, descriptor) or standard == descriptor:
                os.dup2(fresh, standard)
        os.close(fresh)


def pass_on(lines: bytes) -> None:
    """Write what a process of ours has logged where this one logs."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RotatingStderr):
            handler.pass_on(lines)


def configure_logging(
    level: str = "info",
    log_format: str = "text",
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    backups: int = DEFAULT_BACKUPS,
) -> None:
    """Send the log of this process to stderr.

    Args:
        level: ``debug``, ``info``, ``warn`` or ``error``.
        log_format: ``text`` or ``json``.
        max_bytes: Rotate a file that is larger; 0 lets it grow.
        backups: Old files kept.

    Raises:
        InvalidArgument: No such level or format.
    """
    if level.lower() not in LEVELS:
        raise InvalidArgument(
            f"log level {level!r} is not one of debug, info, warn, error"
        )
    if log_format not in ("text", "json"):
        raise InvalidArgument(f"log format {log_format!r} is not text or json")
    handler = RotatingStderr(max_bytes=max_bytes, backups=backups)
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT)
    )
    logging.basicConfig(level=LEVELS[level.lower()], handlers=[handler], force=True)
