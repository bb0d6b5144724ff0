from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.stream.config import NEVER
from pilotfleet.protocol.stream.congestion import Reno
from pilotfleet.protocol.stream.sack import looks_like_sack
from pilotfleet.protocol.stream.sender import Recovery, Segment, Sender
from pilotfleet.protocol.stream.sequence import MASK

ROOM = 1 << 20


def make(isn: int = 0, *, window: int = 512) -> Sender:
    sender = Sender(isn, Reno(1 << 20), max_outstanding=128)
    sender.receive_window(window)
    return sender


def sizes(segments: list[Segment]) -> list[int]:
    return [len(segment.payload) for segment in segments]


def sending(size: int, *, isn: int = 0, window: int = 512) -> Sender:
    """A sender that has just sent ``size`` bytes at time 0."""
    sender = make(isn, window=window)
    sender.write(bytes(size), ROOM)
    sender.segments_to_send(0.0)
    return sender


def ack(sender: Sender, number: int, now: float = 0.1, *, window: int = 512) -> None:
    sender.receive_ack(number, window, now, is_pure=True)


def sack(sender: Sender, number: int, *blocks: tuple[int, int]) -> None:
    sender.receive_ack(number, 512, 0.1, is_pure=True, blocks=blocks)


# Cutting.


def test_a_large_write_leaves_with_its_tail() -> None:
    sender = make()
    sender.write(bytes(4096), ROOM)
    assert sizes(sender.segments_to_send(0.0)) == [1152, 1152, 1152, 640]


def test_a_write_takes_no_more_than_there_is_room() -> None:
    sender = make()
    assert sender.write(b"abcdef", 4) == 4
    assert bytes(sender.unsent) == b"abcd"


def test_a_short_segment_waits_for_the_one_before() -> None:
    sender = make()
    sender.write(b"a", ROOM)
    assert sizes(sender.segments_to_send(0.0)) == [1]
    sender.write(b"b", ROOM)
    sender.write(b"c", ROOM)
    assert sender.segments_to_send(0.0) == []
    assert sender.deadline == 0.04
    ack(sender, 2, 0.01)
    assert sizes(sender.segments_to_send(0.01)) == [2]


def test_a_short_segment_waits_no_longer_than_40_ms() -> None:
    sender = make()
    sender.write(b"a", ROOM)
    sender.segments_to_send(0.0)
    sender.write(b"b", ROOM)
    sender.segments_to_send(0.0)
    sender.handle_timer(0.04, 0.0)
    assert sizes(sender.segments_to_send(0.04)) == [1]
    assert sender.deadline == 1.0


def test_a_segment_that_became_full_does_not_wait() -> None:
    sender = make()
    sender.write(b"a", ROOM)
    sender.segments_to_send(0.0)
    sender.write(bytes(1000), ROOM)
    assert sender.segments_to_send(0.0) == []
    sender.write(bytes(200), ROOM)
    assert sizes(sender.segments_to_send(0.0)) == [1152]
    assert len(sender.unsent) == 48


def test_no_delay_sends_every_write() -> None:
    sender = make()
    sender.no_delay = True
    for _ in range(3):
        sender.write(b"x", ROOM)
        assert sizes(sender.segments_to_send(0.0)) == [1]


def test_a_full_segment_outstanding_does_not_hold_a_short_one() -> None:
    sender = sending(1152)
    sender.write(b"x", ROOM)
    assert sizes(sender.segments_to_send(0.0)) == [1]


@pytest.mark.parametrize(
    ("window", "count"), [(0, 0), (1, 1), (2, 2), (30, 30), (512, 36)]
)
def test_windows_limit_what_is_outstanding(window: int, count: int) -> None:
    # 36 segments reach the initial congestion window of 40960 bytes.
    sender = make(window=window)
    sender.write(bytes(100_000), ROOM)
    assert len(sender.segments_to_send(0.0)) == count


def test_never_more_than_128_segments_are_outstanding() -> None:
    sender = make()
    sender.congestion.window = 1 << 20
    sender.write(bytes(400_000), ROOM)
    assert len(sender.segments_to_send(0.0)) == 128


