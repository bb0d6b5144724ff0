"""What the long-running programs have in common: how they start, fail and tell."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import PilotError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "EXIT_INTERRUPTED",
    "fast_loop",
    "run_program",
    "settle_memory",
    "write_ready_file",
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
        sys.stderr.write(f"error: {error}{hint}\n")
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    return 0


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


def write_ready_file(path: Path | None, state: Mapping[str, Any]) -> None:
    """Write what a program that started this one waits for, all at once.

    Raises:
        StorageError: The file cannot be written.
    """
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(state) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
