"""Who may see and reach whom (registry.md sections 6.6, 6.7 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.idset import IdSet
    from pilotfleet.registry.directory.nodes import Node

__all__ = [
    "admits",
    "audience",
    "few_visible",
    "may_find",
    "may_reach",
    "visible_bits",
]


def admits(directory: Directory, node: Node, peer: Node) -> bool:
    """Tell whether ``node``, if it is private, lets ``peer`` connect.

    It has consented itself, or it shares a network with the peer.
    """
    if directory.trust.admits(node.record.id, peer.record.id):
        return True
    return node.shares_network(peer)


def may_reach(directory: Directory, requester: Node, target: Node) -> bool:
    """Tell whether ``requester`` may know where ``target`` is."""
    if target.record.public or target.shares_network(requester):
        return True
    return directory.trust.shows(target.record.id, requester.record.id)


def visible_bits(directory: Directory, requester: Node | None) -> int:
    """Return the bitmap of the live nodes that ``requester`` may find.

    Public nodes for everybody; for a node also itself, those that trust it and the
    members of its networks other than the backbone.
    """
    visible = directory.nodes.public.bits()
    if requester is None:
        return visible
    number = requester.record.id
    visible |= 1 << number | directory.trust.bits(number)
    for network in requester.networks:
        visible |= directory.network_members(network).bits()
    return visible & directory.nodes.live.bits()


def may_find(directory: Directory, requester: Node | None, node: Node) -> bool:
    """Tell whether ``requester`` may find a live node; as ``visible_bits`` has it."""
    if node.record.public:
        return True
    if requester is None:
        return False
    return (
        node is requester
        or node.shares_network(requester)
        or directory.trust.admits(node.record.id, requester.record.id)
    )


def few_visible(
    directory: Directory, requester: Node | None, most: int
) -> list[int] | None:
    """Return the nodes that ``requester`` may find, if they are few.

    Some may not be live. None: they may be more than ``most``.
    """
    sets: list[IdSet] = [directory.nodes.public]
    if requester is not None:
        sets += directory.trust.truster_sets(requester.record.id)
        sets += map(directory.network_members, requester.networks)
    if sum(map(len, sets)) >= most:
        return None
    found = {node for nodes in sets for node in nodes}
    if requester is not None:
        found.add(requester.record.id)
    return sorted(found)


def audience(directory: Directory, requester: Node | None) -> Hashable:
    """Return what ``visible_bits`` depends on: equal ones see the same nodes."""
    if requester is None:
        return 0, ()
    number = requester.record.id
    # Whoever is public, or in a network with others, is seen by all of them.
    is_hidden = not requester.record.public and not requester.networks
    if is_hidden or any(directory.trust.truster_sets(number)):
        return number, requester.networks
    return 0, requester.networks
