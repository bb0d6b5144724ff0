"""Discovery by tag and name: the ``search`` extension.

All conditions are bitmaps over node IDs and are intersected whole, so an
answer costs the same whether a tag is rare or everybody's: microseconds for
the intersection of 100,000 nodes and then only the rows of the page. For the
same reason ``total`` is exact: it counts the bits of the result, that is, all
matches the requester may see, whatever the page and the cursor.

The order is that of node IDs, and a cursor names the last ID that was given
out. So pages never repeat or leave out a node that matches throughout, however
many come and go between them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.messages import MAX_NODE
from pilotfleet.registry.directory.idset import first_ids
from pilotfleet.registry.directory.visibility import visible_bits

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = [
    "MAX_LIMIT",
    "Page",
    "Query",
    "decode_cursor",
    "encode_cursor",
    "matching_bits",
    "search",
]

MAX_LIMIT: Final = 1000
"""Most results on one page."""
DEFAULT_LIMIT: Final = 50

_CURSOR_MARK: Final = "after:"


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for. No condition at all matches every visible node."""

    tags: tuple[str, ...] = ()
    any_tag: bool = False
    """One of the tags is enough."""
    hostname_prefix: str = ""
    online: bool = False
    limit: int = DEFAULT_LIMIT
    after: int = 0
    """Only nodes with a higher ID."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the matches, in the order of their IDs."""

    nodes: list[Node]
    total: int
    next_cursor: str
    """Empty: there are no more."""


def search(directory: Directory, query: Query, requester: Node | None) -> Page:
    """Return the first matches after the cursor that ``requester`` may see."""
    matches = matching_bits(directory, query, visible_bits(directory, requester))
    found = first_ids(matches, after=query.after, limit=query.limit + 1)
    more = len(found) > query.limit
    page = found[: query.limit]
    cursor = encode_cursor(page[-1]) if more else ""
    by_id = directory.nodes.by_id
    return Page([by_id[node] for node in page], matches.bit_count(), cursor)


def encode_cursor(after: int) -> str:
    """Return the opaque form of a place in the order of IDs."""
    return base64.urlsafe_b64encode(f"{_CURSOR_MARK}{after}".encode()).decode()


def decode_cursor(cursor: str) -> int:
    """Read a cursor; an empty one is the beginning.

    Raises:
        DecodeError: It was not made here.
    """
    if not cursor:
        return 0
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise DecodeError("invalid cursor") from None
    after = text.removeprefix(_CURSOR_MARK)
    number = after.isascii() and after.isdigit() and len(after) <= len(str(MAX_NODE))
    if not text.startswith(_CURSOR_MARK) or not number:
        raise DecodeError("invalid cursor")
    return int(after)


def matching_bits(directory: Directory, query: Query, visible: int) -> int:
    """Return the bitmap of those of ``visible`` that the query fits."""
    index = directory.nodes.tags
    if query.any_tag and query.tags:
        wanted = 0
        for tag in query.tags:
            wanted |= index.bits(tag)
        visible &= wanted
    else:
        # The rarest first: an empty result makes the rest cheap.
        for tag in sorted(query.tags, key=index.count):
            visible &= index.bits(tag)
    if visible and query.online:
        visible &= directory.online.nodes.bits()
    if visible and query.hostname_prefix:
        visible &= directory.hosts.prefix_bits(query.hostname_prefix)
    return visible