def test_a_larger_segment_size_holds_for_what_is_cut_later() -> None:
    sender = make()
    sender.write(bytes(100_000), ROOM)
    sender.segments_to_send(0.0)
    sender.set_segment_size(20_000, 8 << 20)
    assert set(sizes(sender.segments)) == {1152}
    ack(sender, sender.next)
    assert sizes(sender.segments_to_send(0.1)) == [20_000, 20_000, 18528]


def test_a_smaller_segment_size_splits_what_no_longer_fits() -> None:
    sender = make()
    sender.set_segment_size(3000, 8 << 20)
    data = bytes(range(250)) * 24
    sender.write(data, ROOM)
    sender.segments_to_send(0.0)
    sender.set_segment_size(1152, 1 << 20)
    assert sizes(sender.segments) == [1152, 1152, 696, 1152, 1152, 696]
    assert b"".join(s.payload for s in sender.segments) == data
    assert sender.in_flight == 6000
    ack(sender, 3001)
    assert sender.in_flight == 3000


def test_splitting_leaves_what_arrived_or_fits_as_it_is() -> None:
    sender = make()
    sender.set_segment_size(3000, 8 << 20)
    sender.write(bytes(6500), ROOM)
    sender.segments_to_send(0.0)
    sack(sender, 1, (1, 3001))
    sender.set_segment_size(1152, 1 << 20)
    assert sizes(sender.segments) == [3000, 1152, 1152, 696, 500]


LOOKALIKE = b"SACK\x01" + bytes(range(8))


@pytest.mark.parametrize("data", [LOOKALIKE, LOOKALIKE + b"more", LOOKALIKE * 500])
def test_no_segment_can_be_taken_for_sack(data: bytes) -> None:
    sender = make()
    sender.write(data, ROOM)
    segments = sender.segments_to_send(0.0)
    assert b"".join(segment.payload for segment in segments) == data
    assert segments[0].payload == b"S"
    assert not any(looks_like_sack(segment.payload) for segment in segments)


@given(st.lists(st.sampled_from([b"SACK", b"\1", b"\4", bytes(9), b"x" * 700])))
def test_no_write_makes_a_segment_that_looks_like_sack(pieces: list[bytes]) -> None:
    sender = make()
    for piece in pieces:
        sender.write(piece, ROOM)
    sender.push()
    segments = sender.segments_to_send(0.0)
    assert not any(looks_like_sack(segment.payload) for segment in segments)


# Acknowledgements.


@pytest.mark.parametrize("isn", [0, MASK - 2000, MASK])
def test_acknowledged_segments_are_forgotten(isn: int) -> None:
    sender = sending(4608, isn=isn)
    first = (isn + 1) & MASK
    ack(sender, (first + 2304) & MASK)
    assert sizes(sender.segments) == [1152, 1152]
    assert sender.in_flight == 2304
    ack(sender, (first + 4608) & MASK)
    assert sender.is_drained
    assert sender.deadline == NEVER


@pytest.mark.parametrize("number", [0, 5000, 0x8000_0000])
def test_acks_of_nothing_sent_or_long_past_are_ignored(number: int) -> None:
    sender = sending(1152)
    ack(sender, number, window=3)
    assert sender.una == 1
    assert sender.peer_window == 512


def test_a_round_trip_is_measured_only_without_repetition() -> None:
    sender = sending(1152)
    ack(sender, 1153, 0.1)
    assert sender.rtt.srtt == 0.1
    sender.write(bytes(1152), ROOM)
    sender.segments_to_send(1.0)
    sender.handle_timer(1.3, 0.0)
    sender.segments_to_send(1.3)
    ack(sender, 2305, 5.0)
    assert sender.rtt.srtt == 0.1


def test_sacked_bytes_are_not_in_flight() -> None:
    sender = sending(4608)
    sack(sender, 1, (1153, 2305), (3457, 4609))
    assert sender.in_flight == 2304


