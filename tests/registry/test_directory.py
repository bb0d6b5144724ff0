"""The directory as a view of stored entries."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.liveness import OnlineTracker
from pilotfleet.registry.directory.records import (
    CLOSED_KEY,
    Claim,
    ClosedRecord,
    InviteRecord,
    MailRecord,
    MailRequest,
    MemberRecord,
    NetworkRecord,
    NodeRecord,
    PoloRecord,
    ReceiptRecord,
    encode_record,
    host_key,
    invite_key,
    key_key,
    mail_key,
    member_key,
    netname_key,
    network_key,
    node_key,
    polo_key,
    receipt_key,
    seen_key,
    trust_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    import msgspec

KEY = bytes(range(32))
RECEIPT = ReceiptRecord(
    completed_at=450 * 3600,
    reward=3,
    idle_ms=0,
    staged_ms=0,
    cpu_ms=180_000,
    digest=bytes(32),
    submitter_signature=bytes(64),
    worker_signature=bytes(64),
    submitter_key=bytes(32),
    worker_key=KEY,
)


def stored(key: str, record: msgspec.Struct | None, revision: int) -> Entry:
    return Entry(key, None if record is None else encode_record(record), revision)


def example() -> list[Entry]:
    """Entries that refer to each other in every way."""
    return [
        stored(network_key(3), NetworkRecord(3, "fleet", enterprise=True), 1),
        stored(netname_key("fleet"), Claim(3), 2),
        stored(key_key(KEY), Claim(1), 3),
        stored(node_key(1), NodeRecord(1, KEY, 500, tags=("gpu",), public=True), 4),
        stored(node_key(2), NodeRecord(2, bytes(32), 500), 5),
        stored(host_key("alice"), Claim(1), 6),
        stored(member_key(3, 1), MemberRecord("owner"), 7),
        stored(member_key(3, 2), MemberRecord(tags=("svc",)), 8),
        stored(invite_key(2, 3), InviteRecord(1, 500), 9),
        stored(trust_key(1, 2), Claim(0), 10),
        stored(mail_key(2), MailRecord((MailRequest(1, "hi", 500),), asked=(1,)), 11),
        stored(polo_key(1), PoloRecord(-5), 12),
        stored(receipt_key(2, 1, "task-1"), RECEIPT, 13),
        stored(receipt_key(1, 2, "task-2"), RECEIPT, 14),
        stored(polo_key(2), PoloRecord(1, 2, 3, 500), 15),
        stored(CLOSED_KEY, ClosedRecord(400, 500), 16),
    ]


def picture(directory: Directory) -> dict[str, Any]:
    """Return everything that a directory tells, in comparable form."""
    networks = directory.networks
    return {
        "nodes": {
            number: (node.record, node.revision, node.hostname, node.networks)
            for number, node in directory.nodes.by_id.items()
        },
        "keys": directory.nodes.by_key,
        "owners": directory.nodes.by_owner,
        "orphans": directory.nodes.orphans,
        "live": list(directory.nodes.live),
        "public": list(directory.nodes.public),
        "gpu": directory.nodes.tags.bits("gpu"),
        "hosts": {n: directory.hosts.get(n) for n in ("alice", "bob", "carol")},
        "networks": {
            number: (n.record, n.revision, n.members, list(n.live))
            for number, n in networks.by_id.items()
        },
        "names": networks.by_name,
        "invites": networks.invites,
        "sent": networks.sent,
        "garbage": networks.garbage,
        "trust": {n: directory.trust.bits(n) for n in directory.nodes.by_id},
        "mail": directory.mail,
        "polo": {
            node: (s.record, s.revision, s.earned, sorted(s.kept))
            for node, s in directory.ledger.standings.items()
        },
        "receipts": {
            key: (kept.revision, kept.value)
            for key, kept in directory.ledger.by_key.items()
        },
        "hours": {
            hour: sorted(kept.key for kept in of_hour)
            for hour, of_hour in directory.ledger.by_hour.items()
        },
        "closed": (directory.ledger.closed, directory.ledger.closed_revision),
        "online": list(directory.online.nodes),
    }


def filled(entries: list[Entry], wall: float = 600) -> Directory:
    directory = Directory()
    directory.load(entries, wall=wall)
    return directory


def test_entries_in_any_order_make_the_same_directory() -> None:
    entries = example()
    expected = picture(filled(entries))
    assert expected["nodes"][1][2:] == ("alice", (3,))
    assert expected["networks"][3][3] == [1, 2]
    for seed in range(40):
        shuffled = random.Random(seed).sample(entries, len(entries))
        assert picture(filled(shuffled)) == expected
        # One after the other, as a watch brings them.
        followed = Directory()
        for entry in shuffled:
            followed.apply(entry)
        followed.expire_online(600)
        assert picture(followed) == expected


def test_a_name_given_up_before_its_node_was_seen_stays_given_up() -> None:
    directory = Directory()
    directory.apply(stored(host_key("alice"), Claim(1), 1))
    directory.apply(Entry(host_key("alice"), None, 2))
    directory.apply(stored(member_key(3, 1), MemberRecord(), 3))
    directory.apply(Entry(member_key(3, 1), None, 4))
    directory.apply(stored(network_key(3), NetworkRecord(3, "n"), 5))
    directory.apply(stored(node_key(1), NodeRecord(1, KEY, 0), 6))
    assert directory.nodes.by_id[1].hostname == ""
    assert directory.nodes.by_id[1].networks == ()


def test_entries_applied_twice_change_nothing() -> None:
    entries = example()
    assert picture(filled([*entries, *entries])) == picture(filled(entries))


def test_an_ended_network_leaves_garbage_and_no_trace() -> None:
    tombstone = stored(network_key(3), NetworkRecord(3, deleted=True), 20)
    late = filled([*example(), tombstone])
    early = filled([tombstone, *[e for e in example() if e.key != "net.3"]])
    for directory in (late, early):
        assert directory.nodes.by_id[1].networks == ()
        assert directory.networks.invites == {}
        assert directory.networks.garbage == {"member.3.1", "member.3.2", "invite.2.3"}
        assert directory.networks.reserve_id() == 4
        directory.apply(Entry("member.3.1", None, 21))
        assert "member.3.1" not in directory.networks.garbage


def test_a_dead_node_is_out_of_every_index_and_comes_back_into_them() -> None:
    directory = filled(example())
    dead = NodeRecord(1, KEY, 500, live=False)
    directory.apply(stored(node_key(1), dead, 20))
    assert list(directory.nodes.live) == [2]
    assert directory.nodes.tags.bits("gpu") == 0
    assert list(directory.network_members(3)) == [2]
    assert not directory.is_online(1)
    directory.apply(stored(node_key(1), NodeRecord(1, KEY, 900), 21))
    assert list(directory.network_members(3)) == [1, 2]
    assert directory.nodes.by_id[1].last_seen == 900


def test_the_collector_has_no_nodes_to_look_through() -> None:
    nodes = filled(example()).nodes.by_id.values()
    assert nodes
    assert not any(map(gc.is_tracked, nodes))


def test_a_claim_that_its_node_does_not_bear_out_is_remembered() -> None:
    directory = Directory()
    directory.apply(stored(key_key(KEY), Claim(5), 1))
    assert directory.nodes.orphans[key_key(KEY)] == (5, 1)
    assert directory.nodes.reserve_id() == 6
    directory.apply(stored(node_key(5), NodeRecord(5, KEY, 0), 2))
    assert directory.nodes.orphans == {}
    directory.apply(stored(key_key(bytes(32)), Claim(5), 3))
    directory.apply(Entry(key_key(bytes(32)), None, 4))
    assert directory.nodes.orphans == {}


def test_ids_are_given_back_and_end() -> None:
    nodes = Directory().nodes
    first, second = nodes.reserve_id(), nodes.reserve_id()
    nodes.release_id(second)
    nodes.release_id(first)
    assert [nodes.reserve_id() for _ in range(3)] == [1, 2, 3]
    last = NodeRecord(0xFFFF_FFFF, KEY, 0)
    nodes.apply_record(stored(node_key(last.id), last, 1))
    with pytest.raises(Refused, match="node ID space exhausted"):
        nodes.reserve_id()
    nodes.release_id(last.id)
    with pytest.raises(Refused, match="node ID space exhausted"):
        nodes.reserve_id()


def test_network_ids_end() -> None:
    networks = Directory().networks
    last = NetworkRecord(0xFFFF, deleted=True)
    networks.apply_record(stored(network_key(last.id), last, 1))
    with pytest.raises(Refused, match=r"exhausted \(max 65535 networks\)"):
        networks.reserve_id()


def test_last_seen_times_survive_in_blocks() -> None:
    directory = filled(example())
    directory.touch(1, 1000.7)
    directory.touch(2, 1001.2)
    (change,) = directory.seen_changes(10)
    assert change.key == seen_key(0)
    assert directory.seen_changes(10) == []
    entry = Entry(change.key, change.value, 30)
    loaded = filled([entry, *example()], wall=1002)
    assert loaded.nodes.by_id[1].last_seen == 1000
    assert list(loaded.online.nodes) == [1, 2]
    # An older block takes nothing back.
    directory.apply(entry)
    assert directory.nodes.by_id[1].last_seen == 1000.7


def test_going_offline_takes_the_whole_window() -> None:
    directory = filled(example(), wall=500)
    directory.touch(1, 500)
    for wall, online in ((680, True), (681, False)):
        directory.expire_online(wall)
        assert directory.is_online(1) is online
    directory.touch(1, 700)
    directory.expire_online(879)
    assert directory.is_online(1)
    assert not directory.is_online(2)


def test_coming_and_going_leaves_one_entry() -> None:
    tracker = OnlineTracker(180)
    for wall in range(100):
        tracker.seen(1, wall)
        tracker.forget(1)
    tracker.seen(1, 100)
    assert sum(map(len, tracker._due.values())) == 1
    tracker.expire(181, lambda node: 100.0)
    assert 1 in tracker.nodes
    tracker.expire(282, lambda node: 100.0)
    assert 1 not in tracker.nodes
    assert not tracker._due
    tracker.seen(1, 300)
    assert 1 in tracker.nodes
    assert sum(map(len, tracker._due.values())) == 1


def test_unknown_kinds_are_left_to_newer_releases() -> None:
    filled([Entry("future.5", b"?", 1)])


@pytest.mark.parametrize("key", ["node.1", "host.a", "mail.1", "seen.0", "key.x"])
def test_entries_that_cannot_be_read_are_reported_by_name(key: str) -> None:
    with pytest.raises(StorageError, match=key.replace(".", r"\.")):
        filled([Entry(key, b"\xc1", 1)])


def test_deletions_of_what_is_not_there_are_harmless() -> None:
    keys = [entry.key for entry in example()]
    directory = filled([Entry(key, None, 1) for key in (*keys, "seen.0")])
    assert picture(directory)["nodes"] == {}


def test_a_herd_that_falls_silent_is_looked_at_in_parts() -> None:
    tracker = OnlineTracker(180)
    for node in range(1, 26):
        tracker.seen(node, 100)
    assert not tracker.is_due(280)
    assert len(tracker.expire(281, lambda node: 100.0, limit=10)) == 10
    assert tracker.is_due(281)
    # Those that were heard meanwhile stay online, and are looked at later.
    assert tracker.expire(281, lambda node: 200.0, limit=10) == []
    assert len(tracker.expire(281, lambda node: 100.0, limit=10)) == 5
    assert not tracker.is_due(380)
    assert len(tracker.nodes) == 10
    assert tracker.is_due(381)


def test_silence_of_many_is_noted_in_parts() -> None:
    directory = filled(example(), wall=500)
    revision = directory.changes.revision
    assert directory.expire_online(1000, limit=1)
    while directory.expire_online(1000, limit=1):
        pass
    assert not len(directory.online.nodes)
    assert directory.changes.revision > revision
