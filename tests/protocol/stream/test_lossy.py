from __future__ import annotations

import random

import pytest

from pilotfleet.protocol.stream.events import StreamAccepted
from pilotfleet.protocol.stream.state import State
from pilotfleet.testing.network import Conditions, FakeNetwork
from tests.protocol.stream.support import (
    PORT,
    A,
    B,
    Node,
    make_pair,
    open_stream,
    pattern,
)

BAD = Conditions(loss=0.1, duplication=0.05, delay_s=0.02, jitter_s=0.02)
QUESTION, ANSWER = pattern(30_000, 1), pattern(20_000, 2)


def make(seed: int, conditions: Conditions = BAD) -> tuple[FakeNetwork, Node, Node]:
    network = FakeNetwork(seed=seed, conditions=conditions)
    rng = random.Random(seed)
    a, b = (Node(network, node_id, rng=rng) for node_id in (A, B))
    b.endpoint.listen(PORT)
    return network, a, b


def exchange(network: FakeNetwork, a: Node, b: Node, *, limit_s: float) -> float:
    """Send both ways at once, close, and return how long it took."""
    ours = a.connect()
    a.write(ours, QUESTION)
    assert network.run(until=lambda: bool(b.events_of(StreamAccepted)), limit_s=20)
    theirs = b.events_of(StreamAccepted)[0].connection
    b.write(theirs, ANSWER)

    def is_done() -> bool:
        return b.got(theirs) == QUESTION and a.got(ours) == ANSWER

    assert network.run(until=is_done, limit_s=limit_s)
    taken = network.clock.now
    ours.close(a.now)
    a.pump()
    assert network.run(until=lambda: theirs.at_eof, limit_s=30)
    network.run(limit_s=15)
    assert ours.state is State.CLOSED
    return taken


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_every_byte_arrives_in_order_for_any_seed(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        network, a, b = make(seed)
        exchange(network, a, b, limit_s=120)


def test_loss_slows_a_stream_down_but_not_to_a_crawl() -> None:
    times = sorted(exchange(*make(seed), limit_s=120) for seed in range(300, 340))
    assert times[len(times) // 2] < 2.0
    assert times[-4] < 8.0


@pytest.mark.parametrize("seed", range(10))
def test_large_segments_survive_loss_as_well(seed: int) -> None:
    network, a, b = make(seed)
    ours = a.connect()
    ours.segment_size = 16_384
    data = pattern(1_000_000, seed)
    a.write(ours, data)
    assert network.run(until=lambda: bool(b.events_of(StreamAccepted)), limit_s=20)
    theirs = b.events_of(StreamAccepted)[0].connection
    assert network.run(until=lambda: b.got(theirs) == data, limit_s=120)


def test_an_outage_is_survived() -> None:
    network, a, b = make(1, Conditions(delay_s=0.01))
    ours = a.connect()
    network.run(limit_s=1)
    theirs = b.events_of(StreamAccepted)[0].connection
    a.write(ours, QUESTION)
    network.partition([A], [B])
    network.run(limit_s=20)
    network.heal()
    assert network.run(until=lambda: b.got(theirs) == QUESTION, limit_s=15)


@pytest.mark.parametrize("count", [1, 2, 12, 60])
def test_short_frames_lost_in_an_outage_come_soon_after_it(count: int) -> None:
    network, a, b = make_pair(conditions=Conditions(delay_s=0.01))
    ours, theirs = open_stream(network, a, b)
    for stream in (ours, theirs):
        stream.defer_acks(0.4)
    network.partition([A], [B])
    for _ in range(count):
        a.write(ours, bytes(200))
        network.run(limit_s=0.9 / count)
    assert ours.stats()["unacked"] == count
    network.run(limit_s=1.1)
    network.heal()
    healed = network.clock.now
    assert network.run(until=lambda: ours.sender.is_drained, limit_s=30)
    # The timer's second repetition comes 1 s after the outage, and its acknowledgement
    # and the last one are late by 0.4 s each.
    assert network.clock.now - healed < 2.0
    assert b.got(theirs) == bytes(200 * count)


def test_a_filled_gap_is_acknowledged_at_once_though_others_are_deferred() -> None:
    network, a, b = make_pair(conditions=Conditions(delay_s=0.01))
    ours, theirs = open_stream(network, a, b)
    for stream in (ours, theirs):
        stream.defer_acks(0.4)
    network.partition([A], [B])
    a.write(ours, bytes(200))
    network.heal()
    for _ in range(3):
        a.write(ours, bytes(200))
    assert network.run(until=lambda: ours.sender.is_drained, limit_s=0.1)
    assert ours.stats()["fast_retx"] == 1


def test_reordering_alone_causes_few_repetitions() -> None:
    # Segments leave 1 ms apart here, so some overtake one or two others.
    network, a, b = make_pair(conditions=Conditions(delay_s=0.01, jitter_s=0.002))
    ours = a.connect()
    network.run(limit_s=1)
    for _ in range(300):
        a.write(ours, bytes(1152))
        network.run(limit_s=0.001)
    network.run(limit_s=1)
    assert len(b.received[1]) == 300 * 1152
    assert ours.stats()["retransmits"] < 5