def test_partly_covered_segments_are_not_marked() -> None:
    sender = sending(4608)
    sack(sender, 1, (1154, 2305), (3457, 4600))
    assert sender.in_flight == 4608


def test_the_third_duplicate_repeats_the_first_segment() -> None:
    sender = sending(1152 * 20)
    for count in range(3):
        assert sender.segments_to_send(0.1) == []
        ack(sender, 1)
        assert sender.duplicates == count + 1
    resent = sender.segments_to_send(0.1)
    assert [segment.seq for segment in resent] == [1]
    assert sender.recovery is Recovery.FAST
    assert sender.congestion.threshold == 1152 * 10
    assert sender.congestion.window == 1152 * 13


def test_acks_with_data_or_another_window_are_no_duplicates() -> None:
    sender = sending(4608)
    for window in (511, 510, 509, 508):
        ack(sender, 1, window=window)
    for _ in range(4):
        sender.receive_ack(1, 508, 0.1, is_pure=False)
    assert sender.duplicates == 0


def test_duplicates_need_data_in_flight() -> None:
    sender = make()
    ack(sender, 1)
    assert sender.duplicates == 0


def test_sacked_segments_are_not_repeated() -> None:
    sender = sending(1152 * 10)
    for _ in range(3):
        sack(sender, 1, (1 + 1152, 1 + 1152 * 9))
    assert [s.seq for s in sender.segments_to_send(0.1)] == [1]


def test_each_further_duplicate_repeats_the_next_hole() -> None:
    sender = sending(1152 * 12)

    # Numbers 0, 2 and 4 are missing.
    def number(index: int) -> int:
        return 1 + 1152 * index

    arrived = [(number(i), number(i + 1)) for i in (1, 3)]
    sack(sender, 1, *arrived)
    sack(sender, 1, *arrived, (number(5), number(6)))
    sack(sender, 1, *arrived, (number(5), number(8)))
    assert [s.seq for s in sender.segments_to_send(0.1)] == [number(0)]
    sack(sender, 1, *arrived, (number(5), number(9)))
    sack(sender, 1, *arrived, (number(5), number(10)))
    assert [s.seq for s in sender.segments_to_send(0.1)] == [number(2), number(4)]


def test_a_partial_ack_repeats_the_next_hole_and_a_full_one_ends_recovery() -> None:
    sender = sending(1152 * 10)
    for _ in range(3):
        ack(sender, 1)
    sender.segments_to_send(0.1)
    ack(sender, 1 + 1152 * 4)
    # This peer sends no SACK, so the first segment is all that is known to miss.
    assert [s.seq for s in sender.segments_to_send(0.1)] == [1 + 1152 * 4]
    ack(sender, 1 + 1152 * 10)
    assert sender.recovery is Recovery.NONE
    assert sender.congestion.window == sender.congestion.threshold


def test_a_partial_ack_without_a_hole_repeats_nothing() -> None:
    sender = sending(1152 * 20)
    for count in (2, 3, 4):
        sack(sender, 1, (1 + 1152, 1 + 1152 * count))
    sender.segments_to_send(0.1)
    ack(sender, 1 + 1152 * 4)
    assert sender.recovery is Recovery.FAST
    assert all(segment.sends == 1 for segment in sender.segments_to_send(0.1))
    sack(sender, 1 + 1152 * 5, (1 + 1152 * 6, 1 + 1152 * 7))
    [segment] = [s for s in sender.segments_to_send(0.1) if s.sends > 1]
    assert segment.seq == 1 + 1152 * 5


def test_a_planned_repetition_is_dropped_when_its_ack_comes_first() -> None:
    sender = sending(1152 * 10)
    for _ in range(3):
        ack(sender, 1)
    ack(sender, 1 + 1152 * 10)
    assert sender.segments_to_send(0.1) == []
    assert sender.retransmits == 0


# Timeouts.


