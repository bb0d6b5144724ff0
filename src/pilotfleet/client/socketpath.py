"""Where a daemon's socket is. Light: on the way of every command."""

from __future__ import annotations

import os
import sys

__all__ = ["default_socket"]


def default_socket() -> str:
    """Return where a daemon listens unless told otherwise (ipc.md section 1)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if sys.platform == "linux" and runtime:
        return os.path.join(runtime, "pilot.sock")
    return "/tmp/pilot.sock"
