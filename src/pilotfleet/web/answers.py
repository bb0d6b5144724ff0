"""Answers that are the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["json_answer", "refuse"]


def json_answer(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a value as JSON that no cache keeps."""
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=all_headers,
        media_type="application/json",
    )


def refuse(
    status: int,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error: what is wrong, and what to do about it."""
    error = {"code": code, "message": message}
    if hint:
        error["hint"] = hint
    return json_answer({"error": error}, status=status, headers=headers)
