"""Ask a running gateway, blocking: for commands that start, ask and end."""

from __future__ import annotations

import json
import socket
from typing import Any, Final

from pilotfleet.errors import (
    ConnectionFailed,
    NotRunning,
    error_from_fields,
)

__all__ = ["ask_gateway"]

TIMEOUT_S: Final = 60.0
MAX_REPLY: Final = 4 << 20
"""A thousand mappings with sixty ports each."""


def ask_gateway(path: str, **request: Any) -> dict[str, Any]:
    """Send one request to the gateway at ``path`` and return its result.

    Raises:
        NotRunning: No gateway answers there.
        ConnectionFailed: It went away before it answered.
        PilotError: What the operation raised, by its code.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise NotRunning(
                "gateway is not running",
                hint=f"start it with: pilotctl gateway start  (tried {path})",
            ) from error
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _read_line(connection)
        except OSError as error:
            raise ConnectionFailed(f"gateway: {error.strerror or error}") from error
    failure = answer.get("error")
    if isinstance(failure, dict):
        raise error_from_fields(failure)
    result = answer.get("result")
    return result if isinstance(result, dict) else {}


def _read_line(connection: socket.socket) -> dict[str, Any]:
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = connection.recv(65536)
        if not chunk or len(data) > MAX_REPLY:
            raise ConnectionFailed("the gateway went away")
        data += chunk
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConnectionFailed("the gateway's answer is not JSON") from error
    return answer if isinstance(answer, dict) else {}
