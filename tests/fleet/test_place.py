"""How far a subscriber has come: what it asks for, and what it leaves out."""

from __future__ import annotations

from pilotfleet.fleet.place import KNOWN_S, Place
from pilotfleet.protocol.services.eventoptions import MarkFrame, SubscribeOptions
from pilotfleet.protocol.services.events import Event

A, B, C = (Event("t", payload) for payload in (b"a", b"b", b"c"))


def test_a_fresh_subscription_asks_for_what_the_user_wants() -> None:
    assert Place().options(10.0) == SubscribeOptions(marks=True)
    assert Place(since=60.0).options(10.0) == SubscribeOptions(since=60.0, marks=True)
    at_mark = Place(since=60.0, position=("log", 7)).options(10.0)
    assert at_mark == SubscribeOptions(60.0, 7, "log", marks=True)


def test_a_broker_that_comes_up_late_is_asked_for_all_since() -> None:
    place = Place(since=60.0)
    place.options(10.0)
    assert place.options(15.0).since == 65.0


def test_after_a_lost_connection_the_gap_comes_and_nothing_twice() -> None:
    place = Place()
    place.options(0.0)
    place.connect(0.0)
    place.mark(MarkFrame("log", 3, 100.0, 0))
    assert place.take(A, 1.0)
    assert place.take(A, 1.0)
    assert place.take(B, 1.0)
    place.leave(2.0)
    assert place.options(5.0) == SubscribeOptions(5.0, 3, "log", marks=True)
    place.connect(5.0)
    place.mark(MarkFrame("log", 3, 100.0, 0))
    # All since the mark again, and what was published meanwhile.
    assert [place.take(event, 5.0) for event in (A, A, B, A, C)] == [
        *(False, False, False),
        *(True, True),
    ]


def test_a_connection_lost_again_within_the_replay_repeats_nothing() -> None:
    place = Place()
    place.connect(0.0)
    place.mark(MarkFrame("log", 3, 100.0, 0))
    place.take(A, 1.0)
    place.take(B, 1.0)
    place.leave(2.0)
    place.connect(3.0)
    assert not place.take(A, 3.0)
    place.leave(4.0)
    place.connect(5.0)
    assert not place.take(A, 5.0)
    place.mark(MarkFrame("log", 4, 101.0, 0))
    assert not place.take(B, 5.0)
    assert place.take(A, 5.0)


def test_what_is_equal_counts_as_new_after_some_time() -> None:
    place = Place()
    place.connect(0.0)
    place.mark(MarkFrame("log", 3, 100.0, 0))
    place.take(A, 1.0)
    place.leave(2.0)
    place.connect(3.0)
    assert place.take(A, 3.0 + KNOWN_S)


def test_without_a_log_every_event_is_new() -> None:
    place = Place()
    place.connect(0.0)
    place.mark(MarkFrame("", 0, 100.0, 0))
    assert place.take(A, 1.0)
    place.leave(2.0)
    assert place.options(9.0) == SubscribeOptions(7.0, marks=True)
    place.connect(9.0)
    assert place.take(A, 9.0)


def test_losses_of_all_connections_add_up() -> None:
    place = Place()
    place.connect(0.0)
    place.mark(MarkFrame("log", 3, 100.0, 4))
    assert place.lost == 4
    place.leave(1.0)
    place.connect(2.0)
    place.mark(MarkFrame("log", 9, 100.0, 2))
    assert place.lost == 6
