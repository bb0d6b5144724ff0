"""Nodes by ID, by public key and by owner."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.registry.messages import MAX_NODE
from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    decode_record,
    key_key,
    owner_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.tags import TagIndex

if TYPE_CHECKING:
    from pilotfleet.registry.store.base import Entry

__all__ = ["Node", "NodeTable", "StoredClaim"]


# A node never refers to itself. So the collector need not know it: a look through a
# million of them would hold up the event loop.
class Node(msgspec.Struct, eq=False, gc=False):
    """One node in memory: its record and what is kept beside it."""

    record: NodeRecord
    revision: int
    hostname: str = ""
    last_seen: float = 0.0
    """Unix time; soft state."""
    networks: tuple[int, ...] = ()
    """Networks that list the node, without the backbone, ascending."""

    @property
    def address(self) -> str:
        """The node's address on the backbone, as text."""
        return str(Address(BACKBONE, self.record.id))

    def shares_network(self, other: Node) -> bool:
        """Tell whether both are in one network other than the backbone."""
        return any(network in other.networks for network in self.networks)


class StoredClaim(NamedTuple):
    """A claim that no node's record bears out."""

    id: int
    revision: int


class NodeTable:
    """All nodes that ever were, with the indexes that follow from their records."""

    __slots__ = (
        "_free",
        "_next",
        "by_id",
        "by_key",
        "by_owner",
        "live",
        "orphans",
        "public",
        "tags",
    )

    def __init__(self) -> None:
        self.by_id: dict[int, Node] = {}
        self.by_key: dict[bytes, int] = {}
        self.by_owner: dict[str, int] = {}
        self.live = IdSet()
        self.public = IdSet()
        """Live nodes that anyone may see."""
        self.tags = TagIndex()
        self.orphans: dict[str, StoredClaim] = {}
        """Claims on keys and owners whose node says otherwise. They remain when
        a store that does not write all at once was interrupted."""
        self._next = 1
        self._free: list[int] = []

    @property
    def highest_id(self) -> int:
        """The highest ID given out so far."""
        return self._next - 1

    def get_live(self, node: int) -> Node | None:
        """Return the node if it is live."""
        found = self.by_id.get(node)
        return found if found is not None and found.record.live else None

    def reserve_id(self) -> int:
        """Return an ID that was never used.

        Raises:
            Refused: There are none left.
        """
        if self._free:
            return self._free.pop(self._free.index(min(self._free)))
        if self._next > MAX_NODE:
            raise Refused("node ID space exhausted")
        self._next += 1
        return self._next - 1

    def release_id(self, node: int) -> None:
        """Give back a reserved ID that nothing was stored under."""
        if node and node not in self.by_id:
            self._free.append(node)

    def apply_record(self, entry: Entry) -> tuple[Node, NodeRecord | None]:
        """Take over a stored record; return the node and its record before."""
        record = _shared(decode_record(entry, NodeRecord))
        node = self.by_id.get(record.id)
        if node is None:
            old = None
            node = self.by_id[record.id] = Node(record, entry.revision)
        else:
            old = node.record
            node.record = record
            node.revision = entry.revision
        self._next = max(self._next, record.id + 1)
        self._index(record, old)
        return node, old

    def apply_claim(self, entry: Entry) -> None:
        """Take over a stored claim on a key or an owner."""
        if entry.value is None:
            self.orphans.pop(entry.key, None)
            return
        claim = decode_record(entry, Claim)
        self._next = max(self._next, claim.id + 1)
        node = self.by_id.get(claim.id)
        if node is None or entry.key not in _claims_of(node.record):
            self.orphans[entry.key] = StoredClaim(claim.id, entry.revision)

    def _index(self, record: NodeRecord, old: NodeRecord | None) -> None:
        node = record.id
        if old is not None and old.key != record.key:
            self.by_key.pop(old.key, None)
        self.by_key[record.key] = node
        if record.owner:
            self.by_owner[record.owner] = node
        # Mostly there are none, and the names of the claims are digests.
        if self.orphans and (
            old is None or (old.key, old.owner) != (record.key, record.owner)
        ):
            for key in _claims_of(record):
                self.orphans.pop(key, None)
        old_tags = old.tags if old is not None and old.live else ()
        self.tags.replace(node, old_tags, record.tags if record.live else ())
        _set_member(self.live, node, member=record.live)
        _set_member(self.public, node, member=record.live and record.public)


def _claims_of(record: NodeRecord) -> tuple[str, ...]:
    keys = (key_key(record.key),)
    return (*keys, owner_key(record.owner)) if record.owner else keys


def _shared(record: NodeRecord) -> NodeRecord:
    """Return the record with texts that many nodes have in common held once."""
    # It was decoded just now, and nobody else has seen it.
    if record.version:
        msgspec.structs.force_setattr(record, "version", sys.intern(record.version))
    if record.tags:
        tags = tuple(map(sys.intern, record.tags))
        msgspec.structs.force_setattr(record, "tags", tags)
    return record


def _set_member(nodes: IdSet, node: int, *, member: bool) -> None:
    if member:
        nodes.add(node)
    else:
        nodes.discard(node)
