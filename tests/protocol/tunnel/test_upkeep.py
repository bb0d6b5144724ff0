"""Paths over time: relay and direct, keepalive, probes, resets, forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.protocol.tunnel.events import (
    PathWanted,
    TunnelEstablished,
    TunnelFailed,
)
from pilotfleet.protocol.tunnel.frames import PUNCH
from tests.protocol.tunnel.support import (
    BEACON,
    A,
    B,
    Node,
    Sent,
    World,
    connected,
    direct_is_blocked,
    nothing_arrives,
    pair,
)

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint


def _everything_arrives(data: bytes, source: Endpoint, target: Endpoint) -> bool:
    return True


def _sealed(world: World, node: Node) -> list[Sent]:
    return world.frames(b"PILS", node.id)


def _keep_in_use(world: World, seconds: float) -> None:
    """Let time pass while the application of A goes on to want B."""
    end = world.now + seconds
    while world.now < end:
        world.nodes[A].endpoint.touch(B, world.now)
        world.advance(min(5.0, end - world.now))


# Keepalive


def test_tunnel_in_use_sends_a_keepalive_after_25_seconds() -> None:
    world, a, b = connected()
    world.sent.clear()
    world.advance(24.9)
    assert _sealed(world, a) == []
    world.advance(0.2)
    (sent,) = _sealed(world, a)
    assert (sent.time, sent.target) == (1025.0, b.address)
    # 34 bytes of header, no payload.
    assert len(sent.data) == 36 + 34
    assert len(_sealed(world, b)) == 1


def test_keepalives_of_tunnels_made_at_odd_times_are_due_together() -> None:
    world, a, _ = connected()
    world.advance(200.07)
    world.send(A, B)
    world.advance(0.1)
    assert a.endpoint.next_timer() == 1225.25


def test_keepalives_end_two_minutes_after_the_last_traffic() -> None:
    world, a, _ = connected()
    world.sent.clear()
    world.advance(600)
    assert [s.time for s in _sealed(world, a)] == [1025.0, 1050.0, 1075.0, 1100.0]


def test_keepalives_begin_again_with_traffic_in_either_direction() -> None:
    for source, target in ((A, B), (B, A)):
        world, a, _ = connected()
        world.advance(200)
        world.send(source, target)
        world.sent.clear()
        world.advance(26)
        # The side that only sent probes the path instead, and is answered.
        assert {s.time for s in _sealed(world, a)} == {1225.0}


def test_touch_keeps_a_tunnel_in_use() -> None:
    world, a, _ = connected()
    _keep_in_use(world, 300)
    assert world.now - _sealed(world, a)[-1].time <= 25
    a.endpoint.touch(4711, world.now)
    assert len(a.endpoint.peers()) == 1


# Forgetting


def test_peer_is_forgotten_five_minutes_after_the_last_contact() -> None:
    world, a, b = connected()
    world.advance(390)
    assert len(a.endpoint.peers()) == 1
    world.advance(20)
    assert a.endpoint.peers() == b.endpoint.peers() == []
    assert a.endpoint.next_timer() is None


def test_forgotten_peer_is_met_again_with_the_same_keys() -> None:
    world, a, b = connected()
    world.advance(600)
    world.send(A, B, b"hello again")
    assert b.payloads()[-1] == b"hello again"
    assert len(a.of(TunnelEstablished)) == 2


def test_idle_tunnel_wakes_rarely() -> None:
    world, a, _ = connected()
    wakes = 0
    while (timer := a.endpoint.next_timer()) is not None and wakes < 100:
        world.now = timer
        a.endpoint.handle_timer(timer)
        wakes += 1
    assert wakes < 25


def test_timer_without_need_does_nothing() -> None:
    world, a, _ = connected()
    world.sent.clear()
    a.endpoint.handle_timer(world.now)
    a.endpoint.handle_timer(world.now + 1)
    world.settle()
    assert world.sent == []


# Direct to relay


def test_packets_without_any_reaction_move_the_peer_to_the_relay() -> None:
    world, a, b = connected()
    world.delivers = direct_is_blocked
    for _ in range(3):
        world.send(A, B, b"lost")
    world.advance(4.9)
    # It was asked whether it is there, and that was all.
    assert [len(s.data) for s in _sealed(world, a)[-4:]] == [74, 74, 74, 82]
    assert not a.endpoint.is_relayed(B)
    world.advance(0.2)
    assert a.endpoint.is_relayed(B)
    world.send(A, B, b"by relay")
    assert b.payloads()[-1] == b"by relay"


def test_peer_that_only_listens_is_asked_and_stays_direct() -> None:
    world, a, _ = connected()
    for _ in range(40):
        world.advance(0.5)
        world.send(A, B)
    assert not a.endpoint.is_relayed(B)


def test_who_leaves_the_direct_path_tells_the_beacon_where_it_is() -> None:
    world, a, b = connected()
    world.delivers = direct_is_blocked
    del world.beacon_knows[A]
    for _ in range(3):
        world.send(A, B)
    world.advance(9)
    assert world.beacon_knows[A] == a.address
    world.send(B, A, b"found")
    assert b.endpoint.has_session(A)


def test_frames_by_relay_alone_are_answered_by_relay() -> None:
    world, a, b = connected()
    world.delivers = direct_is_blocked
    a.endpoint.use_relay(B, world.now)
    for _ in range(3):
        world.advance(0.6)
        world.send(A, B)
    assert b.endpoint.is_relayed(A)
    # Not so while direct ones still come: then it is A that has a reason.
    world, a, b = connected()
    a.endpoint.use_relay(B, world.now)
    for _ in range(3):
        world.send(A, B)
    assert not b.endpoint.is_relayed(A)


def test_path_that_dies_again_and_again_rests_longer_each_time() -> None:
    world, a, b = connected()
    world.delivers = lambda data, source, target: (
        target != b.address or (source == BEACON)
    )
    switches, was_relayed = [], False
    for _ in range(1200):
        world.send(A, B)
        world.send(B, A)
        world.advance(1)
        is_relayed = a.endpoint.is_relayed(B)
        if is_relayed and not was_relayed:
            switches.append(world.now)
        was_relayed = is_relayed
    # One direction is dead and the other one alive, which looks like a way back.
    assert len(switches) < 10


def test_new_address_of_the_own_machine_moves_tunnels_to_the_relay_and_back() -> None:
    world, a, b = connected()
    a.address = ("203.0.113.201", 7)
    a.endpoint.moved(world.now)
    a.endpoint.discover(world.now)
    world.send(A, B, b"moved")
    assert b.payloads()[-1] == b"moved"
    _keep_in_use(world, 3)
    assert not a.endpoint.is_relayed(B)
    assert b.endpoint.peers()[0].address == a.address


def test_relay_only_node_sends_nothing_but_by_relay() -> None:
    world, a, b = pair()
    b.endpoint.relay_only = True
    world.send(A, B)
    world.advance(0.5)
    world.send(B, A)
    _keep_in_use(world, 60)
    assert b.payloads() == [b"data"]
    assert a.payloads() == [b"data"]
    assert {s.target for s in world.sent if s.source == b.address} == {BEACON}


def test_burst_after_a_quiet_time_does_not_condemn_the_path() -> None:
    world, a, _ = connected()
    world.advance(20)
    world.delivers = nothing_arrives
    for _ in range(10):
        world.send(A, B)
    assert not a.endpoint.is_relayed(B)


def test_peer_that_answers_stays_direct() -> None:
    world, a, _ = connected()
    for _ in range(10):
        world.advance(4)
        world.send(A, B)
        world.send(B, A)
    assert not a.endpoint.is_relayed(B)


def test_black_hole_without_a_beacon_changes_nothing() -> None:
    world, a, _ = connected()
    a.endpoint.beacon = None
    world.delivers = nothing_arrives
    for _ in range(5):
        world.advance(4.1)
        world.send(A, B)
    assert not a.endpoint.is_relayed(B)


def test_dial_fallback_uses_the_relay_at_once() -> None:
    world, a, b = connected()
    a.endpoint.use_relay(B, world.now)
    a.endpoint.use_relay(4711, world.now)
    assert a.endpoint.is_relayed(B)
    world.delivers = direct_is_blocked
    world.send(A, B, b"by relay")
    assert b.payloads()[-1] == b"by relay"


def test_relayed_packet_without_beacon_is_dropped() -> None:
    world, a, b = connected()
    a.endpoint.use_relay(B, world.now)
    a.endpoint.beacon = None
    world.send(A, B, b"nowhere")
    assert b.payloads() == [b"data"]
    assert a.endpoint.stats.dropped == 1


# Relay to direct


def test_three_direct_frames_bring_a_relayed_peer_back() -> None:
    world, a, _ = connected()
    a.endpoint.use_relay(B, world.now)
    for number in range(3):
        assert a.endpoint.is_relayed(B), number
        world.send(B, A)
    assert not a.endpoint.is_relayed(B)


def test_relay_only_peer_stays_on_the_relay() -> None:
    world, a, b = pair(relay_only={B})
    world.send(A, B)
    session = b.endpoint._peers[A].session
    assert session is not None
    for _ in range(5):
        world.inject(A, session.seal(b""), b.address)
    assert a.endpoint.is_relayed(B)
    world.sent.clear()
    _keep_in_use(world, 60)
    # Punch packets aside, which B asked for: it does not know how A sees it.
    direct = [s for s in world.sent if s.target == b.address and s.data != PUNCH]
    assert direct == []


def test_relayed_peer_in_use_is_probed_directly_every_15_seconds() -> None:
    world, a, b = connected()
    world.delivers = direct_is_blocked
    a.endpoint.use_relay(B, world.now)
    world.sent.clear()
    _keep_in_use(world, 31)
    direct = [s for s in _sealed(world, a) if s.target == b.address]
    times = [round(s.time - 1000, 3) for s in direct]
    assert times == [15, 15.2, 15.4, 15.6, 15.8, 30, 30.2, 30.4, 30.6, 30.8]
    assert {len(s.data) for s in direct} == {70}
    punches = [s for s in world.sent if s.data[:1] == b"\x03"]
    assert [(round(s.time), s.target) for s in punches] == [
        (1015, BEACON),
        (1030, BEACON),
    ]


def test_probes_of_both_sides_end_the_relaying() -> None:
    world, a, b = pair(delivers=direct_is_blocked)
    world.send(A, B)
    world.advance(2)
    world.send(B, A)
    assert a.endpoint.is_relayed(B)
    assert b.endpoint.is_relayed(A)
    world.delivers = _everything_arrives
    _keep_in_use(world, 16)
    assert not b.endpoint.is_relayed(A)
    assert not a.endpoint.is_relayed(B)


def test_probes_of_one_side_are_enough() -> None:
    world, a, b = pair(delivers=direct_is_blocked)
    world.send(A, B)
    world.advance(2)
    b.endpoint._peers[A].last_traffic = world.now - 200
    world.delivers = _everything_arrives
    _keep_in_use(world, 16)
    assert not a.endpoint.is_relayed(B)


def test_relayed_peer_without_address_is_looked_up_and_probed() -> None:
    world, a, b = pair(delivers=direct_is_blocked)
    world.send(A, B)
    world.advance(0.4)
    b.endpoint._peers[A].path.address = None
    world.sent.clear()
    world.advance(5)
    assert [s.data[:1] for s in world.sent if s.source == b.address].count(b"\x03") == 1
    probes = [s for s in _sealed(world, b) if not s.is_relay]
    assert {probe.target for probe in probes} == {a.address}


def test_peer_restarted_on_another_port_is_reached_directly_again() -> None:
    world, a, b = connected()
    old = b.address
    b = world.add(B, generation=1)
    b.address = (old[0], old[1] + 1)
    world.beacon_knows[B] = b.address
    for _ in range(60):
        world.send(A, B)
        world.advance(1)
        world.send(B, A)
    assert not a.endpoint.is_relayed(B)
    assert not b.endpoint.is_relayed(A)
    assert a.endpoint._peers[B].path.address == b.address
    assert b.payloads()


# Path watch and reset


def test_silence_is_probed_and_then_the_path_is_reset() -> None:
    world, a, b = connected()
    world.delivers = nothing_arrives
    world.sent.clear()
    _keep_in_use(world, 58)
    probes = [s.time for s in _sealed(world, a) if len(s.data) == 36 + 34 + 12]
    # Three on the direct path, and then three by relay.
    assert probes == [1035.0, 1039.0, 1043.0]
    relayed = {s.time for s in world.sent if s.is_relay and len(s.data) == 91}
    assert relayed == {1047.0, 1051.0, 1055.0}
    assert a.endpoint.has_session(B)
    _keep_in_use(world, 2)
    assert not a.endpoint.has_session(B)
    at_reset = [s for s in world.sent if s.time == 1059.0 and s.source == a.address]
    assert {s.magic or s.data[:1] for s in at_reset} == {b"\x03", b"PILA", b"PILK"}
    world.delivers = _everything_arrives
    _keep_in_use(world, 5)
    assert a.endpoint.has_session(B)
    assert a.of(TunnelEstablished)[-1].rekeyed
    world.send(A, B, b"repaired")
    assert b.payloads()[-1] == b"repaired"


def test_probe_that_is_answered_ends_the_alarm() -> None:
    world, a, _ = connected()
    world.delivers = nothing_arrives
    _keep_in_use(world, 40)
    world.delivers = _everything_arrives
    _keep_in_use(world, 300)
    assert len(a.of(PathWanted)) == 1
    assert len(a.of(TunnelEstablished)) == 1


def test_silent_peer_that_nobody_wants_is_not_probed() -> None:
    world, a, _ = connected()
    world.delivers = nothing_arrives
    world.advance(50)
    a.endpoint._peers[B].last_traffic = world.now - 200
    world.sent.clear()
    world.advance(100)
    assert [s for s in world.sent if s.source == a.address] == []


def test_path_is_reset_at_most_every_two_minutes() -> None:
    world, a, _ = connected()
    # Answers to greetings arrive, nothing else: the reset always succeeds.
    lost = {b"PILS"}

    def sealed_is_lost(data: bytes, source: Endpoint, target: Endpoint) -> bool:
        return not any(data[i : i + 4] in lost for i in (0, 5, 9))

    world.delivers = sealed_is_lost
    _keep_in_use(world, 420)
    assert 2 <= len(a.of(TunnelEstablished)) - 1 <= 4


def test_reset_goes_on_without_the_registry() -> None:
    world, a, b = connected()
    world.delivers = nothing_arrives
    _keep_in_use(world, 55)
    world.answers = False
    _keep_in_use(world, 5)
    assert not a.endpoint.has_session(B)
    a.endpoint.path_failed(B, world.now)
    assert a.of(TunnelFailed) == []
    world.delivers = _everything_arrives
    _keep_in_use(world, 5)
    world.send(A, B, b"alive")
    assert b.payloads()[-1] == b"alive"


def test_reset_follows_the_peer_to_its_new_address() -> None:
    world, a, old = connected()
    world.delivers = nothing_arrives
    _keep_in_use(world, 58)
    moved: Endpoint = ("203.0.113.200", 5)
    old.address = moved
    world.beacon_knows.clear()
    world.delivers = _everything_arrives
    _keep_in_use(world, 10)
    world.send(A, B, b"found")
    assert old.payloads()[-1] == b"found"
    assert a.endpoint.peers()[0].address == moved
