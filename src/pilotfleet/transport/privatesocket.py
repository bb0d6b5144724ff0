"""Unix sockets that nobody else may use, not even for a moment."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["listen_privately"]


def listen_privately(path: Path, *, backlog: int) -> socket.socket:
    """Return a listening socket at ``path``, in place of what is there.

    It is made inside a private folder beside its place and then moved there: it never
    had looser rights. On the way its name has 17 bytes behind its folder.

    Raises:
        OSError: It cannot be made there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with tempfile.TemporaryDirectory(prefix=".pilot-", dir=path.parent) as folder:
            temporary = os.path.join(folder, "s")
            listener.bind(temporary)
            os.chmod(temporary, 0o600)
            listener.listen(backlog)
            os.replace(temporary, path)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
