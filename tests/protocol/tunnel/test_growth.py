"""Larger payloads between pilotfleet nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.protocol.tunnel.config import SEGMENT_SIZE
from pilotfleet.protocol.tunnel.events import PayloadGrew, PongReceived
from tests.protocol.tunnel.support import (
    BEACON,
    A,
    B,
    Filter,
    World,
    connected,
    control_packet,
    direct_is_blocked,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

_ALL = [8192, 16384, 32768, 60000]


def _up_to(size: int) -> Filter:
    def delivers(data: bytes, source: Endpoint, target: Endpoint) -> bool:
        return len(data) <= size

    return delivers


def _want(world: World) -> None:
    world.nodes[A].endpoint.want_large_payload(B, world.now)
    world.settle()


def test_nothing_is_sent_until_a_stream_wants_it() -> None:
    world, a, b = connected()
    world.advance(60)
    assert a.of(PayloadGrew) == b.of(PayloadGrew) == []
    assert max(len(s.data) for s in world.sent) < 200


def test_payload_grows_to_the_largest_size_that_comes_back() -> None:
    world, a, b = connected()
    _want(world)
    assert a.of(PayloadGrew) == [PayloadGrew(B, size) for size in _ALL]
    assert a.endpoint.max_payload(B) == 60000
    assert a.endpoint.peers()[0].is_pilotfleet
    assert b.endpoint.peers()[0].is_pilotfleet
    # B has no stream that wants more, and no probe of its own.
    assert b.endpoint.max_payload(A) == SEGMENT_SIZE
    assert a.of(PongReceived) == b.of(PongReceived) == []
    largest = max(len(s.data) for s in world.sent)
    assert largest == 60000 + 70


def test_both_sides_may_grow() -> None:
    world, a, b = connected()
    _want(world)
    b.endpoint.want_large_payload(A, world.now)
    world.settle()
    assert a.endpoint.max_payload(B) == b.endpoint.max_payload(A) == 60000


def test_wanting_it_twice_greets_once() -> None:
    world, _, _ = connected()
    _want(world)
    count = len(world.sent)
    _want(world)
    world.advance(20)
    assert len(world.sent) == count


def test_lost_probe_stops_the_growth() -> None:
    world, a, _ = connected(delivers=_up_to(17000))
    _want(world)
    world.advance(20)
    assert a.endpoint.max_payload(B) == 16384
    assert a.of(PayloadGrew)[-1] == PayloadGrew(B, 16384)
    big = [s for s in world.sent if len(s.data) > 17000]
    assert len(big) == 1


def test_path_of_ordinary_size_stays_as_it_is() -> None:
    world, a, b = connected(delivers=_up_to(1472))
    _want(world)
    world.advance(20)
    assert a.of(PayloadGrew) == []
    assert a.endpoint.max_payload(B) == SEGMENT_SIZE
    world.send(A, B, bytes(SEGMENT_SIZE))
    assert b.payloads()[-1] == bytes(SEGMENT_SIZE)


def test_official_peer_that_only_pongs_is_never_probed() -> None:
    world, a, b = connected()
    greeting = control_packet(A, B, b"pilotfleet.hello.v1")
    pong = control_packet(B, A, b"pilotfleet.hello.v1", flags=2)
    world.delivers = lambda data, source, target: source != a.address
    _want(world)
    world.delivers = lambda data, source, target: True
    b.endpoint.send_packet(A, pong, world.now)
    world.settle()
    world.sent.clear()
    world.advance(20)
    assert world.sent == []
    assert a.endpoint.max_payload(B) == SEGMENT_SIZE
    assert not a.endpoint.peers()[0].is_pilotfleet
    del greeting


def test_lost_greeting_is_repeated_three_times_at_most() -> None:
    world, a, _ = connected()
    world.delivers = lambda data, source, target: False
    _want(world)
    world.advance(20)
    greetings = [s.time for s in world.frames(b"PILS", A)[1:]]
    assert greetings == [1000.0, 1001.0, 1002.0]

    world, a, _ = connected()
    world.delivers = lambda data, source, target: False
    _want(world)
    world.delivers = lambda data, source, target: True
    world.advance(2)
    assert a.endpoint.max_payload(B) == 60000


def test_peer_that_greets_back_before_its_pong_is_probed_at_once() -> None:
    world, a, b = connected()
    lost = [True]

    def first_pong_is_late(data: bytes, source: Endpoint, target: Endpoint) -> bool:
        if source == b.address and lost[0]:
            lost[0] = False
            return False
        return True

    world.delivers = first_pong_is_late
    _want(world)
    assert a.endpoint.max_payload(B) == 60000
    pong = control_packet(B, A, b"pilotfleet.hello.v1", flags=2)
    growth = a.endpoint._peers[B].growth
    assert growth is not None
    growth.probing = 60000
    b.endpoint.send_packet(A, pong, world.now)
    world.settle()
    assert growth.probing == 60000


def test_relayed_peer_is_probed_only_when_it_is_direct_again() -> None:
    world, a, _ = connected()
    a.endpoint.use_relay(B, world.now)
    _want(world)
    assert a.endpoint.max_payload(B) == SEGMENT_SIZE
    for _ in range(3):
        world.send(B, A)
    assert a.endpoint.max_payload(B) == 60000
    assert not [s for s in world.sent if s.target == BEACON and len(s.data) > 2000]


def test_relay_brings_the_size_back() -> None:
    world, a, _ = connected()
    _want(world)
    a.endpoint.use_relay(B, world.now)
    world.settle()
    assert a.of(PayloadGrew)[-1] == PayloadGrew(B, SEGMENT_SIZE)
    assert a.endpoint.max_payload(B) == SEGMENT_SIZE


def test_probe_under_way_ends_when_the_path_is_relayed() -> None:
    world, a, _ = connected(delivers=_up_to(2000))
    _want(world)
    a.endpoint.use_relay(B, world.now)
    world.advance(3)
    assert a.of(PayloadGrew) == []
    world.delivers = lambda data, source, target: True
    for _ in range(3):
        world.send(B, A)
    assert a.endpoint.max_payload(B) == 60000


def test_restarted_peer_begins_with_the_ordinary_size() -> None:
    world, a, _ = connected()
    _want(world)
    world.add(B, generation=1)
    world.send(B, A)
    assert a.of(PayloadGrew)[-1] == PayloadGrew(B, SEGMENT_SIZE)
    assert not a.endpoint.peers()[0].is_pilotfleet


def test_large_ping_is_not_answered_by_relay() -> None:
    world, a, b = connected()
    world.delivers = direct_is_blocked
    a.endpoint.use_relay(B, world.now)
    b.endpoint.use_relay(A, world.now)
    world.sent.clear()
    b.endpoint.send_packet(A, control_packet(B, A, bytes(5000)), world.now)
    world.settle()
    assert world.frames(b"PILS", A) == []


def test_wish_for_an_unknown_peer_is_ignored() -> None:
    world, a, _ = connected()
    world.sent.clear()
    a.endpoint.want_large_payload(4711, world.now)
    world.settle()
    assert world.sent == []


def test_pong_of_an_application_reaches_it() -> None:
    world, a, _ = connected()
    _want(world)
    a.endpoint.ping(B, b"x" * 8192, src_port=0, seq=1, now=world.now)
    world.settle()
    assert len(a.of(PongReceived)) == 1
    a.endpoint.ping(B, b"pilotfleet.hello.v1", src_port=7, seq=1, now=world.now)
    world.settle()
    assert len(a.of(PongReceived)) == 2
