"""What the long-running programs have in common: how they start, fail and tell."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.sdnotify import notify_systemd
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import InvalidArgument, PilotError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import click

__all__ = [
    "EXIT_INTERRUPTED",
    "at_least_one",
    "fast_loop",
    "run_command",
    "run_program",
    "settle_memory",
    "tell_ready",
]

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Fewer collections: agents and records are many objects that live as long as the
process."""


def run_program(run: Callable[[], None]) -> int:
    """Call ``run``; print why it failed, if it did, and return the exit status."""
    try:
        run()
    except PilotError as error:
        hint = f"\nhint:  {error.hint}" if error.hint else ""
        text = f"error: {error}{hint}\n"
        sys.stderr.write(printable(text) if sys.stderr.isatty() else text)
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    return 0


def run_command(command: click.Command, program: str) -> int:
    """Run a command with the arguments of the process; return the exit status.

    A mistake in them is told in one line, as every other, and not in click's three.
    """
    from click import ClickException

    def run() -> None:
        try:
            command.main(prog_name=program, standalone_mode=False)
        except ClickException as error:
            message = error.format_message().rstrip(".")
            raise InvalidArgument(message, hint=f"see: {program} --help") from None

    return run_program(run)


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's event loop; None where there is no uvloop."""
    try:
        import uvloop
    except ImportError:  # Not on every system; asyncio's own loop works.
        return None
    return uvloop.new_event_loop


def settle_memory() -> None:
    """Take what the start left behind out of the collector's way."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


def tell_ready(path: Path | None, state: Mapping[str, Any]) -> None:
    """Tell who started this program that it is ready: by a file, and systemd.

    Raises:
        StorageError: The file cannot be written.
    """
    if path is not None:
        _write_at_once(path, json.dumps(state) + "\n")
    notify_systemd("READY=1")


def at_least_one(number: int, flag: str) -> int:
    """Return a number that a flag gives.

    Raises:
        InvalidArgument: It is less than one.
    """
    if number < 1:
        raise InvalidArgument(f"{flag} is at least 1")
    return number


def _write_at_once(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
