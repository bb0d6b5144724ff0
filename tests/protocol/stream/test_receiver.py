from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.stream.config import NEVER, SEGMENT
from pilotfleet.protocol.stream.receiver import Arrival, Receiver
from pilotfleet.protocol.stream.sequence import MASK

if TYPE_CHECKING:
    import random


def make(expected: int = 0, *, limit: int = 512) -> Receiver:
    receiver = Receiver(limit, 128)
    receiver.expected = expected
    return receiver


def test_segments_in_order_are_read_in_order() -> None:
    receiver = make(100)
    assert receiver.receive(100, b"abc", 0.0) == Arrival.TAKEN
    assert receiver.receive(103, b"def", 0.0) == Arrival.TAKEN
    assert receiver.expected == 106
    assert receiver.read(100, 0.0) == b"abcdef"
    assert receiver.read(100, 0.0) == b""


def test_reads_may_be_smaller_than_segments() -> None:
    receiver = make()
    receiver.receive(0, b"abcdef", 0.0)
    receiver.receive(6, b"ghi", 0.0)
    parts = [receiver.read(n, 0.0) for n in (2, 2, 3, 0, 9)]
    assert parts == [b"ab", b"cd", b"efg", b"", b"hi"]
    assert receiver.queued_bytes == 0


def test_held_data_follows_when_the_gap_is_filled_across_the_wrap() -> None:
    start = MASK - 2
    receiver = make(start)
    assert receiver.receive((start + 8) & MASK, b"789", 0.0) == Arrival.HELD
    assert receiver.receive((start + 4) & MASK, b"3456", 0.0) == Arrival.HELD
    assert receiver.sack_blocks() == [((start + 4) & MASK, (start + 11) & MASK)]
    assert receiver.receive(start, b"-012", 0.0) == Arrival.TAKEN
    assert receiver.read(99, 0.0) == b"-0123456789"
    assert receiver.sack_blocks() == []


def test_only_the_four_highest_ranges_are_reported() -> None:
    receiver = make()
    for seq in (50, 10, 110, 30, 70, 90, 20):
        receiver.receive(seq, bytes(10), 0.0)
    assert receiver.sack_blocks() == [(50, 60), (70, 80), (90, 100), (110, 120)]
    assert receiver.held_count == 7


def test_a_segment_that_begins_early_is_dropped_whole() -> None:
    receiver = make(10)
    assert receiver.receive(5, bytes(20), 0.0) == Arrival.OLD
    assert receiver.expected == 10
    assert receiver.ack_now


def test_held_segments_are_bounded_and_unique() -> None:
    receiver = Receiver(512, 2)
    fates = [receiver.receive(seq, b"x", 0.0) for seq in (5, 5, 7, 9)]
    assert fates == [Arrival.HELD, Arrival.DROPPED, Arrival.HELD, Arrival.DROPPED]


def test_held_bytes_are_bounded_with_those_in_the_queue() -> None:
    receiver = Receiver(10, 128)
    large = bytes(5 * SEGMENT)
    seqs = [0, 2, 7, 12]
    fates = [receiver.receive(n * 5 * SEGMENT, large, 0.0) for n in seqs]
    assert fates == [Arrival.TAKEN, Arrival.HELD, Arrival.DROPPED, Arrival.DROPPED]
    # What was read makes room; what moved into the queue is not counted twice.
    receiver.read(5 * SEGMENT, 0.0)
    assert receiver.receive(7 * 5 * SEGMENT, large, 0.0) == Arrival.HELD
    assert receiver.receive(5 * SEGMENT, large, 0.0) == Arrival.TAKEN
    receiver.read(10 * SEGMENT, 0.0)
    assert receiver._held_bytes == 5 * SEGMENT
    receiver.drop_held()
    assert receiver._held_bytes == 0


def test_a_segment_far_beyond_any_window_is_not_held() -> None:
    assert make().receive(1 << 30, b"x", 0.0) == Arrival.DROPPED


def test_overtaken_segments_of_other_boundaries_are_forgotten() -> None:
    receiver = make()
    receiver.receive(5, b"56", 0.0)
    receiver.receive(0, b"0123456789", 0.0)
    assert receiver.held_count == 0
    assert receiver.read(99, 0.0) == b"0123456789"


@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        ([], 512),
        ([1], 511),
        ([1, 1, 1], 509),
        ([1152], 511),
        ([1153], 510),
        ([65535], 512 - 57),
        ([1] * 512, 0),
        ([65535] * 9, 0),
    ],
)
def test_window_counts_the_scarcer_of_segments_and_bytes(
    sizes: list[int], window: int
) -> None:
    receiver = make()
    for size in sizes:
        receiver.receive(receiver.expected, bytes(size), 0.0)
    assert receiver.window() == window


def test_a_full_receiver_drops_in_silence_but_answers_a_probe() -> None:
    receiver = make(limit=2)
    for _ in range(2):
        receiver.receive(receiver.expected, b"x", 0.0)
    receiver.window_sent(receiver.window())
    assert receiver.receive(receiver.expected, b"x", 0.0) == Arrival.DROPPED
    assert not receiver.ack_now
    assert receiver.receive(receiver.expected - 1, b"?", 0.0) == Arrival.OLD
    assert receiver.ack_now


