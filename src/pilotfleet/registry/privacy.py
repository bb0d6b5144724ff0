"""What the registry tells about a node, and to whom (registry.md section 9)."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from pilotfleet.registry.directory.keys import key_age_days
from pilotfleet.registry.directory.visibility import may_reach

if TYPE_CHECKING:
    from pilotfleet.registry.desk import Desk
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["Location", "locate", "public_endpoint", "rfc3339"]


class Location:
    """Where a node is, as far as the asker may know it."""

    __slots__ = ("key_age_days", "lan", "real_addr", "relay_only")

    def __init__(self, desk: Desk, node: Node) -> None:
        record = node.record
        self.relay_only = record.relay_only
        self.real_addr = public_endpoint(desk, node)
        # Relay-only nodes exist to hide where they are.
        self.lan = () if record.relay_only else record.lan
        self.key_age_days = key_age_days(node, desk.clock.wall())


def locate(desk: Desk, requester: Node, target: Node) -> Location | None:
    """Return where ``target`` is, or None when ``requester`` may not know."""
    if not may_reach(desk.directory, requester, target):
        # One that went to find the asker, and that the asker trusts, has shown it to
        # the asker already.
        one, other = target.record.id, requester.record.id
        is_known = desk.directory.trust.admits(other, one)
        if not (is_known and desk.contacts.has(one, other)):
            return None
    return Location(desk, target)


def public_endpoint(desk: Desk, node: Node) -> str:
    """Return the node's endpoint; for a relay-only node the beacon's."""
    if node.record.relay_only:
        return desk.beacons.own_addr
    return node.record.endpoint


def rfc3339(unix: float) -> str:
    """Return a unix time as registry messages write it."""
    return _rfc3339(int(unix))


# Nodes that are alive were all heard within the same few minutes.
@lru_cache(maxsize=4096)
def _rfc3339(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
