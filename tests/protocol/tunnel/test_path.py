from __future__ import annotations

from pilotfleet.protocol.tunnel.path import Path

PEER = ("203.0.113.7", 4000)


def test_only_frames_by_relay_in_a_row_say_that_the_direct_path_is_gone() -> None:
    path = Path(0.0)
    assert [path.received_by_relay(now) for now in (2.0, 3.0)] == [False, False]
    path.received_directly(PEER, 4.0)
    results = [path.received_by_relay(now) for now in (6.0, 7.0, 8.0)]
    assert results == [False, False, True]


def test_only_direct_frames_in_a_row_end_the_relaying() -> None:
    path = Path(0.0)
    path.use_relay(0.0)
    assert [path.received_directly(PEER, 1.0) for _ in range(2)] == [False, False]
    path.use_relay(1.0)
    results = [path.received_directly(PEER, 2.0) for _ in range(3)]
    assert results == [False, False, True]
    assert not path.relayed


def test_pinned_path_stays_relayed() -> None:
    path = Path(0.0)
    path.pin(True)
    assert not any(path.received_directly(PEER, 1.0) for _ in range(9))
    path.use_direct(PEER, 2.0)
    assert path.relayed
    path.pin(False)
    assert not path.relayed