def test_reopening_is_announced_and_empty_acks_are_answered_sparingly() -> None:
    receiver = make(limit=2)
    for _ in range(2):
        receiver.receive(receiver.expected, b"x", 0.0)
    receiver.window_sent(0)
    receiver.read(1, 10.0)
    assert receiver.ack_now
    receiver.window_sent(receiver.window())
    answers = []
    for now in (10.1, 10.4, 10.5, 10.8, 69.9, 70.1):
        receiver.answer_empty(now)
        answers.append(receiver.ack_now)
        receiver.window_sent(1)
    assert answers == [False, True, False, True, True, False]


def test_data_ends_the_answering_of_empty_acks() -> None:
    receiver = make(limit=1)
    receiver.receive(0, b"x", 0.0)
    receiver.window_sent(0)
    receiver.read(1, 0.0)
    receiver.receive(1, b"x", 0.1)
    receiver.window_sent(0)
    receiver.answer_empty(5.0)
    assert not receiver.ack_now


def test_room_grown_by_half_the_buffer_is_announced() -> None:
    receiver = make(limit=10)
    for _ in range(6):
        receiver.receive(receiver.expected, b"x", 0.0)
    receiver.window_sent(receiver.window())
    receiver.read(4, 0.0)
    assert not receiver.ack_now
    receiver.read(1, 0.0)
    assert receiver.ack_now


def test_lone_segments_are_acknowledged_at_once_32_times_then_delayed() -> None:
    receiver = make()
    for _ in range(32):
        receiver.receive(receiver.expected, b"x", 0.0)
        assert receiver.ack_now
        receiver.window_sent(512)
    receiver.receive(receiver.expected, b"x", 1.0)
    assert not receiver.ack_now
    assert receiver.ack_deadline == 1.005
    receiver.handle_timer(1.004)
    assert not receiver.ack_now
    receiver.handle_timer(1.005)
    assert receiver.ack_now
    receiver.window_sent(512)
    assert receiver.ack_deadline == NEVER
    receiver.receive(receiver.expected, b"x", 2.0)
    assert receiver.ack_now


def test_deferred_acknowledgements_wait_for_two_full_segments_or_their_time() -> None:
    receiver = make()
    receiver.defer_acks(0.4)
    for size in (1, SEGMENT, SEGMENT - 2):
        receiver.receive(receiver.expected, bytes(size), 1.0)
        assert not receiver.ack_now
        assert receiver.ack_deadline == 1.4
    receiver.receive(receiver.expected, b"x", 1.0)
    assert receiver.ack_now
    receiver.window_sent(512)
    receiver.receive(receiver.expected, b"x", 2.0)
    receiver.handle_timer(2.4)
    assert receiver.ack_now
    receiver.window_sent(512)
    # Other streams have 32 quick ones again now.
    receiver.receive(receiver.expected, b"x", 3.0)
    assert not receiver.ack_now


def test_deferred_acknowledgements_still_tell_of_gaps_at_once() -> None:
    receiver = make()
    receiver.defer_acks(0.4)
    receiver.receive(1, b"b", 1.0)
    assert receiver.ack_now


def test_deferred_acknowledgements_tell_at_once_that_a_gap_is_filled() -> None:
    receiver = make()
    receiver.defer_acks(0.4)
    for seq in (1, 3):
        receiver.receive(seq, b"x", 1.0)
    receiver.window_sent(512)
    # In part, then wholly.
    for seq in (0, 2):
        receiver.receive(seq, b"x", 1.0)
        assert receiver.ack_now
        receiver.window_sent(512)
    receiver.receive(4, b"x", 1.0)
    assert not receiver.ack_now


def test_a_segment_that_was_not_held_leaves_no_gap_to_tell_of() -> None:
    receiver = make()
    receiver.defer_acks(0.4)
    receiver.receive(1 << 30, b"x", 1.0)
    receiver.window_sent(512)
    receiver.receive(0, b"x", 1.0)
    assert not receiver.ack_now


def test_every_second_segment_is_acknowledged_at_once() -> None:
    receiver = make()
    for _ in range(32):
        receiver.receive(receiver.expected, b"x", 0.0)
        receiver.window_sent(512)
    receiver.receive(receiver.expected, b"x", 0.0)
    assert not receiver.ack_now
    receiver.receive(receiver.expected, b"x", 0.0)
    assert receiver.ack_now


@given(
    st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.integers(0, MASK),
)
def test_any_order_with_repetitions_gives_the_stream(
    pieces: list[bytes], order: random.Random, start: int
) -> None:
    receiver = make(start)
    segments = []
    seq = start
    for piece in pieces:
        segments.append((seq, piece))
        seq = (seq + len(piece)) & MASK
    arrivals = segments * 2
    order.shuffle(arrivals)
    for segment in arrivals:
        receiver.receive(*segment, 0.0)
    assert receiver.read(1000, 0.0) == b"".join(pieces)
    assert receiver.held_count == 0
