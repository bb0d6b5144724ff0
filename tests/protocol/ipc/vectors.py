"""The recorded bytes of ipc.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_FILE: Final = Path(__file__).parents[2] / "vectors" / "ipc.json"
_VECTORS: Final[dict[str, Any]] = json.loads(_FILE.read_text())

FRAMES: Final[list[dict[str, Any]]] = _VECTORS["frames"]
LENGTH_LIMITS: Final[list[dict[str, Any]]] = _VECTORS["length_limits"]
REQUEST_SIGNATURE: Final[dict[str, Any]] = _VECTORS["request_signature"]
INFO_REPLY: Final[dict[str, Any]] = _VECTORS["info_reply"]["json"]
CLI: Final[list[dict[str, Any]]] = _VECTORS["cli"]
EXCHANGES: Final[dict[str, list[tuple[str, str]]]] = {
    exchange["id"]: [(who, frame) for who, frame in exchange["steps"]]
    for exchange in _VECTORS["exchanges"]
}


def frame_payload(name: str) -> bytes:
    """Return the payload of a recorded frame, without its command byte."""
    return next(bytes.fromhex(f["frame"])[1:] for f in FRAMES if f["id"] == name)
