"""Sealed frames against the vectors, and the rules for counters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.tunnel.session import Forged, Replayed, Session
from tests.protocol.tunnel.support import vectors

_VECTORS = vectors("wire.json")["encrypted_frame"]
_CURRENT = [v for v in _VECTORS["valid"] if v["aad"]]
_LEGACY = next(v for v in _VECTORS["valid"] if not v["aad"])
_FIRST = _CURRENT[0]
_KEY = bytes.fromhex(_FIRST["key"])


def _session(sender: int = 1001, *, counter: int = 0) -> Session:
    session = Session(
        _KEY, sender, own_public=b"own", peer_public=b"peer", counter=counter
    )
    session.renew(bytes.fromhex("a1b2c3d4"), 0.0)
    return session


@pytest.mark.parametrize("vector", _CURRENT, ids=lambda v: v["name"])
def test_vectors_are_sealed_and_opened(vector: dict[str, Any]) -> None:
    session = _session(vector["sender_node"], counter=vector["counter"] - 1)
    session.renew(bytes.fromhex(vector["nonce_prefix"]), 0.0)
    plaintext = bytes.fromhex(vector["plaintext"])
    frame = session.seal(plaintext)
    assert frame.hex() == vector["frame"]
    assert len(frame) - len(plaintext) == vector["overhead"]
    assert _session(7).open(frame) == plaintext


def test_the_first_frame_carries_counter_one() -> None:
    assert int.from_bytes(_session().seal(b"")[12:20]) == 1


def test_frames_of_v1_2_do_not_open() -> None:
    with pytest.raises(Forged):
        _session().open(bytes.fromhex(_LEGACY["frame"]))


@pytest.mark.parametrize("vector", _VECTORS["reject"], ids=lambda v: v["reason"])
def test_broken_frames_do_not_open(vector: dict[str, Any]) -> None:
    with pytest.raises(Forged):
        _session().open(bytes.fromhex(vector["bytes"]))


def test_a_frame_opens_once() -> None:
    session = _session()
    frame = session.seal(b"packet")
    assert session.open(frame) == b"packet"
    with pytest.raises(Replayed):
        session.open(frame)


def test_forged_counter_does_not_move_the_window() -> None:
    session = _session()
    frame = session.seal(b"packet")
    forged = frame[:12] + b"\xff" * 8 + frame[20:]
    with pytest.raises(Forged):
        session.open(forged)
    assert session.open(frame) == b"packet"


def test_renewal_takes_a_new_prefix_and_goes_on_counting() -> None:
    session = _session()
    first = session.seal(b"one")
    session.renew(b"next", 1.0)
    second = session.seal(b"two")
    assert second[8:12] == b"next"
    assert int.from_bytes(second[12:20]) == 2
    assert session.open(first) == b"one"
    assert session.open(second) == b"two"


def test_repr_shows_no_key() -> None:
    assert _KEY.hex()[:8] not in repr(_session())


@given(st.binary(max_size=120))
def test_any_bytes_are_forged(data: bytes) -> None:
    with pytest.raises(Forged):
        _session().open(b"PILS" + data)


@given(st.lists(st.binary(max_size=50), max_size=20), st.randoms())
def test_frames_open_in_any_order(packets: list[bytes], random: Any) -> None:
    sender, receiver = _session(), _session()
    frames = [(sender.seal(packet), packet) for packet in packets]
    random.shuffle(frames)
    for frame, packet in frames:
        assert receiver.open(frame) == packet
