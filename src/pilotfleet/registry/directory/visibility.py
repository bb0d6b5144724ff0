"""Who may see and reach whom (registry.md sections 6.6, 6.7 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["are_connected", "may_reach", "visible_bits"]


def are_connected(directory: Directory, one: Node, other: Node) -> bool:
    """Tell whether two nodes trust each other or share a network."""
    if directory.trust.has(one.record.id, other.record.id):
        return True
    return one.shares_network(other)


def may_reach(directory: Directory, requester: Node, target: Node) -> bool:
    """Tell whether ``requester`` may know where ``target`` is."""
    public = target.record.public
    return public or are_connected(directory, requester, target)


def visible_bits(directory: Directory, requester: Node | None) -> int:
    """Return the bitmap of the live nodes that ``requester`` may find.

    Public nodes for everybody; for a node also itself, those it trusts and the
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
