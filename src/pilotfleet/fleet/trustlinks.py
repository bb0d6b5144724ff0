"""Which agents trust each other, as the registry tells a member of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pilotfleet.errors import ProtocolError

if TYPE_CHECKING:
    from pilotfleet.client.daemon import DaemonClient

__all__ = ["TrustLinks", "read_trust_links"]

PAGE: Final = 1_000
MAX_LINKS: Final = 1_000_000
MAX_PAGES: Final = 100_000
"""The registry may send pages with few links; it must not send them for ever."""


class TrustLinks(NamedTuple):
    """All links that an agent may know of."""

    generation: int
    """Give it the next time: nothing is read if nothing has changed."""
    links: frozenset[tuple[int, int]]
    """Pairs of node ids, the lower first."""


class _Link(msgspec.Struct):
    a: int
    b: int


class _Page(msgspec.Struct):
    generation: int
    unchanged: bool = False
    links: list[_Link] = []
    next_cursor: str = ""


async def read_trust_links(
    client: DaemonClient, *, generation: int | None = None
) -> TrustLinks | None:
    """Return who trusts whom among those that the client's agent may know of.

    Those are the members of its networks, and its own peers.

    Args:
        client: A connection to the daemon.
        generation: What was read last; None is returned if that still holds.

    Raises:
        NotSupported: The daemon or the registry does not tell.
        ProtocolError: The registry's answer makes no sense.
    """
    known: dict[str, Any] = {} if generation is None else {"generation": generation}
    page = await _read_page(client, **known)
    if page.unchanged:
        return None
    # A change while it is read makes another generation, so it is read again.
    first = page.generation
    links: set[tuple[int, int]] = set()
    for _ in range(MAX_PAGES):
        links.update((min(row.a, row.b), max(row.a, row.b)) for row in page.links)
        if not page.next_cursor:
            return TrustLinks(first, frozenset(links))
        if len(links) > MAX_LINKS:
            break
        page = await _read_page(client, cursor=page.next_cursor)
    raise ProtocolError(f"the registry lists more than {MAX_LINKS:,} trust links")


async def _read_page(client: DaemonClient, **query: Any) -> _Page:
    answer = await client.call("list_trust", limit=PAGE, **query)
    try:
        return msgspec.convert(answer, _Page)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the registry's list of trust links: {error}") from None
