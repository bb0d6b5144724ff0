"""Which part of who trusts whom, and who has tunnels to whom, can be drawn."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.figures import Link, TrustGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pilotfleet.fleet.monitor.figures import AgentRow

__all__ = ["draw"]

MAX_NODES: Final = 2_000
MAX_LINKS: Final = 10_000
MAX_TUNNELS: Final = 100_000
"""Beyond these the tunnels of further agents are only counted."""
TRUST: Final = "trust"
TUNNEL: Final = "tunnel"
_BITS: Final = 32
_MASK: Final = (1 << _BITS) - 1


def draw(
    nodes: Iterable[int],
    *,
    trust: Mapping[int, Sequence[int]],
    tunnels: Iterable[tuple[int, Sequence[int]]],
    row_of: Callable[[int], AgentRow],
    limit: int,
) -> TrustGraph:
    """Return the nodes with the most links, and the links between them.

    Args:
        nodes: Those that are drawn without links as well.
        trust: Both ways.
        tunnels: Of each node that it is known of; one end may know more than the other.
        row_of: Gives what is shown of a node.
        limit: At most so many nodes.
    """
    # Two numbers in one, as links of a large fleet are many.
    trusted = {
        _packed(one, other) for one in trust for other in trust[one] if one < other
    }
    tunnelled, left_out = _tunnelled(tunnels)
    weights = Counter(dict.fromkeys(nodes, 0))
    for links in (trusted, tunnelled):
        weights.update(link >> _BITS for link in links)
        weights.update(link & _MASK for link in links)
    limit = max(0, min(limit, MAX_NODES))
    chosen = heapq.nsmallest(limit, weights, key=lambda node: (-weights[node], node))
    rows = {node: row_of(node) for node in chosen}
    within = sorted(
        (link, kind)
        for kind, links in ((TRUST, trusted), (TUNNEL, tunnelled))
        for link in links
        if link >> _BITS in rows and link & _MASK in rows
    )
    shown = tuple(
        Link(one=rows[link >> _BITS].name, other=rows[link & _MASK].name, kind=kind)
        for link, kind in within[:MAX_LINKS]
    )
    return TrustGraph(
        nodes=tuple(rows.values()),
        links=shown,
        hidden_nodes=len(weights) - len(rows),
        hidden_links=len(trusted) + len(tunnelled) + left_out - len(shown),
    )


def _tunnelled(
    tunnels: Iterable[tuple[int, Sequence[int]]],
) -> tuple[set[int], int]:
    """Return the tunnels that are looked at, and how many more there may be.

    Anyone may say what he likes of a hundred thousand agents, and nobody else gets a
    turn while this is counted.
    """
    found: set[int] = set()
    left_out = 0
    for one, peers in tunnels:
        if len(found) < MAX_TUNNELS:
            found.update(_packed(one, peer) for peer in peers)
        else:
            left_out += len(peers)
    return found, left_out


def _packed(one: int, other: int) -> int:
    return one << _BITS | other if one < other else other << _BITS | one
