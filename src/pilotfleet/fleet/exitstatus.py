"""How a process ended, in words."""

from __future__ import annotations

import contextlib
import signal

__all__ = ["describe_exit"]


def describe_exit(status: int) -> str:
    """Return ``exit status 3``, or ``killed by signal 9 (SIGKILL)`` for -9."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by signal {-status} ({signal.Signals(-status).name})"
    return f"killed by signal {-status}"
