"""The directory: everything the registry knows, in memory.

It is a view of the store. ``load`` fills it, ``apply`` takes over one stored
entry, whoever wrote it, and nothing else changes it, last-seen times excepted.
So two directories that saw the same entries are the same, and a directory that
is loaded after a crash is the one that was lost. The rules that decide about
requests are functions in the modules beside this one: they read the directory
and return a ``Decision`` of changes to store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import StorageError
from pilotfleet.registry.directory.changes import ChangeLog
from pilotfleet.registry.directory.hostnames import HostClaim, HostnameIndex
from pilotfleet.registry.directory.idset import IdSet
from pilotfleet.registry.directory.ledger import Ledger
from pilotfleet.registry.directory.liveness import (
    OnlineTracker,
    decode_seen_block,
    encode_seen_block,
    seen_block,
)
from pilotfleet.registry.directory.mailbox import EMPTY, Mailbox
from pilotfleet.registry.directory.networks import NetworkTable
from pilotfleet.registry.directory.nodes import Node, NodeTable
from pilotfleet.registry.directory.records import (
    Claim,
    MailRecord,
    decode_record,
    seen_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.trust import Grant, TrustTable
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pilotfleet.registry.directory.networks import Network
    from pilotfleet.registry.directory.records import NodeRecord
    from pilotfleet.registry.store.base import Entry

__all__ = ["ONLINE_WINDOW_S", "Directory"]

ONLINE_WINDOW_S: Final = 180.0
"""A node counts as online for so long after it was heard (section 6.5)."""

EXPIRED_AT_ONCE: Final = 500
"""Nodes of which a request looks whether they are still online: less than 1 ms."""

_NO_MEMBERS: Final = IdSet()


class Directory:
    """Nodes, names, tags, networks, trust, mail and scores, as the store has them."""

    def __init__(self, *, online_window_s: float = ONLINE_WINDOW_S) -> None:
        self.nodes = NodeTable()
        self.hosts = HostnameIndex()
        self.networks = NetworkTable()
        self.trust = TrustTable()
        self.mail: dict[int, Mailbox] = {}
        self.ledger = Ledger()
        self.online = OnlineTracker(online_window_s)
        self.changes = ChangeLog()
        """What has changed of that which a search shows."""
        self._dirty_blocks: set[int] = set()
        self._loading = False
        self._shared_networks: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._early: dict[tuple[str, int], dict[str, Entry]] = {}
        """Entries that refer to a node or network that was not seen yet. Both a
        load and a watch may bring the younger version of a record only, after
        what was written in between."""
        self._appliers: dict[str, Callable[[str, Entry], None]] = {
            "node": self._apply_node,
            "key": self._apply_claim,
            "owner": self._apply_claim,
            "host": self._apply_host,
            "net": self._apply_network,
            "netname": self._apply_netname,
            "member": self._apply_member,
            "invite": self._apply_invite,
            "trust": self._apply_old_trust,
            "grant": self._apply_grant,
            "mail": self._apply_mail,
            "polo": self._apply_polo,
            "receipt": self._apply_receipt,
            "receipts": self._apply_closed,
            "seen": self._apply_seen,
        }

    # Looking things up.

    def node(self, node: int) -> Node:
        """Return a live node.

        Raises:
            Refused: With the words that make a daemon register again.
        """
        found = self.nodes.get_live(node)
        if found is None:
            raise Refused(f"node {node}: node not found")
        return found

    def network(self, network: int) -> Network:
        """Return a network, the backbone included.

        Raises:
            Refused: There is none with this ID.
        """
        found = self.networks.by_id.get(network)
        if found is None:
            raise Refused(f"network {network}: network not found")
        return found

    def network_members(self, network: int) -> IdSet:
        """Return the live members of a network other than the backbone."""
        found = self.networks.by_id.get(network)
        return _NO_MEMBERS if found is None else found.live

    def mailbox(self, node: int) -> Mailbox:
        """Return the handshake box of a node."""
        return self.mail.get(node, EMPTY)

    def polo_score(self, node: int) -> int:
        """Return the reputation of a node."""
        standing = self.ledger.standings.get(node)
        return 0 if standing is None else standing.score

    def is_online(self, node: int) -> bool:
        """Tell whether the node was heard lately."""
        return node in self.online.nodes

    # Soft state.

    def touch(self, node: int, wall: float) -> None:
        """Note that a live node was heard at unix time ``wall``."""
        found = self.nodes.get_live(node)
        if found is not None and wall > found.last_seen:
            found.last_seen = wall
            self._note_seen(node, wall)
            self._dirty_blocks.add(seen_block(node))

    def expire_online(self, wall: float, *, limit: int = EXPIRED_AT_ONCE) -> bool:
        """Take nodes offline that were not heard lately.

        Looks at ``limit`` nodes at most, so that nobody waits for a herd that fell
        silent; returns whether there are more.
        """
        if not self.online.is_due(wall):
            return False
        for node in self.online.expire(wall, self._last_seen, limit=limit):
            self.changes.note_row(node)
        return self.online.is_due(wall)

    def seen_changes(self, limit: int) -> list[Change]:
        """Return the last-seen times that changed, in at most ``limit`` blocks."""
        blocks = [self._dirty_blocks.pop() for _ in range(limit) if self._dirty_blocks]
        return [
            Change(seen_key(block), encode_seen_block(block, self._last_seen), None)
            for block in blocks
        ]

    # Taking over what is stored.

    def load(self, entries: Iterable[Entry], *, wall: float) -> None:
        """Fill an empty directory with all that a store holds.

        Raises:
            StorageError: An entry cannot be read.
        """
        self._loading = True
        seen: list[Entry] = []
        for entry in entries:
            if entry.key.startswith("seen."):
                seen.append(entry)
            else:
                self.apply(entry)
        for entry in seen:
            self.apply(entry)
        self._loading = False
        nodes = self.nodes.by_id
        self.hosts.show_all(n.hostname for n in nodes.values() if n.hostname)
        live = ((n, node.last_seen) for n, node in nodes.items() if node.record.live)
        self.online.fill(live, wall)

    def apply(self, entry: Entry) -> None:
        """Take over one stored entry. Entries of one key come in order.

        Raises:
            StorageError: The entry cannot be read.
        """
        kind, _, rest = entry.key.partition(".")
        applier = self._appliers.get(kind)
        # A newer release may keep things in the store that we do not know.
        if applier is not None:
            applier(rest, entry)

    def _apply_node(self, _: str, entry: Entry) -> None:
        if entry.value is None:
            return
        node, old = self.nodes.apply_record(entry)
        self._note_record(node.record, old)
        if not node.record.live:
            self._end_node(node)
        elif old is None or not old.live:
            self._begin_node(node)
        if old is None:
            self._apply_early("node", node.record.id)

    def _note_record(self, record: NodeRecord, old: NodeRecord | None) -> None:
        # Nobody has looked at a directory that is being loaded.
        if self._loading:
            return
        # An endpoint or a version is not shown, and changes often.
        if old is None or (old.live, old.tags) != (record.live, record.tags):
            self.changes.note_row(record.id)
        elif old.public != record.public:
            self.changes.note_view()

    def _begin_node(self, node: Node) -> None:
        number = node.record.id
        node.last_seen = float(node.record.created)
        self._note_seen(number, node.last_seen)
        for network in node.networks:
            self.network_members(network).add(number)

    def _end_node(self, node: Node) -> None:
        if self.online.forget(node.record.id):
            self.changes.note_row(node.record.id)
        node.last_seen = 0.0
        for network in node.networks:
            self.network_members(network).discard(node.record.id)

    def _apply_claim(self, _: str, entry: Entry) -> None:
        self.nodes.apply_claim(entry)

    def _apply_host(self, name: str, entry: Entry) -> None:
        old = self.hosts.get(name)
        if old is not None:
            self._take_hostname(old.node, name)
            self._early.get(("node", old.node), {}).pop(entry.key, None)
        if entry.value is None:
            self.hosts.release(name)
            return
        claim = decode_record(entry, Claim)
        self.hosts.claim(name, HostClaim(claim.id, entry.revision))
        node = self.nodes.by_id.get(claim.id)
        if node is None:
            self._keep_early("node", claim.id, entry)
        else:
            self._show_hostname(node, name)

    def _take_hostname(self, node: int, name: str) -> None:
        found = self.nodes.by_id.get(node)
        if found is not None and found.hostname == name:
            self._show_hostname(found, "")

    def _show_hostname(self, node: Node, name: str) -> None:
        number, old = node.record.id, node.hostname
        node.hostname = name
        # A load puts them in order when it is done.
        if self._loading:
            return
        self.changes.note_row(number)
        if old:
            self.hosts.hide(old, number)
        if name:
            self.hosts.show(name, number)

    def _apply_network(self, rest: str, entry: Entry) -> None:
        if entry.value is None:
            return
        ended = self.networks.apply_record(entry)
        if ended is not None:
            for node in ended.members:
                self._set_networks(node, ended.record.id, member=False)
        self._apply_early("net", int(rest))

    def _apply_netname(self, name: str, entry: Entry) -> None:
        self.networks.apply_name(name, entry)

    def _apply_member(self, rest: str, entry: Entry) -> None:
        network, node = _two_numbers(rest)
        if not self.networks.is_known(network):
            self._keep_early("net", network, entry)
        elif node not in self.nodes.by_id:
            self._keep_early("node", node, entry)
        elif self.networks.apply_member(network, node, entry):
            self._set_networks(node, network, member=entry.value is not None)

    def _set_networks(self, node: int, network: int, *, member: bool) -> None:
        found = self.nodes.by_id.get(node)
        if found is None:
            return
        if (network in found.networks) != member:
            self.trust.links.changed_in((network,))
            self.changes.note_view()
        others = [known for known in found.networks if known != network]
        if member:
            others.append(network)
            if found.record.live:
                self.network_members(network).add(node)
        networks = tuple(sorted(others))
        # A fleet has one tuple, not one for each member.
        if len(networks) == 1:
            networks = self._shared_networks.setdefault(networks, networks)
        found.networks = networks

    def _apply_invite(self, rest: str, entry: Entry) -> None:
        node, network = _two_numbers(rest)
        if self.networks.is_known(network):
            self.networks.apply_invite(node, network, entry)
        else:
            self._keep_early("net", network, entry)

    def _apply_old_trust(self, rest: str, entry: Entry) -> None:
        one, other = _two_numbers(rest)
        self.changes.note_view()
        if self.trust.set_old_pair(one, other, exists=entry.value is not None):
            self._note_link(one, other)

    def _apply_grant(self, rest: str, entry: Entry) -> None:
        node, peer = _two_numbers(rest)
        try:
            grant = None if entry.value is None else Grant(entry.value)
        except ValueError:
            raise StorageError(f"entry {entry.key} cannot be read") from None
        self.changes.note_view()
        if self.trust.set_grant(node, peer, grant):
            self._note_link(node, peer)

    def _note_link(self, one: int, other: int) -> None:
        # Networks that are not known yet note their members when they come.
        ends = [self.nodes.by_id.get(node) for node in (one, other)]
        networks = [() if node is None else node.networks for node in ends]
        # A link to a node of no network is shown to its ends only, and nobody else
        # needs to know that there is something new.
        if all(networks):
            self.trust.links.changed_in({*networks[0], *networks[1]})

    def _apply_mail(self, rest: str, entry: Entry) -> None:
        if entry.value is None:
            self.mail.pop(int(rest), None)
        else:
            record = decode_record(entry, MailRecord)
            self.mail[int(rest)] = Mailbox(record, entry.revision)

    def _apply_polo(self, rest: str, entry: Entry) -> None:
        node = int(rest)
        before = self.polo_score(node)
        self.ledger.apply_standing(node, entry)
        if self.polo_score(node) != before:
            self.changes.note_row(node)

    def _apply_receipt(self, rest: str, entry: Entry) -> None:
        ends = tuple(map(int, rest.split(".")[:2]))
        before = tuple(map(self.polo_score, ends))
        self.ledger.apply_receipt(entry)
        # Receipts that were folded are forgotten without effect.
        for node, score in zip(ends, before, strict=True):
            if self.polo_score(node) != score:
                self.changes.note_row(node)

    def _apply_closed(self, _: str, entry: Entry) -> None:
        self.ledger.apply_closed(entry)

    def _apply_seen(self, _: str, entry: Entry) -> None:
        if entry.value is None:
            return
        for node, time in decode_seen_block(entry):
            found = self.nodes.get_live(node)
            if found is not None and time > found.last_seen:
                found.last_seen = float(time)
                self._note_seen(node, time)

    def _note_seen(self, node: int, wall: float) -> None:
        # A load looks who is online when it knows when each was heard last.
        if not self._loading and self.online.seen(node, wall):
            self.changes.note_row(node)

    def _keep_early(self, kind: str, number: int, entry: Entry) -> None:
        self._early.setdefault((kind, number), {})[entry.key] = entry

    def _apply_early(self, kind: str, number: int) -> None:
        for entry in self._early.pop((kind, number), {}).values():
            self.apply(entry)

    def _last_seen(self, node: int) -> float:
        found = self.nodes.by_id.get(node)
        return 0.0 if found is None else found.last_seen


def _two_numbers(rest: str) -> tuple[int, int]:
    first, _, second = rest.partition(".")
    return int(first), int(second)
