"""When a socket may let small datagrams of many peers wait for each other."""

from __future__ import annotations

import pytest

from pilotfleet.transport.crowd import (
    LARGE_BYTES,
    PEERS,
    SMALL_SIZE,
    WINDOW,
    WINDOW_S,
    Crowd,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _hear(
    crowd: Crowd,
    clock: Clock,
    *,
    peers: int,
    size: int = 100,
    window_s: float = WINDOW_S / 2,
) -> None:
    """Bring one window of datagrams, one by one, from so many peers in turn."""
    for number in range(WINDOW):
        clock.now += window_s / WINDOW
        crowd.note([(bytes(size), ("192.0.2.1", 1000 + number % peers))])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowd(clock: Clock) -> Crowd:
    return Crowd(clock)


def test_many_fast_peers_are_a_crowd(crowd: Crowd, clock: Clock) -> None:
    # The first window has no beginning, and peers are looked at from the second
    # fast one on.
    _hear(crowd, clock, peers=WINDOW)
    _hear(crowd, clock, peers=WINDOW)
    assert not crowd.is_there
    _hear(crowd, clock, peers=WINDOW)
    assert crowd.is_there


@pytest.mark.parametrize(
    ("peers", "size", "window_s"),
    [
        (PEERS - 1, 100, WINDOW_S / 2),
        (WINDOW, SMALL_SIZE + 1, WINDOW_S / 2),
        (WINDOW, 100, WINDOW_S * 2),
    ],
    ids=["few peers", "large datagrams", "seldom"],
)
def test_everything_else_is_none(
    crowd: Crowd, clock: Clock, peers: int, size: int, window_s: float
) -> None:
    for _ in range(4):
        _hear(crowd, clock, peers=peers, size=size, window_s=window_s)
    assert not crowd.is_there


def test_a_crowd_that_falls_silent_is_none_any_more(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        _hear(crowd, clock, peers=WINDOW)
    _hear(crowd, clock, peers=WINDOW, window_s=WINDOW_S * 2)
    assert not crowd.is_there


def test_a_crowd_that_went_away_leaves_nobody_waiting(
    crowd: Crowd, clock: Clock
) -> None:
    for _ in range(3):
        _hear(crowd, clock, peers=WINDOW)
    clock.now += WINDOW_S
    assert crowd.is_there
    clock.now += 3600
    # Far from enough of them to be judged.
    crowd.note([(b"alone", ("192.0.2.1", 1000))])
    assert not crowd.is_there


def test_a_bulk_stream_ends_a_crowd_at_once(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        _hear(crowd, clock, peers=WINDOW)
    bulk = (bytes(LARGE_BYTES // 2), ("192.0.2.2", 1000))
    crowd.note([bulk, bulk])
    assert crowd.is_there
    crowd.note([bulk])
    assert not crowd.is_there
    # The window that it was in is not one of a crowd; the next is.
    _hear(crowd, clock, peers=WINDOW)
    assert not crowd.is_there
    _hear(crowd, clock, peers=WINDOW)
    assert crowd.is_there


def test_a_quiet_socket_remembers_no_peers(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        _hear(crowd, clock, peers=WINDOW)
    _hear(crowd, clock, peers=WINDOW, window_s=WINDOW_S * 2)
    assert crowd._sources is None
