"""Key exchange between endpoints in memory, and with hand-made frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import Busy
from pilotfleet.protocol.beacon import Delivery, PunchCommand, Relay, decode_message
from pilotfleet.protocol.tunnel.config import TunnelConfig
from pilotfleet.protocol.tunnel.events import (
    KeyWanted,
    PacketReceived,
    PathWanted,
    TunnelEstablished,
    TunnelFailed,
)
from pilotfleet.protocol.tunnel.frames import (
    decode_key_exchange,
    encode_authenticated,
    encode_key_request,
)
from pilotfleet.protocol.tunnel.keys import KeyPair
from pilotfleet.protocol.tunnel.session import Session
from tests.protocol.tunnel.support import (
    BEACON,
    A,
    B,
    World,
    connected,
    direct_is_blocked,
    identity_of,
    nothing_arrives,
    pair,
    stream_packet,
    vectors,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

_STRANGER = ("192.0.2.66", 6)


def _greeting(node: int, seed: str = "x", *, signer: int | None = None) -> bytes:
    """Return a PILA of a node, signed by it or by another."""
    key = KeyPair(seed.encode().ljust(32, b"."))
    return encode_authenticated(node, key.public, identity_of(signer or node))


# Cold contact


def test_first_packet_makes_a_tunnel_and_arrives() -> None:
    world, a, b = pair()
    world.send(A, B, b"hello")
    assert b.payloads() == [b"hello"]
    assert a.of(TunnelEstablished) == [
        TunnelEstablished(B, authenticated=True, relayed=False, rekeyed=False)
    ]
    assert b.of(TunnelEstablished) == [
        TunnelEstablished(A, authenticated=True, relayed=False, rekeyed=False)
    ]
    assert b.of(PacketReceived)[0].relayed is False


def test_cold_contact_goes_directly_and_repeats_through_the_punched_hole() -> None:
    world, a, b = pair()
    world.send(A, B)
    from_a = [
        (s.magic or s.data[:1], s.target) for s in world.sent if s.source == a.address
    ]
    assert from_a[0] == (b"\x03", BEACON)
    assert from_a[1] == (b"PILA", b.address)
    # The answer to B's answer, then the packet that waited.
    rest = [item for item in from_a[2:] if item[0] != b"PILP"]
    through_hole, answer = (b"PILA", b.address), (b"PILA", b.address)
    assert rest == [through_hole, answer, (b"PILS", b.address)]
    from_b = list(world.frames(b"PILA", B))
    assert [s.target for s in from_b] == [a.address]
    assert not any(s.is_relay for s in world.sent)


def test_nats_that_let_only_answers_in_are_punched_at_once() -> None:
    world, a, b = pair()
    world.filter_by_nat({a.address, b.address})
    world.send(A, B)
    world.advance(0.2)
    assert b.payloads() == [b"data"]
    assert not a.endpoint.is_relayed(B)
    assert not b.endpoint.is_relayed(A)
    assert not any(s.is_relay for s in world.sent)


def test_punched_port_counts_more_than_the_registered_one() -> None:
    world, a, b = pair()
    # As a 1.18.0 daemon behind a NAT that listens on port 0: it registers the port of
    # another socket. Only the beacon knows the right one.
    world.registered[B] = (b.address[0], b.address[1] + 1)
    world.filter_by_nat({a.address, b.address})
    world.send(A, B)
    assert not a.endpoint.is_relayed(B)
    assert a.endpoint.peers()[0].address == b.address


def test_punch_command_that_nobody_asked_for_brings_no_greeting() -> None:
    world, a, b = pair()
    world.inject(A, PunchCommand(b.address).encode(), BEACON)
    assert world.frames(b"PILA") == []
    assert [s.data for s in world.sent] == [b"PILP"] * 3
    assert a.events == []


def test_punch_command_that_comes_late_brings_no_greeting() -> None:
    world, _, _ = pair(delivers=nothing_arrives)
    world.send(A, B)
    world.advance(2.1)
    late = ("198.51.100.9", 9)
    world.inject(A, PunchCommand(late).encode(), BEACON)
    assert [s.data for s in world.sent if s.target == late] == [b"PILP"] * 3


def test_both_sides_may_begin_at_once() -> None:
    world, a, b = pair()
    for node, peer in ((a, B), (b, A)):
        node.endpoint.send_packet(peer, stream_packet(node.id, peer), world.now)
    world.settle()
    assert a.payloads() == b.payloads() == [b"data"]
    world.advance(20)
    assert len(a.of(TunnelEstablished)) == len(b.of(TunnelEstablished)) == 1


def test_packets_wait_in_order_for_the_key() -> None:
    world, a, b = pair()
    for number in range(64):
        packet = stream_packet(A, B, b"%d" % number)
        a.endpoint.send_packet(B, packet, world.now)
    world.settle()
    assert b.payloads() == [b"%d" % number for number in range(64)]


def test_vector_keys_give_the_vector_frames() -> None:
    wire = vectors("wire.json")
    keys, frames = wire["key_derivation"], wire["key_exchange"]["frames"]
    world = World()
    a = world.add(A, key_pair=KeyPair(bytes.fromhex(keys["a_x25519_private"])))
    b = world.add(B, key_pair=KeyPair(bytes.fromhex(keys["b_x25519_private"])))
    del b
    a.endpoint.send_packet(B, stream_packet(A, B), world.now)
    world.settle()
    exchange = decode_key_exchange(world.frames(b"PILA", A)[0].data)
    assert exchange.tunnel_key.hex() == frames[0]["x25519_public"]
    session = Session(bytes.fromhex(keys["key"]), 0, own_public=b"", peer_public=b"")
    assert session.open(world.frames(b"PILS", A)[0].data) == stream_packet(A, B)


# Bounds


def test_full_queue_refuses_the_new_packet() -> None:
    world, a, b = pair(answers=False)
    del b
    for _ in range(64):
        a.endpoint.send_packet(B, b"x", world.now)
    with pytest.raises(Busy):
        a.endpoint.send_packet(B, b"x", world.now)


def test_packets_of_all_peers_together_are_bounded() -> None:
    world = World(answers=False)
    a = world.add(A, config=TunnelConfig(max_queued=2))
    a.endpoint.send_packet(1, b"x", world.now)
    a.endpoint.send_packet(2, b"x", world.now)
    with pytest.raises(Busy):
        a.endpoint.send_packet(3, b"x", world.now)
    a.endpoint.drop(1, world.now)
    a.endpoint.send_packet(3, b"x", world.now)


def test_peers_are_bounded() -> None:
    world = World()
    a = world.add(A, config=TunnelConfig(max_peers=1))
    world.add(B)
    world.add(7)
    world.send(B, A)
    with pytest.raises(Busy):
        a.endpoint.send_packet(7, b"x", world.now)
    world.send(7, A)
    assert [event.peer for event in a.of(TunnelEstablished)] == [B]
    assert a.endpoint.stats.exchanges_refused > 0


# Loss and relay


def test_lost_greeting_is_repeated_by_relay_and_then_with_a_request() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    del a
    world.send(A, B)
    world.advance(0.5)
    assert [s.is_relay for s in world.frames(b"PILA", A)] == [False, False, True]
    world.delivers = lambda data, source, target: True
    world.advance(3.4)
    assert b.payloads() == []
    world.advance(0.2)
    assert b.payloads() == [b"data"]
    assert 1004.0 in {s.time for s in world.frames(b"PILK", A)}


def test_unanswered_greetings_end_after_six_and_then_the_path_is_reset() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    del b
    world.send(A, B)
    world.advance(24.5)
    direct = [s.time for s in world.frames(b"PILA", A) if not s.is_relay]
    assert direct == [1000.0, 1000.4] + [1000.0 + 4 * n for n in range(1, 6)]
    assert a.of(TunnelFailed) == [TunnelFailed(B, "the peer does not answer")]
    assert len(a.of(PathWanted)) == 1
    world.advance(5)
    assert len(a.of(PathWanted)) == 2


def test_dead_peer_is_left_alone_when_nobody_wants_it() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    del b
    world.send(A, B)
    world.advance(290)
    quiet_since = world.sent[-1].time
    assert quiet_since < 1200
    world.advance(200)
    assert world.sent[-1].time == quiet_since
    assert a.endpoint.peers() == []
    assert a.endpoint.next_timer() is None


def test_packet_after_giving_up_waits_for_the_next_attempt() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    world.send(A, B)
    world.advance(25)
    assert len(a.of(TunnelFailed)) == 1
    world.delivers = lambda data, source, target: True
    world.send(A, B, b"later")
    assert b.payloads() == []
    world.advance(6)
    assert b.payloads() == [b"later"]


def test_second_series_right_after_a_reset_begins_without_another_reset() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    world.send(A, B)
    for _ in range(8):
        world.advance(8)
        world.send(A, B, b"again")
    world.delivers = lambda data, source, target: True
    world.advance(40)
    assert b.payloads()
    assert len(a.of(PathWanted)) <= 3


def test_relayed_greeting_alone_makes_a_relayed_tunnel() -> None:
    world, a, b = pair(delivers=direct_is_blocked)
    world.send(A, B)
    world.advance(0.5)
    assert b.payloads() == [b"data"]
    assert b.of(PacketReceived)[0].relayed
    assert a.endpoint.is_relayed(B)
    assert b.endpoint.is_relayed(A)
    assert b.of(TunnelEstablished)[0].relayed
    # What came by relay is answered by relay only.
    assert all(s.is_relay for s in world.frames(b"PILA", B))


def test_direct_copy_after_the_relayed_one_makes_the_tunnel_direct() -> None:
    world, a, b = pair(delivers=direct_is_blocked)
    world.send(A, B)
    world.advance(0.4)
    direct = next(s for s in world.frames(b"PILA", A) if s.target == b.address)
    answers = len(world.frames(b"PILA", B))
    assert b.endpoint.is_relayed(A)
    world.inject(B, direct.data, a.address)
    assert not b.endpoint.is_relayed(A)
    # B had no reason to answer a copy.
    assert len(world.frames(b"PILA", B)) == answers


def test_relay_only_peer_gets_neither_direct_frames_nor_punches() -> None:
    world, a, b = pair(relay_only={B})
    world.send(A, B)
    assert b.payloads() == [b"data"]
    assert not [s for s in world.sent if s.target == b.address]
    assert not [s for s in world.sent if s.data[:1] == b"\x03"]
    (info,) = a.endpoint.peers()
    assert info.is_relay_pinned


def test_without_beacon_everything_is_direct() -> None:
    world, a, b = pair()
    a.endpoint.beacon = b.endpoint.beacon = None
    world.send(A, B)
    world.send(B, A)
    assert a.payloads() == b.payloads() == [b"data"]
    assert not [s for s in world.sent if s.target == BEACON]


def test_peer_given_up_is_greeted_again_at_its_address() -> None:
    world, a, b = pair(delivers=nothing_arrives)
    world.send(A, B)
    world.advance(200)
    world.delivers = lambda data, source, target: True
    wanted = len(a.of(PathWanted))
    world.send(A, B, b"much later")
    assert b.payloads() == [b"much later"]
    assert len(a.of(PathWanted)) == wanted


def test_new_key_by_relay_leaves_a_working_path_direct() -> None:
    world, a, _ = connected()
    world.inject(A, Delivery(B, _greeting(B)).encode(), BEACON)
    assert a.of(TunnelEstablished)[-1].rekeyed
    assert not a.endpoint.is_relayed(B)


# Who is let in


def test_copies_of_a_greeting_cause_one_answer() -> None:
    world, a, b = pair()
    world.send(A, B)
    greeting = world.frames(b"PILA", A)[0].data
    count = len(world.frames(b"PILA", B))
    for _ in range(20):
        world.inject(B, greeting, a.address)
    world.advance(5)
    world.inject(B, greeting, a.address)
    assert len(world.frames(b"PILA", B)) == count
    assert len(b.of(TunnelEstablished)) == 1


def test_longer_greeting_is_accepted() -> None:
    world, _, b = pair()
    world.inject(B, _greeting(A) + b"extension")
    assert len(b.of(TunnelEstablished)) == 1


@pytest.mark.parametrize(
    "frame",
    [
        _greeting(4711),  # unknown to the registry
        _greeting(A, signer=B),  # the registry has another key
        _greeting(0),
        _greeting(A)[:-1],
        _greeting(A)[:-1] + b"\x00",
        _greeting(A)[:100] + bytes(36),
        encode_authenticated(A, bytes(32), identity_of(A)),  # low order
        encode_key_request(A, KeyPair(b"k" * 32).public),
    ],
)
def test_bad_greetings_are_silently_dropped(frame: bytes) -> None:
    world, _, b = pair()
    world.inject(B, frame)
    assert world.sent == []
    assert b.endpoint.peers() == []
    stats = b.endpoint.stats
    assert stats.exchanges_refused + stats.dropped == 1


def test_own_greeting_that_comes_back_is_dropped() -> None:
    world, a, b = pair()
    del b
    world.inject(A, _greeting(A))
    assert world.sent == []
    assert a.endpoint.stats.dropped == 1


def test_unknown_node_is_looked_up_once_in_three_seconds() -> None:
    world, _, b = pair()
    for _ in range(3):
        world.inject(B, _greeting(4711))
    assert b.of(KeyWanted) == [KeyWanted(4711)]
    world.now += 3
    world.inject(B, _greeting(4711))
    assert len(b.of(KeyWanted)) == 2


def test_key_that_differs_is_fetched_once_more_past_any_cache() -> None:
    world, _, b = pair()
    world.inject(B, _greeting(A, signer=77))
    assert b.of(KeyWanted) == [KeyWanted(A), KeyWanted(A, refresh=True)]
    assert b.endpoint.stats.exchanges_refused == 1
    # Whoever sends more of them does not keep the registry busy.
    for _ in range(3):
        world.inject(B, _greeting(A, signer=77))
    assert b.of(KeyWanted).count(KeyWanted(A, refresh=True)) == 1


def test_peer_with_a_new_identity_is_let_in_after_the_second_look() -> None:
    world, a, b = connected()
    world.add(A, generation=1)
    world.nodes[A].identity = identity_of(99)
    frame = encode_authenticated(A, KeyPair(b"n" * 32).public, identity_of(99))
    world.inject(B, frame, a.address)
    assert b.of(KeyWanted)[-1] == KeyWanted(A, refresh=True)
    assert len(b.of(TunnelEstablished)) == 2


def test_greeting_waits_for_the_key_and_forgeries_do_not_push_it_out() -> None:
    world, a, b = pair(answers=False)
    world.inject(B, _greeting(A, signer=77))
    world.inject(B, _greeting(A), a.address)
    for _ in range(5):
        world.inject(B, _greeting(A, signer=77))
    assert b.of(KeyWanted) == [KeyWanted(A)]
    b.endpoint.set_peer_key(A, a.identity.public_key, world.now)
    world.settle()
    assert len(b.of(TunnelEstablished)) == 1


def test_lookup_that_is_never_answered_is_asked_again() -> None:
    world, _, b = pair(answers=False)
    world.inject(B, _greeting(A))
    world.inject(B, _greeting(A))
    assert len(b.of(KeyWanted)) == 1
    world.now += 10
    world.inject(B, _greeting(A))
    assert len(b.of(KeyWanted)) == 2


def test_greeting_of_a_peer_that_is_dialled_waits_for_the_same_lookup() -> None:
    world, a, b = pair(answers=False)
    world.send(A, B)
    world.inject(A, _greeting(B), b.address)
    assert a.of(KeyWanted) == [KeyWanted(B)]
    a.endpoint.drop(B, world.now)
    world.send(A, B)
    assert a.of(KeyWanted) == [KeyWanted(B)]


def test_lookups_under_way_are_bounded() -> None:
    world = World(answers=False)
    b = world.add(B, config=TunnelConfig(max_lookups=2))
    for node in (1, 2, 3):
        world.inject(B, _greeting(node))
    assert b.of(KeyWanted) == [KeyWanted(1), KeyWanted(2)]
    world.now += 10
    world.inject(B, _greeting(3))
    assert b.of(KeyWanted)[-1] == KeyWanted(3)


def test_key_nobody_asked_for_is_kept_for_known_peers_only() -> None:
    world, a, b = connected()
    del b
    a.endpoint.set_peer_key(4711, bytes(32), world.now)
    a.endpoint.set_peer_key(B, bytes(32), world.now)
    (info,) = a.endpoint.peers()
    assert info.public_key == bytes(32)


def test_greetings_from_one_address_are_limited() -> None:
    world = World()
    b = world.add(B, config=TunnelConfig(exchanges_per_second=5.0, exchange_burst=5))
    for node in range(1, 8):
        world.inject(B, _greeting(node))
    assert [event.peer for event in b.of(KeyWanted)] == [1, 2, 3, 4, 5]
    world.inject(B, _greeting(8), ("192.0.2.67", 6))
    world.now += 0.2
    world.inject(B, _greeting(9))
    assert [event.peer for event in b.of(KeyWanted)][5:] == [8, 9]


def test_relayed_greetings_are_limited_by_sender() -> None:
    world, a, b = pair(answers=False)
    del a
    for number in range(7):
        frame = Delivery(A, _greeting(A, str(number))).encode()
        world.inject(B, frame, BEACON)
    assert b.endpoint.stats.exchanges_refused == 2


# Key requests


def test_key_request_of_a_known_peer_is_answered_where_it_came_from() -> None:
    world, a, b = connected()
    world.sent.clear()
    request = encode_key_request(A, KeyPair(b"k" * 32).public)
    world.inject(B, request, _STRANGER)
    assert [s.target for s in world.frames(b"PILA", B)] == [_STRANGER]
    world.inject(B, Delivery(A, request).encode(), BEACON)
    answer = world.frames(b"PILA", B)[1]
    message = decode_message(answer.data)
    assert isinstance(message, Relay)
    assert message.destination == A
    # The session is not touched.
    world.send(A, B, b"still")
    assert b.payloads()[-1] == b"still"
    assert len(a.of(TunnelEstablished)) == 1


def test_key_requests_are_limited() -> None:
    world = World()
    world.add(A)
    config = TunnelConfig(exchanges_per_second=1.0, exchange_burst=3)
    world.add(B, config=config)
    world.send(A, B)
    count = len(world.frames(b"PILA", B))
    for _ in range(9):
        world.inject(B, encode_key_request(A, KeyPair(b"k" * 32).public))
    assert len(world.frames(b"PILA", B)) == count + 3


# Frames under unknown keys


def test_sealed_frame_without_session_is_answered_with_greeting_and_request() -> None:
    world, a, b = connected()
    frame = world.frames(b"PILS", A)[0].data
    world.add(B, generation=1)
    world.delivers = nothing_arrives
    world.sent.clear()
    for _ in range(3):
        world.inject(B, frame, a.address)
    assert [(s.magic, s.target) for s in world.sent] == [
        (b"PILA", a.address),
        (b"PILK", a.address),
    ]
    world.now += 3
    world.inject(B, Delivery(A, frame).encode(), BEACON)
    assert [s.is_relay for s in world.sent[2:]] == [True, True]
    del b


def test_reactions_to_invented_senders_are_limited_by_address() -> None:
    world = World()
    world.add(B, config=TunnelConfig(exchanges_per_second=1.0, exchange_burst=4))
    for sender in range(100, 150):
        world.inject(B, b"PILS" + sender.to_bytes(4) + bytes(60))
    assert len(world.sent) == 8


def test_own_frames_that_come_back_cause_nothing() -> None:
    world, a, b = pair()
    del b
    for sender in (0, A):
        world.inject(A, b"PILS" + sender.to_bytes(4) + bytes(60))
    assert world.sent == []
    assert a.endpoint.stats.dropped == 0


# Restarts


def test_restarted_peer_is_installed_anew_from_its_greeting() -> None:
    world, a, old = connected()
    del old
    b = world.add(B, generation=1)
    world.send(B, A, b"back")
    assert a.payloads()[-1] == b"back"
    assert a.of(TunnelEstablished)[-1].rekeyed
    world.send(A, B, b"welcome")
    assert b.payloads() == [b"welcome"]


def test_restarted_peer_asks_for_keys_when_it_gets_a_frame_it_cannot_open() -> None:
    world, a, old = connected()
    del old
    b = world.add(B, generation=1)
    world.send(A, B, b"lost")
    assert len(a.of(TunnelEstablished)) == 2
    world.send(A, B, b"arrives")
    assert b.payloads() == [b"arrives"]


def test_restart_behind_lost_answers_is_noticed_by_frames_that_do_not_open() -> None:
    world, a, old = connected()
    del old
    world.now += 10
    b = world.add(B, generation=1)

    def greetings_are_lost(data: bytes, source: Endpoint, target: Endpoint) -> bool:
        return b"PILA" not in (data[:4], data[5:9], data[9:13])

    # B installs a session with A, but A does not hear of it.
    world.delivers = greetings_are_lost
    world.inject(B, world.frames(b"PILA", A)[0].data, a.address)
    assert len(b.of(TunnelEstablished)) == 1
    for number in range(5):
        assert world.frames(b"PILK", A) == []
        world.send(B, A, b"%d" % number)
    assert [s.target for s in world.frames(b"PILK", A)] == [b.address]
    assert a.endpoint.stats.forged == 5
    # The next time, B's answer to the request arrives.
    world.delivers = lambda data, source, target: True
    world.now += 4
    for number in range(6):
        world.send(B, A, b"%d" % number)
    assert a.payloads()[-1] == b"5"


def test_recorded_greeting_does_not_end_the_session() -> None:
    world, a, old = connected()
    recorded = world.frames(b"PILA", B)[0].data
    b = world.add(B, generation=1)
    world.send(B, A, b"new process")
    del old
    world.now += 60
    world.inject(A, recorded, _STRANGER)
    assert len(a.of(TunnelEstablished)) == 3
    for number in range(6):
        world.send(B, A, b"%d" % number)
    assert a.payloads()[-6:] == [b"%d" % number for number in range(6)]
    world.advance(10)
    world.send(A, B, b"and back")
    assert b.payloads()[-1] == b"and back"


def test_greeting_of_the_replaced_session_brings_it_back_with_its_counter() -> None:
    world, a, b = connected()
    first = world.frames(b"PILA", B)[0].data
    counter = a.endpoint._peers[B].session
    assert counter is not None
    sealed = counter.counter
    world.inject(A, _greeting(B), _STRANGER)
    world.inject(A, first, b.address)
    session = a.endpoint._peers[B].session
    assert session is counter
    assert session.counter == sealed
    world.send(A, B, b"as before")
    world.send(B, A, b"as before")
    assert a.payloads()[-1] == b.payloads()[-1] == b"as before"


def test_frames_of_neither_session_are_counted_as_forged() -> None:
    world, a, b = connected()
    world.inject(A, _greeting(B), _STRANGER)
    world.inject(A, b"PILS" + B.to_bytes(4) + bytes(60), b.address)
    assert a.endpoint.stats.forged == 1


def test_third_key_in_a_row_retires_the_first() -> None:
    world, a, _ = connected()
    for seed in ("one", "two", "three"):
        world.inject(A, _greeting(B, seed), _STRANGER)
    assert len(a.of(TunnelEstablished)) == 4


def test_replaced_session_is_let_go_after_five_seconds() -> None:
    world, a, b = connected()
    old_frame = b.endpoint._peers[A].session
    assert old_frame is not None
    late = [old_frame.seal(stream_packet(B, A, b"late")) for _ in range(2)]
    world.add(B, generation=1)
    world.send(B, A, b"new")
    world.inject(A, late[0], b.address)
    assert a.payloads()[-1] == b"late"
    world.advance(5.5)
    world.inject(A, late[1], b.address)
    assert a.payloads()[-2:] == [b"new", b"late"]
    assert a.endpoint.stats.forged == 1


def test_older_peer_that_lost_its_session_and_sends_no_request_is_answered() -> None:
    world, a, b = pair()
    del a
    greeting = _greeting(A)
    world.inject(B, greeting, _STRANGER)
    assert len(world.frames(b"PILA", B)) == 1
    world.now += 7
    world.inject(B, greeting, _STRANGER)
    assert len(world.frames(b"PILA", B)) == 2
    world.now += 1
    world.inject(B, greeting, _STRANGER)
    assert len(world.frames(b"PILA", B)) == 2
    assert len(b.of(TunnelEstablished)) == 1


def test_same_key_with_another_signature_is_no_new_session() -> None:
    # Ed25519 signatures of another program need not be equal to ours.
    world, a, b = connected()
    session = b.endpoint._peers[A].session
    assert session is not None
    session.proof = b""
    world.inject(B, world.frames(b"PILA", A)[0].data, a.address)
    assert len(b.of(TunnelEstablished)) == 1
    assert session.proof


def test_recorded_greeting_from_elsewhere_does_not_move_a_working_path() -> None:
    world, a, b = connected()
    world.inject(B, world.frames(b"PILA", A)[0].data, _STRANGER)
    (info,) = b.endpoint.peers()
    assert info.address == a.address


def test_node_id_may_come_after_construction() -> None:
    world = World()
    world.add(B)
    a = world.add(A)
    a.endpoint.node_id = 0
    assert decode_key_exchange(a.endpoint._ring.announcement()).node == 0
    a.endpoint.node_id = A
    world.send(A, B)
    assert world.nodes[B].payloads() == [b"data"]


def test_path_that_cannot_be_resolved_fails_the_tunnel() -> None:
    world = World()
    a = world.add(A)
    world.send(A, 4711)
    assert a.of(TunnelFailed) == [TunnelFailed(4711, "the peer could not be resolved")]
    assert a.endpoint.peers() == []


def test_path_that_is_never_resolved_fails_the_tunnel() -> None:
    world, a, b = pair(answers=False)
    del b
    world.send(A, B)
    world.advance(19)
    assert a.of(TunnelFailed) == []
    world.advance(2)
    assert len(a.of(TunnelFailed)) == 1


@pytest.mark.parametrize("beacon", [None, BEACON])
def test_peer_without_address_needs_a_beacon(beacon: Endpoint | None) -> None:
    world, a, b = pair(answers=False)
    a.endpoint.beacon = beacon
    world.send(A, B)
    a.endpoint.set_peer_key(B, b.identity.public_key, world.now)
    a.endpoint.set_peer_path(B, address=None, relay_only=False, now=world.now)
    world.settle()
    assert bool(a.of(TunnelFailed)) is (beacon is None)
    assert bool(world.frames(b"PILA", A)) is (beacon is not None)


def test_path_of_an_unknown_peer_is_ignored() -> None:
    world, a, b = pair()
    del b
    a.endpoint.set_peer_path(B, address=_STRANGER, relay_only=False, now=world.now)
    a.endpoint.path_failed(B, world.now)
    world.settle()
    assert world.sent == []
    assert a.events == []


def test_peer_that_comes_first_keeps_the_address_it_came_from() -> None:
    world, a, b = pair(answers=False)
    world.send(A, B)
    world.inject(A, _greeting(B), _STRANGER)
    a.endpoint.set_peer_key(B, b.identity.public_key, world.now)
    a.endpoint.set_peer_path(B, address=b.address, relay_only=False, now=world.now)
    world.settle()
    (info,) = a.endpoint.peers()
    assert info.is_established
    assert info.address == _STRANGER
