"""Run calls of the official Python SDK, given as JSON lines on standard input.

A line is ``{"on": NAME, "call": METHOD, "args": [...], "keep": NAME,
"take": COUNT}``. ``on`` is
``driver`` or what an earlier line kept; a kept result is not printed. With ``take``
that many items of what the call yields are the result. Bytes are
``{"bytes": base64}`` in both directions. Each answer is one line:
``{"result": ...}`` or ``{"error": CLASS, "text": ...}``.

Run in a process of its own: the SDK loads a native library.
Usage: python sdk_session.py SOCKET
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
from typing import Any


def main() -> None:
    """Answer one line after the other until the input ends."""
    from pilotprotocol import Driver  # type: ignore[import-not-found]

    kept: dict[str, Any] = {"driver": Driver(sys.argv[1])}
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line), kept)) + "\n")
        sys.stdout.flush()


def _answer(step: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    method = getattr(kept[step["on"]], step["call"])
    try:
        result = method(*map(_decoded, step["args"]))
        if step["take"]:
            result = list(itertools.islice(result, step["take"]))
    except Exception as error:  # What it raises is what the caller wants to know.
        return {"error": type(error).__name__, "text": str(error)}
    if step["keep"]:
        kept[step["keep"]] = result
        return {"result": type(result).__name__}
    return {"result": _encoded(result)}


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return base64.b64decode(value["bytes"])
    return value


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    return value


if __name__ == "__main__":
    main()
