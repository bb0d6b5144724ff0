"""Who trusts whom, as the ``trust-links`` extension lists it.

A link is a trust pair, which exists when one side has consented. Not both: a 1.18.0
daemon whose request was approved says so itself only if it hears of it directly before
it finds the answer in its box.

What a node is shown: the links between members of its networks, who it may list
anyway, and its own. Members that are not live count, for their trust goes on.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.messages import MAX_NODE
from pilotfleet.registry.directory.idset import IdSet, first_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = [
    "MAX_GENERATION",
    "MAX_LINKS",
    "LinkPage",
    "LinkTable",
    "decode_place",
    "list_links",
]

MAX_LINKS: Final = 1000
"""Most links on one page."""
MAX_GENERATION: Final = (1 << 52) - 1
"""Exact in every reader of JSON."""

MAX_LOOKS: Final = 20_000
"""Nodes and links looked at for one page, shown or not: about 10 ms."""
_CHUNK: Final = 1024


class LinkTable:
    """All links by node, and what is needed to tell whether any has changed."""

    __slots__ = (
        "_changed_networks",
        "_changed_nodes",
        "_changes",
        "_last_link",
        "_partners",
        "_start",
        "nodes",
    )

    def __init__(self) -> None:
        self._partners: dict[int, IdSet] = {}
        self.nodes = IdSet()
        """Nodes with any link."""
        # Another registry on the same store counts otherwise, and so does this one
        # after a restart: a client that moves must load again.
        self._start = random.SystemRandom().getrandbits(64)
        self._changes = self._last_link = 0
        self._changed_nodes: dict[int, int] = {}
        self._changed_networks: dict[int, int] = {}

    def set(self, one: int, other: int, *, exists: bool) -> None:
        """Note that a link of two nodes came or went; one to itself is none."""
        if one == other:
            return
        for node, partner in ((one, other), (other, one)):
            if exists:
                self._add(node, partner)
            else:
                self._discard(node, partner)
        self._last_link = self._count()
        self._changed_nodes[one] = self._changed_nodes[other] = self._last_link

    def changed_in(self, networks: Iterable[int]) -> None:
        """Note that members of networks have other links, or are others."""
        change = self._count()
        for network in networks:
            self._changed_networks[network] = change

    def after(self, node: int, partner: int, limit: int) -> list[int]:
        """Return the lowest partners of ``node`` above ``partner``."""
        known = self._partners.get(node)
        return [] if known is None else known.after(partner, limit)

    def linked(self, one: int, other: int) -> bool:
        """Tell whether there is a link."""
        return one in self._partners and other in self._partners[one]

    def bits(self, node: int) -> int:
        """Return the bitmap of the partners of ``node``."""
        known = self._partners.get(node)
        return 0 if known is None else known.bits()

    def generation(self, requester: Node | None) -> int:
        """Return a number that is another one when the list may be another one.

        None asks for all links. Compare it with one of the same asker only.
        """
        if requester is None:
            state: tuple[object, ...] = (self._start, self._last_link)
        else:
            node, networks = requester.record.id, requester.networks
            changes = [self._changed_networks.get(network, 0) for network in networks]
            own = self._changed_nodes.get(node, 0)
            state = (self._start, node, networks, own, changes)
        digest = blake2b(repr(state).encode(), digest_size=8).digest()
        # Not 0, which counts as absent in messages.
        return int.from_bytes(digest, "big") & MAX_GENERATION or 1

    def _count(self) -> int:
        self._changes += 1
        return self._changes

    def _add(self, node: int, partner: int) -> None:
        known = self._partners.get(node)
        if known is None:
            known = self._partners[node] = IdSet()
            self.nodes.add(node)
        known.add(partner)

    def _discard(self, node: int, partner: int) -> None:
        known = self._partners.get(node)
        if known is None:
            return
        known.discard(partner)
        if not known:
            del self._partners[node]
            self.nodes.discard(node)


class LinkPage(NamedTuple):
    """Some links in order, the lower node of each first."""

    links: list[tuple[int, int]]
    next_cursor: str
    """Empty: there are no more. A page may have few links and be followed."""


def list_links(
    directory: Directory,
    requester: Node | None,
    *,
    after: tuple[int, int] = (0, 0),
    limit: int = MAX_LINKS,
) -> LinkPage:
    """Return the first links after a place that ``requester`` may see.

    None may see all. A link that exists throughout comes exactly once, however many
    come and go between the pages.
    """
    found: list[tuple[int, int]] = []
    looks = enumerate(_looks(directory, requester, after), 1)
    for number, (one, other, is_shown) in looks:
        if is_shown:
            if len(found) == limit:
                return LinkPage(found, encode_place(*found[-1]))
            found.append((one, other))
        if number >= MAX_LOOKS:
            return LinkPage(found, encode_place(one, other))
    return LinkPage(found, "")


def encode_place(one: int, other: int) -> str:
    """Return a place in the order of links as a cursor."""
    return f"{one}.{other}"


def decode_place(cursor: str) -> tuple[int, int]:
    """Read a cursor; an empty one is the beginning.

    Raises:
        DecodeError: It was not made here.
    """
    if not cursor:
        return 0, 0
    first, _, second = cursor.partition(".")
    for part in (first, second):
        if not (part.isascii() and part.isdigit()) or len(part) > len(str(MAX_NODE)):
            raise DecodeError("invalid cursor")
    return int(first), int(second)


def _looks(
    directory: Directory, requester: Node | None, after: tuple[int, int]
) -> Iterator[tuple[int, int, bool]]:
    """Yield what is looked at in order: a link, and whether it may be shown.

    A node none of whose links was left to look at counts as a look, too.
    """
    links = directory.trust.links
    me = 0 if requester is None else requester.record.id
    members = _members(directory, requester)
    first, second = after
    for one in _ascending(_candidates(directory, requester), first):
        seen = max(one, second) if one == first else one
        is_shown = requester is None or one == me or any(one in ids for ids in members)
        if not is_shown:
            # Then it can only be linked to the requester.
            yield one, me, me > seen and links.linked(one, me)
            continue
        while partners := links.after(one, seen, _CHUNK):
            for other in partners:
                yield (
                    one,
                    other,
                    requester is None
                    or me in (one, other)
                    or any(other in ids for ids in members),
                )
            seen = partners[-1]
        yield one, seen, False


def _members(directory: Directory, requester: Node | None) -> list[IdSet]:
    """Return the members of each network of the requester, live or not."""
    if requester is None:
        return []
    known = directory.networks.by_id
    return [known[network].ids for network in requester.networks if network in known]


def _candidates(directory: Directory, requester: Node | None) -> int:
    """Return the bitmap of nodes whose links the requester may see any of."""
    links = directory.trust.links
    if requester is None:
        return links.nodes.bits()
    shown = 0
    for ids in _members(directory, requester):
        shown |= ids.bits()
    me = requester.record.id
    return (shown | 1 << me) & links.nodes.bits() | links.bits(me)


def _ascending(bits: int, first: int) -> Iterator[int]:
    after = max(first, 1) - 1
    while chunk := first_ids(bits, after=after, limit=_CHUNK):
        yield from chunk
        after = chunk[-1]
