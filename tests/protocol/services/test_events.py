"""Event frames: recorded bytes, limits, arbitrary cuts, arbitrary bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.services.events import (
    CONFIRM_TOPIC,
    GOVERNED_TOPIC,
    MARK_TOPIC,
    MAX_PAYLOAD,
    PUBLISHER_TOPIC,
    Event,
    EventDecoder,
    encode_event,
    is_reserved,
    may_publish,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: list[dict[str, Any]] = json.loads(VECTORS.read_text())["event_stream"][
    "frames"
]

topics = st.text(max_size=40).filter(lambda text: _is_encodable(text))
events = st.builds(Event, topics, st.binary(max_size=60))


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


@pytest.mark.parametrize("frame", RECORDED)
def test_recorded_frame(frame: dict[str, Any]) -> None:
    raw = bytes.fromhex(frame["hex"])
    event = Event(frame["topic"], bytes.fromhex(frame["payload_hex"]))
    assert encode_event(*event) == raw
    assert EventDecoder().feed(raw) == [event]


@pytest.mark.parametrize(
    "raw",
    [b"\x04\x01" + b"t" * 1025, b"\0\2\xff\xfe\0\0\0\0", b"\0\1x\1\0\0\1"],
    ids=["topic of 1025 bytes", "topic not UTF-8", "payload above 16 MiB"],
)
def test_frame_outside_the_limits_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        EventDecoder().feed(raw)


def test_limits_themselves_are_allowed() -> None:
    event = Event("t" * 1024, bytes(MAX_PAYLOAD))
    assert EventDecoder().feed(encode_event(*event)) == [event]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("t" * 1025, b""),
        ("é" * 513, b""),
        ("\ud800", b""),
        ("t", bytes(MAX_PAYLOAD + 1)),
    ],
)
def test_event_outside_the_limits_is_not_encoded(topic: str, payload: bytes) -> None:
    with pytest.raises(InvalidArgument):
        encode_event(topic, payload)


@given(st.lists(events, max_size=6), st.data())
def test_stream_of_frames_survives_any_cuts(
    sent: list[Event], data: st.DataObject
) -> None:
    raw = b"".join(encode_event(*event) for event in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    decoder = EventDecoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        received += decoder.feed(raw[start:end])
    assert received == sent


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_a_decode_error(raw: bytes) -> None:
    decoder = EventDecoder()
    try:
        for index in range(len(raw)):
            decoder.feed(raw[index : index + 1])
    except DecodeError:
        pass


def test_events_before_a_broken_frame_are_returned() -> None:
    decoder = EventDecoder()
    broken = b"\0\2\xff\xfe\0\0\0\0"
    assert decoder.feed(encode_event("t", b"x") + broken) == [Event("t", b"x")]
    assert decoder.error is not None
    assert decoder.unfinished_bytes == 0
    with pytest.raises(DecodeError, match="not UTF-8"):
        decoder.feed(encode_event("t"))


def test_decoder_tells_what_it_keeps() -> None:
    decoder, frame = EventDecoder(), encode_event("t", bytes(1000))
    assert decoder.feed(frame + frame[:600]) == [Event("t", bytes(1000))]
    assert decoder.unfinished_bytes == 600
    decoder.feed(frame[600:])
    assert decoder.unfinished_bytes == 0


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        (PUBLISHER_TOPIC, True),
        (MARK_TOPIC, True),
        (CONFIRM_TOPIC, True),
        ("pilotfleet.mark", False),
        (GOVERNED_TOPIC, False),
        ("", False),
    ],
)
def test_topics_of_extensions_are_reserved(topic: str, *, expected: bool) -> None:
    assert is_reserved(topic) is expected
    # The official reserved topic is none of ours, and passed on as little.
    assert may_publish(topic) is not (expected or topic == GOVERNED_TOPIC)
