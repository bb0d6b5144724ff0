"""Reading the parameters of API requests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.registry.dashboard.survey import ORDERS
from pilotfleet.registry.directory.search import MAX_LIMIT, Query, decode_cursor

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

__all__ = ["integer", "read_query", "read_sort"]

MAX_TAGS: Final = 10
MAX_OFFSET: Final = 2**32
DEFAULT_LIMIT: Final = 50
_NAME: Final = re.compile("[a-z0-9-]{1,63}")
_NOBODY: Final = "~"
"""A prefix that no hostname has."""
_BOOLEANS: Final = {"1": True, "true": True, "0": False, "false": False}


def read_query(parameters: QueryParams) -> Query:
    """Read which agents are looked for.

    Raises:
        InvalidArgument: A parameter has a form that is not allowed.
    """
    tags = tuple(parameters.getlist("tag"))
    if len(tags) > MAX_TAGS:
        raise InvalidArgument(f"more than {MAX_TAGS} tags")
    prefix = parameters.get("prefix", "").strip().lower()
    try:
        after = decode_cursor(parameters.get("cursor", ""))
    except DecodeError:
        raise InvalidArgument(
            "the cursor is not one of this API",
            hint="send next_cursor of the page before as it is",
        ) from None
    return Query(
        tags=tags,
        any_tag=_boolean(parameters, "any"),
        hostname_prefix=prefix if not prefix or _NAME.fullmatch(prefix) else _NOBODY,
        online=_boolean(parameters, "online"),
        limit=integer(parameters, "limit", DEFAULT_LIMIT, lowest=1, highest=MAX_LIMIT),
        after=after,
    )


def read_sort(parameters: QueryParams) -> tuple[str, bool] | None:
    """Return the order that is asked for, and whether it goes down.

    Raises:
        InvalidArgument: There is no such order.
    """
    sort = parameters.get("sort", "")
    if not sort:
        return None
    if sort.removeprefix("-") not in ORDERS:
        names = ", ".join(ORDERS)
        raise InvalidArgument(
            "sort is not an order that there is",
            hint=f"one of {names}; with - before it the other way round",
        )
    if "cursor" in parameters:
        raise InvalidArgument(
            "sort and cursor do not go together",
            hint="use offset with sort, or leave sort out",
        )
    return sort.removeprefix("-"), sort.startswith("-")


def integer(
    parameters: QueryParams,
    name: str,
    default: int,
    *,
    lowest: int = 0,
    highest: int = MAX_OFFSET,
) -> int:
    """Read a whole number.

    Raises:
        InvalidArgument: It is none, or out of its range.
    """
    text = parameters.get(name)
    if text is None:
        return default
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not lowest <= int(text) <= highest:
        raise InvalidArgument(f"{name} is not a number from {lowest} to {highest}")
    return int(text)


def _boolean(parameters: QueryParams, name: str) -> bool:
    text = parameters.get(name, "0").lower()
    if text not in _BOOLEANS:
        raise InvalidArgument(f"{name} is neither true nor false")
    return _BOOLEANS[text]
