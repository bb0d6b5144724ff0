"""Who may see and reach whom (registry.md sections 6.6, 6.7 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["admits", "may_reach", "visible_bits"]


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
