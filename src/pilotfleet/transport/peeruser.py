"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Final

__all__ = ["is_own_user"]

_PEER: Final = struct.Struct("3i")
ROOT: Final = 0


def is_own_user(peer: Any) -> bool:
    """Tell whether a connection comes from the user we run as, or from root.

    Root could read our keys as well. Where the system does not tell, the socket's
    mode alone keeps others out.

    Args:
        peer: The connection's socket, as ``get_extra_info("socket")`` gives it.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    except OSError:
        return False
    _, user, _ = _PEER.unpack(raw)
    return user in (ROOT, os.geteuid())