def test_unanswered_segment_is_sent_eight_times_then_given_up() -> None:
    sender = sending(1152 * 3)
    sent_at = [0.0]
    while sender.handle_timer(sender.deadline, 0.1):
        now = sender.deadline - sender.rtt.rto
        assert [s.seq for s in sender.segments_to_send(now)] == [1]
        sent_at.append(round(now, 2))
    # The reference was seen at 0, 1.1, 3.2, 7.6, 17.6, 27.7 s and gave up at 58 s.
    assert sent_at == [0.0, 1.0, 3.05, 7.25, 15.87, 25.87, 35.87, 45.87]
    assert sender.deadline == pytest.approx(55.87, abs=0.01)


def test_a_timeout_shrinks_the_window_and_acks_then_repeat_the_rest() -> None:
    sender = sending(1152 * 10)
    sender.handle_timer(1.0, 0.0)
    assert sender.congestion.window == 4096
    assert len(sender.segments_to_send(1.0)) == 1
    ack(sender, 1153, 1.1)
    assert [s.seq for s in sender.segments_to_send(1.1)] == [1153, 2305]
    ack(sender, 1 + 11520, 1.2)
    assert sender.recovery is Recovery.NONE


def timed_out(count: int, size: int) -> Sender:
    """A sender of short segments that has just repeated the first of them."""
    sender = make()
    sender.no_delay = True
    for _ in range(count):
        sender.write(bytes(size), ROOM)
        sender.segments_to_send(0.0)
    sender.handle_timer(1.0, 0.0)
    assert len(sender.segments_to_send(1.0)) == 1
    return sender


def test_short_segments_are_repeated_up_to_two_full_ones_per_ack() -> None:
    sender = timed_out(30, 200)
    ack(sender, 201, 1.1)
    assert sizes(sender.segments_to_send(1.1)) == [200] * 12
    ack(sender, 2601, 1.2)
    assert sizes(sender.segments_to_send(1.2)) == [200] * 12
    ack(sender, 5001, 1.3)
    assert sizes(sender.segments_to_send(1.3)) == [200] * 5
    assert sender.retransmits == 30


def test_short_segments_are_repeated_within_the_congestion_window() -> None:
    sender = timed_out(60, 200)
    under_way = 0
    for number in (201, 401, 601):
        ack(sender, number, 1.1)
        under_way += len(sender.segments_to_send(1.1)) * 200
        assert under_way - (number - 201) <= sender.congestion.window
    # Two more for each acknowledgement, as of any size, when the window is used up.
    ack(sender, 801, 1.1)
    assert len(sender.segments_to_send(1.1)) == 2


def test_a_peer_that_dropped_what_it_reported_gets_it_again() -> None:
    sender = sending(1152 * 3)
    sack(sender, 1, (1, 1153))
    sender.handle_timer(2.0, 0.0)
    assert [s.seq for s in sender.segments_to_send(2.0)] == [1]
    assert sender.in_flight == 1152 * 3


def test_a_closed_window_does_not_count_against_a_peer() -> None:
    sender = sending(1152)
    ack(sender, 1, window=0)
    for _ in range(12):
        assert sender.handle_timer(sender.deadline, 0.0)
        sender.segments_to_send(sender.deadline - sender.rtt.rto)


# Zero window.


def test_a_closed_window_is_probed_with_doubling_gaps_then_given_up() -> None:
    sender = make(window=0)
    sender.write(b"data", ROOM)
    assert sender.segments_to_send(0.0) == []
    probes: list[float] = []
    while sender.handle_timer(sender.deadline, 0.0):
        probes.append(sender.deadline)
        assert sender.take_probe(sender.deadline)
        assert not sender.take_probe(probes[-1])
    assert probes[:8] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5]
    assert len(probes) == 30


def test_an_opening_ends_the_probing() -> None:
    sender = make(window=0)
    sender.write(b"data", ROOM)
    sender.segments_to_send(0.0)
    sender.take_probe(0.5)
    ack(sender, 1, 0.6, window=1)
    assert sender.probe_deadline == NEVER
    assert sizes(sender.segments_to_send(0.6)) == [4]
    assert sender.probes == 0


def test_dropping_forgets_everything() -> None:
    sender = sending(100_000)
    sender.drop()
    assert sender.is_drained
    assert sender.in_flight == 0
    assert sender.deadline == NEVER
