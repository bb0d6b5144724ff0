"""Which part of who trusts whom, and who has tunnels to whom, can be drawn."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.monitor.figures import Link, TrustGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pilotfleet.fleet.monitor.figures import AgentRow

__all__ = ["draw"]

MAX_NODES: Final = 2_000
MAX_LINKS: Final = 10_000
TRUST: Final = "trust"
TUNNEL: Final = "tunnel"


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
    links = {
        (one, other, TRUST) for one in trust for other in trust[one] if one < other
    }
    for one, peers in tunnels:
        links.update((min(one, peer), max(one, peer), TUNNEL) for peer in peers)
    weights = dict.fromkeys(nodes, 0)
    for one, other, _ in links:
        weights[one] = weights.get(one, 0) + 1
        weights[other] = weights.get(other, 0) + 1
    limit = max(0, min(limit, MAX_NODES))
    chosen = heapq.nsmallest(limit, weights, key=lambda node: (-weights[node], node))
    rows = {node: row_of(node) for node in chosen}
    within = sorted(link for link in links if link[0] in rows and link[1] in rows)
    shown = tuple(
        Link(one=rows[one].name, other=rows[other].name, kind=kind)
        for one, other, kind in within[:MAX_LINKS]
    )
    return TrustGraph(
        nodes=tuple(rows.values()),
        links=shown,
        hidden_nodes=len(weights) - len(rows),
        hidden_links=len(links) - len(shown),
    )
