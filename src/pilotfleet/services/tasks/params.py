"""What the task operations of the daemon's socket have in common."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from pilotfleet.errors import InvalidArgument

__all__ = ["fitting", "read_params"]

MAX_REPLY: Final = 700_000
"""Bytes of rows in one reply: a frame of the socket holds 1 MiB."""

_Wanted = TypeVar("_Wanted")


def read_params(params: dict[str, Any], kind: type[_Wanted]) -> _Wanted:
    """Read the parameters of an operation; unknown ones are ignored.

    Raises:
        InvalidArgument: One is missing or of the wrong kind.
    """
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(str(error)) from None


def fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return as many of the first rows as one reply holds."""
    size = 0
    for count, row in enumerate(rows):
        size += len(msgspec.json.encode(row)) + 1
        if size > MAX_REPLY:
            return rows[:count]
    return rows
