"""Cutting registry frames out of a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.framing import (
    BINARY_PREAMBLE,
    BinaryFrameDecoder,
    JsonFrameDecoder,
    encode_binary_frame,
    encode_json_frame,
    is_binary_preamble,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "registry.json").read_bytes()
)


def test_json_frame_has_the_recorded_bytes() -> None:
    vector = VECTORS["computed"]["json_frame"]
    assert encode_json_frame(vector["json"].encode()).hex() == vector["bytes"]


def test_every_captured_frame_decodes_to_its_request() -> None:
    frames = [c for c in VECTORS["captured"] if "request_frame" in c]
    assert frames
    for capture in frames:
        (body,) = JsonFrameDecoder().feed(bytes.fromhex(capture["request_frame"]))
        assert body.decode() == capture["request"]


def test_preamble_is_told_from_a_length() -> None:
    binary = VECTORS["computed"]["binary"]
    assert bytes.fromhex(binary["preamble"]) == BINARY_PREAMBLE
    assert is_binary_preamble(BINARY_PREAMBLE)
    assert not is_binary_preamble(encode_json_frame(b"{}"))


def test_binary_passthrough_frame_has_the_recorded_bytes() -> None:
    vector = VECTORS["computed"]["binary"]["json_passthrough"]
    frame = encode_binary_frame(0, vector["json"].encode())
    assert frame.hex() == vector["frame"]
    assert BinaryFrameDecoder().feed(frame) == [(0, vector["json"].encode())]


def test_length_above_the_limit_is_refused_before_the_body_arrives() -> None:
    with pytest.raises(DecodeError, match="message of 11 bytes"):
        JsonFrameDecoder(10).feed(b"\0\0\0\x0b")


def test_binary_frame_without_a_type_is_refused() -> None:
    with pytest.raises(DecodeError, match="without a type"):
        BinaryFrameDecoder().feed(bytes(4))


@given(st.lists(st.binary(max_size=40)), st.integers(1, 7))
def test_any_cut_of_the_stream_gives_the_same_frames(
    bodies: list[bytes], step: int
) -> None:
    stream = b"".join(map(encode_json_frame, bodies))
    decoder = JsonFrameDecoder()
    found = []
    for start in range(0, len(stream), step):
        found += decoder.feed(stream[start : start + step])
    assert found == bodies
    assert decoder.buffered_bytes == 0


@given(st.binary(max_size=60))
def test_random_bytes_give_frames_or_a_decode_error(data: bytes) -> None:
    for decoder in (JsonFrameDecoder(32), BinaryFrameDecoder(32)):
        try:
            decoder.feed(data)
        except DecodeError:
            continue
        assert decoder.buffered_bytes <= len(data)
