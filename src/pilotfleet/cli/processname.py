"""Show a program by its own name in the list of processes.

The official ``pilotctl`` takes a process for a daemon if the first word of its command
line is ``pilot-daemon``; of a Python program it is the interpreter. On Linux a process
may write over its own command line, so the interpreter's name is taken out of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

__all__ = ["show_as"]

_ARG_START: Final = 48
_ARG_END: Final = 49
"""Fields of ``/proc/self/stat``, counted from one (proc(5))."""
_MAX_BEFORE: Final = 3
"""Words before the program's own: the interpreter and its flags."""


def show_as(program: str) -> None:
    """Let the command line of this process begin with ``program``.

    Where that cannot be done, nothing happens: only other programs look at it.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, ValueError, ImportError):
        _rewrite(program)


def _rewrite(program: str) -> None:
    with open("/proc/self/cmdline", "rb") as file:
        line = file.read()
    words = line.split(b"\0")
    names = [os.path.basename(os.fsdecode(word)) for word in words[:_MAX_BEFORE]]
    before = names.index(program)
    start, end = _area()
    # Anything else than what was read is not ours to write over.
    if not before or end - start != len(line):
        return
    import ctypes

    shown = b"\0".join(words[before:]).ljust(len(line), b"\0")
    ctypes.memmove(start, shown, len(line))


def _area() -> tuple[int, int]:
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        # The second field is the name in parentheses, which may hold anything.
        fields = file.read().rpartition(")")[2].split()
    return int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
