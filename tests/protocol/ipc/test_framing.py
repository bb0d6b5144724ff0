"""Frames of the daemon's socket, against the recorded ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.ipc.framing import MAX_FRAME, FrameDecoder, encode_frame
from tests.protocol.ipc.vectors import FRAMES, LENGTH_LIMITS


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["id"])
def test_recorded_frames_are_cut_and_built(vector: dict[str, str]) -> None:
    frame = bytes.fromhex(vector["frame"])
    wire = bytes.fromhex(vector["wire"])

    assert FrameDecoder().feed(wire) == [(frame[0], frame[1:])]
    assert encode_frame(frame[0], frame[1:]) == wire


@given(
    frames=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300))),
    sizes=st.lists(st.integers(1, 64), min_size=1),
)
def test_any_split_gives_the_same_frames(
    frames: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    wire = b"".join(encode_frame(command, payload) for command, payload in frames)
    decoder, found, position, turn = FrameDecoder(), [], 0, 0
    while position < len(wire):
        size = sizes[turn % len(sizes)]
        found += decoder.feed(wire[position : position + size])
        position, turn = position + size, turn + 1

    assert found == frames


@given(st.binary(max_size=4096))
def test_garbage_gives_frames_or_our_error(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        frames = decoder.feed(data)
    except DecodeError:
        return
    assert sum(len(payload) + 5 for _, payload in frames) <= len(data)


def test_an_empty_frame_means_nothing() -> None:
    assert FrameDecoder().feed(bytes(4) + encode_frame(13)) == [(13, b"")]


def test_the_recorded_limits_hold() -> None:
    for limit in LENGTH_LIMITS:
        head = struct.pack("!I", limit["length"])
        if limit["result"] == "processed":
            frames = FrameDecoder().feed(head + b"\x06" + bytes(limit["length"] - 1))
            assert frames == [(6, bytes(limit["length"] - 1))]
        else:
            with pytest.raises(DecodeError):
                FrameDecoder().feed(head)


def test_a_frame_above_the_limit_is_not_built() -> None:
    assert len(encode_frame(6, bytes(MAX_FRAME - 1))) == MAX_FRAME + 4
    with pytest.raises(InvalidArgument):
        encode_frame(6, bytes(MAX_FRAME))
