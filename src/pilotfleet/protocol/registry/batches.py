"""Many requests, or the heartbeats of many nodes, in one message.

The extension ``batch`` (docs/reference/extensions.md). A batch is read in two steps:
the bounds of the whole here, each request inside by whoever answers it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.messages import MAX_NODE, Request, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BATCH",
    "BATCH_EXTENSION",
    "HEARTBEATS",
    "MANY",
    "MAX_BATCH",
    "MAX_BATCH_BYTES",
    "batched_requests",
    "heartbeat_rows",
    "is_batched",
    "size_problem",
    "weight",
]

BATCH_EXTENSION: Final = "batch"
"""What a registry that answers both messages tells at registration."""
BATCH: Final = "batch"
HEARTBEATS: Final = "heartbeats"
MAX_BATCH: Final = 1_000
"""Requests or nodes in one message."""
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Size of the whole message."""

MANY: Final = frozenset({BATCH, HEARTBEATS})
"""Types of message that stand for many requests."""

_LISTS: Final[Mapping[str, str]] = {BATCH: "requests", HEARTBEATS: "nodes"}
_ALONE: Final = MANY | {"watch"}
_ALONE_PREFIX: Final = "subscribe_"
"""Requests that take a connection, or a message, for themselves."""


def weight(request: Request) -> int:
    """Return how many requests a message of many stands for; rates count them all."""
    rows = request.get(_LISTS[text(request, "type")])
    return max(1, len(rows)) if isinstance(rows, list) else 1


def size_problem(request: Request, size: int) -> str:
    """Return why a message of many is refused for its size; empty if it is not."""
    if size <= MAX_BATCH_BYTES:
        return ""
    return f"{text(request, 'type')} of {size} bytes, limit {MAX_BATCH_BYTES}"


def is_batched(kind: str) -> bool:
    """Tell whether requests of this type may be in a batch."""
    return kind not in _ALONE and not kind.startswith(_ALONE_PREFIX)


def batched_requests(request: Request) -> Sequence[Any]:
    """Return what a batch holds; its members may be anything.

    Raises:
        DecodeError: There are none, or too many.
    """
    return _rows(request, BATCH, "requests")


def heartbeat_rows(request: Request) -> list[tuple[int, str]]:
    """Return the nodes and their signatures.

    Raises:
        DecodeError: There are none, too many, or one is no such pair.
    """
    rows = _rows(request, HEARTBEATS, "nodes")
    for row in rows:
        # The node has to be known, because the reply names those that failed by it.
        if not (
            type(row) is list
            and len(row) == 2
            and type(row[0]) is int
            and 0 < row[0] <= MAX_NODE
            and type(row[1]) is str
        ):
            raise DecodeError("heartbeats: a row is not a node ID and a signature")
    return rows


def _rows(request: Request, kind: str, name: str) -> list[Any]:
    rows = request.get(name)
    if not isinstance(rows, list) or not rows:
        raise DecodeError(f"{kind} requires {name} field")
    if len(rows) > MAX_BATCH:
        raise DecodeError(f"too many {name} in a {kind} (max {MAX_BATCH})")
    return rows
