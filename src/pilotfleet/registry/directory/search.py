"""Discovery by tag and name: the ``search`` extension.

The smallest condition comes first. If it leaves few nodes, such as a rare tag or the
members of a small network, each of them is looked at, and it does not matter how
many others there are. If not, all conditions are bitmaps over node IDs and are
intersected whole: a fraction of a millisecond for a million nodes, and then only the
rows of the page. For the same reason ``total`` is exact: it counts the result, that
is, all matches the requester may see, whatever the page and the cursor.

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
from pilotfleet.registry.directory.frozenids import FrozenIds
from pilotfleet.registry.directory.visibility import (
    few_visible,
    may_find,
    visible_bits,
)

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = [
    "MAX_LIMIT",
    "Page",
    "Query",
    "decode_cursor",
    "encode_cursor",
    "matches",
    "matching_bits",
    "search",
]

MAX_LIMIT: Final = 1000
"""Most results on one page."""
DEFAULT_LIMIT: Final = 50
FEW: Final = 16
"""So many nodes are looked at one by one in any case."""
FEW_SHARE: Final = 1024
"""And one in so many of all: then it takes less than intersecting bitmaps."""

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
    found = matches(directory, query, requester)
    page = found.first(query.limit + 1, after=query.after)
    more = len(page) > query.limit
    page = page[: query.limit]
    cursor = encode_cursor(page[-1]) if more else ""
    by_id = directory.nodes.by_id
    return Page([by_id[node] for node in page], found.count, cursor)


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


def matches(directory: Directory, query: Query, requester: Node | None) -> FrozenIds:
    """Return all nodes that fit the query and that ``requester`` may see."""
    few = _few(directory, query, requester)
    if few is None:
        visible = visible_bits(directory, requester)
        return FrozenIds.of_bits(matching_bits(directory, query, visible))
    return FrozenIds.of(
        [node for node in few if _fits(directory, node, query, requester)]
    )


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


def _few(
    directory: Directory, query: Query, requester: Node | None
) -> list[int] | None:
    """Return few nodes in ascending order that hold all matches, if there are such."""
    index, tags = directory.nodes.tags, query.tags
    most = max(FEW, directory.nodes.highest_id // FEW_SHARE)
    if tags and query.any_tag and sum(map(index.count, tags)) <= most:
        return sorted({node for tag in tags for node in index.nodes(tag)})
    if tags and not query.any_tag:
        rarest = min(map(index.nodes, tags), key=len)
        if len(rarest) <= most:
            return list(rarest)
    if query.hostname_prefix:
        named = directory.hosts.few(query.hostname_prefix, most)
        if named is not None:
            return named
    return few_visible(directory, requester, most)


def _fits(
    directory: Directory, number: int, query: Query, requester: Node | None
) -> bool:
    node = directory.nodes.get_live(number)
    if node is None or not node.hostname.startswith(query.hostname_prefix):
        return False
    if query.online and not directory.is_online(number):
        return False
    if query.tags:
        has = map(node.record.tags.__contains__, query.tags)
        if not (any(has) if query.any_tag else all(has)):
            return False
    return may_find(directory, requester, node)
