"""Networks, their members, and invitations to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pilotfleet.protocol.address import BACKBONE
from pilotfleet.protocol.registry.messages import MAX_NETWORK
from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.records import (
    Claim,
    InviteRecord,
    MemberRecord,
    NetworkRecord,
    decode_record,
    invite_key,
    member_key,
)
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from pilotfleet.registry.store.base import Entry

__all__ = ["BACKBONE_NAME", "Invite", "Member", "Network", "NetworkTable"]

BACKBONE_NAME: Final = "backbone"

_PLAIN_MEMBER: Final = MemberRecord()
"""Stands in for all equal ones: nearly every member is such a one."""


class Member(NamedTuple):
    """A membership and the revision it has in the store."""

    record: MemberRecord
    revision: int


class Invite(NamedTuple):
    """An invitation and the revision it has in the store."""

    record: InviteRecord
    revision: int


class Network:
    """One network in memory."""

    __slots__ = ("ids", "live", "members", "record", "revision")

    def __init__(self, record: NetworkRecord, revision: int) -> None:
        self.record = record
        self.revision = revision
        self.members: dict[int, Member] = {}
        self.ids = IdSet()
        """The members, live or not."""
        self.live = IdSet()
        """The members that are live nodes."""

    def role(self, node: int) -> str:
        """Return the role of a node; empty when it is no member."""
        member = self.members.get(node)
        return "" if member is None else member.record.role


class NetworkTable:
    """Networks by ID and name, and the invitations that wait."""

    __slots__ = ("_ended", "_next", "by_id", "by_name", "garbage", "invites", "sent")

    def __init__(self) -> None:
        backbone = NetworkRecord(BACKBONE, BACKBONE_NAME)
        self.by_id: dict[int, Network] = {BACKBONE: Network(backbone, 0)}
        """Networks that exist; the backbone's members are not listed."""
        self.by_name: dict[str, StoredName] = {}
        self.invites: dict[int, dict[int, Invite]] = {}
        """By invited node, then by network."""
        self.sent: dict[int, set[tuple[int, int]]] = {}
        """By inviter: (invited node, network)."""
        self._ended: set[int] = set()
        self.garbage: set[str] = set()
        """Keys left over from deleted networks, to be deleted in batches."""
        self._next = 1

    def is_known(self, network: int) -> bool:
        """Tell whether the network exists or has existed."""
        return network in self.by_id or network in self._ended

    def reserve_id(self) -> int:
        """Return an ID that was never used.

        Raises:
            Refused: There are none left.
        """
        if self._next > MAX_NETWORK:
            raise Refused(f"network ID space exhausted (max {MAX_NETWORK} networks)")
        self._next += 1
        return self._next - 1

    def named(self, name: str) -> Network | None:
        """Return the network with a name."""
        claim = self.by_name.get(name)
        network = None if claim is None else self.by_id.get(claim.id)
        return network if network is not None and network.record.name == name else None

    def name_revision(self, name: str) -> int:
        """Return the revision of the claim on a name; 0 when there is none."""
        claim = self.by_name.get(name)
        return 0 if claim is None else claim.revision

    def apply_record(self, entry: Entry) -> Network | None:
        """Take over a stored record; return the network that it ended."""
        record = decode_record(entry, NetworkRecord)
        self._next = max(self._next, record.id + 1)
        network = self.by_id.get(record.id)
        if record.deleted:
            return self._end(record.id)
        if network is None:
            self.by_id[record.id] = Network(record, entry.revision)
        else:
            network.record = record
            network.revision = entry.revision
        return None

    def apply_name(self, name: str, entry: Entry) -> None:
        """Take over a stored claim on a name."""
        if entry.value is None:
            self.by_name.pop(name, None)
        else:
            claim = decode_record(entry, Claim)
            self.by_name[name] = StoredName(claim.id, entry.revision)

    def apply_member(self, network: int, node: int, entry: Entry) -> bool:
        """Take over a stored membership; tell whether the network exists."""
        found = self.by_id.get(network)
        if found is None:
            self._leave_garbage(entry)
            return False
        if entry.value is None:
            found.members.pop(node, None)
            found.ids.discard(node)
            found.live.discard(node)
        else:
            record = decode_record(entry, MemberRecord)
            if record == _PLAIN_MEMBER:
                record = _PLAIN_MEMBER
            found.members[node] = Member(record, entry.revision)
            found.ids.add(node)
        return True

    def apply_invite(self, node: int, network: int, entry: Entry) -> None:
        """Take over a stored invitation."""
        old = self.invites.get(node, {}).get(network)
        if old is not None:
            self._forget_invite(node, network, old.record.inviter)
        if network not in self.by_id:
            self._leave_garbage(entry)
        elif entry.value is not None:
            record = decode_record(entry, InviteRecord)
            invite = Invite(record, entry.revision)
            self.invites.setdefault(node, {})[network] = invite
            self.sent.setdefault(record.inviter, set()).add((node, network))

    def _forget_invite(self, node: int, network: int, inviter: int) -> None:
        waiting = self.invites[node]
        del waiting[network]
        if not waiting:
            del self.invites[node]
        sent = self.sent[inviter]
        sent.discard((node, network))
        if not sent:
            del self.sent[inviter]

    def _end(self, network: int) -> Network | None:
        self._ended.add(network)
        ended = self.by_id.pop(network, None)
        if ended is None:
            return None
        self.garbage.update(member_key(network, node) for node in ended.members)
        for node, waiting in list(self.invites.items()):
            invite = waiting.get(network)
            if invite is not None:
                self._forget_invite(node, network, invite.record.inviter)
                self.garbage.add(invite_key(node, network))
        return ended

    def _leave_garbage(self, entry: Entry) -> None:
        if entry.value is None:
            self.garbage.discard(entry.key)
        else:
            self.garbage.add(entry.key)


class StoredName(NamedTuple):
    """The stored claim of a network on a name."""

    id: int
    revision: int
