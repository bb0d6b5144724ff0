from __future__ import annotations

from pilotfleet.protocol.packet import Flag
from pilotfleet.protocol.stream.gate import MAX_SOURCES, SynGate
from tests.protocol.stream.support import packet_from_peer


def make() -> SynGate:
    return SynGate(0.0, max_held=10)


def test_sources_are_bounded_and_idle_ones_make_room() -> None:
    gate = make()
    now = 0.0
    for source in range(MAX_SOURCES):
        gate.allows(source, now)
    assert not gate.allows(999_999, 9.0)
    assert gate.allows(999_999, 10.0)
    assert gate.allows(888_888, 10.0)


def test_a_gate_is_idle_10_s_after_the_last_syn() -> None:
    gate = make()
    gate.allows(1, 5.0)
    assert gate.deadline == 15.0
    assert not gate.is_idle(14.9)
    assert gate.is_idle(15.0)


def test_held_syns_are_released_by_source_and_port() -> None:
    gate = make()
    first, second, other = (
        packet_from_peer(Flag.SYN, dst_port=1),
        packet_from_peer(Flag.SYN, dst_port=2),
        packet_from_peer(Flag.SYN, dst_port=1, src_node=5),
    )
    for packet in (first, second, other):
        assert gate.hold(packet, 10.0)
    assert gate.deadline == 10.0
    assert gate.release(first.src_node, 2) == [second]
    assert gate.release(first.src_node, None) == [first]
    gate.drop_expired(9.9)
    assert gate.release(5, None) == [other]
    assert gate.release(5, None) == []
