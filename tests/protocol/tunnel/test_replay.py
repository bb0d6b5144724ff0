"""Replay windows: the vector, their edges, and prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.tunnel.replay import (
    WINDOW_SIZE,
    ReplayFilter,
    ReplayWindow,
    Verdict,
)
from tests.protocol.tunnel.support import vectors

_VECTOR = vectors("wire.json")["replay_window"]

_ACCEPT, _REPLAY, _TOO_OLD = Verdict


def test_the_vector_is_followed() -> None:
    assert _VECTOR["size"] == WINDOW_SIZE
    window = ReplayWindow()
    for counter, verdict in _VECTOR["sequence"]:
        assert window.accept(counter).value == verdict, counter


@pytest.mark.parametrize(
    "sequence",
    [
        [(0, _ACCEPT), (0, _REPLAY), (1, _ACCEPT)],
        [(2**64 - 1, _ACCEPT), (2**64 - 1, _REPLAY), (2**64 - 256, _ACCEPT)],
        [(1, _ACCEPT), (256, _ACCEPT), (1, _REPLAY), (257, _ACCEPT), (1, _TOO_OLD)],
        [(1, _ACCEPT), (257, _ACCEPT), (1, _TOO_OLD), (2, _ACCEPT), (2, _REPLAY)],
        [(5, _ACCEPT), (1000, _ACCEPT), (999, _ACCEPT), (5, _TOO_OLD)],
    ],
)
def test_window_edges(sequence: list[tuple[int, Verdict]]) -> None:
    window = ReplayWindow()
    assert [(c, window.accept(c)) for c, _ in sequence] == sequence


@given(st.lists(st.integers(0, 700), max_size=300))
def test_window_agrees_with_a_plain_set(counters: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    for counter in counters:
        if seen and max(seen) - counter >= WINDOW_SIZE:
            expected = _TOO_OLD
        else:
            expected = _REPLAY if counter in seen else _ACCEPT
            seen.add(counter)
        assert window.accept(counter) is expected


def _prefix(number: int) -> bytes:
    return number.to_bytes(4)


def test_each_prefix_has_its_own_window() -> None:
    replay = ReplayFilter()
    for prefix in (1, 2, 3, 4):
        assert replay.accept(_prefix(prefix), 1) is _ACCEPT
    for prefix in (1, 2, 3, 4):
        assert replay.accept(_prefix(prefix), 1) is _REPLAY
        assert replay.accept(_prefix(prefix), 2) is _ACCEPT


def test_prefixes_beyond_the_fourth_push_out_the_oldest_for_good() -> None:
    replay = ReplayFilter()
    for prefix in range(1, 7):
        assert replay.accept(_prefix(prefix), 1) is _ACCEPT
    for evicted in (1, 2):
        assert replay.accept(_prefix(evicted), 99) is _TOO_OLD
    for kept in (3, 4, 5, 6):
        assert replay.accept(_prefix(kept), 1) is _REPLAY


def test_filter_is_exhausted_when_no_more_prefixes_can_be_remembered() -> None:
    replay = ReplayFilter()
    for prefix in range(1, 69):
        assert not replay.is_exhausted
        assert replay.accept(_prefix(prefix), 1) is _ACCEPT
    assert replay.is_exhausted
    assert replay.accept(_prefix(1000), 1) is _TOO_OLD
    assert replay.accept(_prefix(68), 2) is _ACCEPT


def test_zero_prefix_is_a_prefix_like_any_other() -> None:
    replay = ReplayFilter()
    assert replay.accept(bytes(4), 1) is _ACCEPT
    assert replay.accept(bytes(4), 1) is _REPLAY
    assert replay.accept(b"abcd", 1) is _ACCEPT
    assert replay.accept(bytes(4), 1) is _REPLAY
