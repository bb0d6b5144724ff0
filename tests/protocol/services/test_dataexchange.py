"""Data exchange frames: recorded bytes, limits, arbitrary cuts, arbitrary bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.services.dataexchange import (
    MAX_FRAME,
    Answer,
    Frame,
    FrameDecoder,
    FrameType,
    Tagged,
    Tags,
    Trace,
    TraceAnswer,
    ack_text,
    decode_file,
    decode_tagged,
    decode_trace,
    decode_trace_answer,
    duplicate_text,
    encode_file,
    encode_frame,
    encode_tagged,
    encode_trace,
    encode_trace_answer,
    is_filename,
    is_message_id,
    new_message_id,
    parse_answer,
    type_name,
    unsupported_text,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: dict[str, Any] = json.loads(VECTORS.read_text())["data_exchange"]
FRAMES = {frame["name"]: frame for frame in RECORDED["frames"]}

frames = st.builds(
    Frame, st.integers(min_value=0, max_value=0xFFFF_FFFF), st.binary(max_size=60)
)
ids = st.none() | st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True)


def the_frame(raw: bytes) -> Frame:
    """Return the only frame in ``raw``."""
    [frame] = FrameDecoder().feed(raw)
    return frame


def read_whole(raw: bytes) -> None:
    """Read a frame and what is inside it, as a receiver does."""
    kind, payload = the_frame(raw)
    match kind:
        case FrameType.FILE:
            decode_file(payload)
        case FrameType.TAGGED:
            decode_tagged(payload)


def recorded(name: str) -> tuple[bytes, Frame, dict[str, Any]]:
    raw = bytes.fromhex(FRAMES[name]["hex"])
    return raw, the_frame(raw), FRAMES[name]["fields"]


@pytest.mark.parametrize("frame", RECORDED["frames"], ids=FRAMES)
def test_recorded_frame(frame: dict[str, Any]) -> None:
    raw = bytes.fromhex(frame["hex"])
    [(kind, payload)] = FrameDecoder().feed(raw)
    assert kind == frame["fields"]["type"]
    assert encode_frame(kind, payload) == raw


@pytest.mark.parametrize("name", ["text", "text_empty", "json"])
def test_recorded_message(name: str) -> None:
    _, frame, fields = recorded(name)
    assert frame.payload.decode() == fields["payload_utf8"]


def test_recorded_file() -> None:
    raw, frame, fields = recorded("file")
    name, data = decode_file(frame.payload)
    assert (name, bytes(data)) == (fields["filename"], fields["data_utf8"].encode())
    assert name is not None
    assert encode_frame(FrameType.FILE, encode_file(name, bytes(data))) == raw


def test_recorded_trace() -> None:
    raw, frame, fields = recorded("trace")
    trace = decode_trace(frame.payload)
    assert trace == Trace(
        fields["inner_type"],
        fields["sent_at_ns"],
        fields["inner_payload_utf8"].encode(),
    )
    assert encode_frame(FrameType.TRACE, encode_trace(trace)) == raw


@pytest.mark.parametrize("name", ["tagged_message_id", "tagged_reply_to"])
def test_recorded_tagged_message(name: str) -> None:
    raw, frame, fields = recorded(name)
    tagged = decode_tagged(frame.payload)
    assert tagged == Tagged(
        Tags(**fields["header"]),
        fields["inner_type"],
        fields["inner_payload_utf8"].encode(),
    )
    assert encode_frame(FrameType.TAGGED, encode_tagged(*tagged)) == raw


def test_recorded_tagged_file() -> None:
    _, frame, fields = recorded("tagged_file")
    tagged = decode_tagged(frame.payload)
    name, data = decode_file(tagged.payload)
    assert tagged.tags.message_id == fields["header"]["message_id"]
    assert (name, bytes(data)) == (fields["filename"], fields["data_utf8"].encode())


@pytest.mark.parametrize("case", RECORDED["acks_v1_18"], ids=lambda c: c["reply_utf8"])
def test_recorded_answer(case: dict[str, Any]) -> None:
    frame = the_frame(bytes.fromhex(case["reply_hex"]))
    answer = parse_answer(frame)
    assert answer.text == case["reply_utf8"]
    assert answer.is_ok == answer.text.startswith("ACK ")
    assert answer.is_duplicate == answer.text.endswith(" (duplicate)")
    assert not answer.is_tagging_unknown


@pytest.mark.parametrize(
    "case", RECORDED["v1_18_closes_connection_without_reply"], ids=lambda c: c["why"]
)
def test_recorded_frame_that_ends_the_connection(case: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        read_whole(bytes.fromhex(case["hex"]))


@pytest.mark.parametrize("text", RECORDED["old_receiver_answers_to_tagged"])
def test_old_receiver_wants_the_frame_untagged(text: str) -> None:
    answer = parse_answer(Frame(FrameType.TEXT, text.encode()))
    assert answer == Answer(text, is_ok=False, is_tagging_unknown=True)


def test_texts_of_answers() -> None:
    assert ack_text(FrameType.TEXT, 9) == "ACK TEXT 9 bytes"
    assert duplicate_text(ack_text(FrameType.FILE, 1)) == (
        "ACK FILE 1 bytes (duplicate)"
    )
    assert unsupported_text(99) == (
        "ERR UNKNOWN(99) save failed: unsupported frame type 99"
    )
    assert unsupported_text(FrameType.GOVERNED) == (
        "ERR GOVERNED save failed: unsupported frame type 8"
    )
    assert type_name(10) == "TAGGED"


def test_answer_that_is_no_text_is_refused() -> None:
    with pytest.raises(DecodeError):
        parse_answer(Frame(FrameType.JSON, b"{}"))


def test_answer_of_an_unknown_kind_is_a_failure() -> None:
    assert not parse_answer(Frame(FrameType.TEXT, b"later, please")).is_ok


# Limits


def test_longest_frame_is_taken_and_one_byte_more_is_not() -> None:
    decoder = FrameDecoder(max_frame=100)
    [frame] = decoder.feed(encode_frame(1, bytes(100)))
    assert len(frame.payload) == 100
    with pytest.raises(DecodeError):
        decoder.feed(encode_frame(1, bytes(101)))
    with pytest.raises(InvalidArgument):
        encode_frame(1, bytes(101), max_frame=100)


def test_frames_before_one_that_is_too_long_are_returned_first() -> None:
    decoder = FrameDecoder(max_frame=100)
    good = encode_frame(1, b"good")
    assert (
        decoder.feed(good + good + encode_frame(1, bytes(101)))
        == [Frame(1, b"good")] * 2
    )
    with pytest.raises(DecodeError):
        decoder.feed(b"")


def test_declared_length_takes_no_memory() -> None:
    decoder = FrameDecoder()
    head = b"\0\0\0\1" + MAX_FRAME.to_bytes(4, "big")
    assert decoder.feed(head + b"x") == []
    assert decoder.buffered == len(head) + 1


@given(st.lists(frames, max_size=5), st.lists(st.integers(min_value=1, max_value=20)))
def test_frames_survive_any_cut(wanted: list[Frame], cuts: list[int]) -> None:
    raw = b"".join(encode_frame(*frame) for frame in wanted)
    decoder = FrameDecoder()
    found = []
    for cut in [*cuts, len(raw)]:
        found += decoder.feed(raw[:cut])
        raw = raw[cut:]
    assert found == wanted
    assert decoder.buffered == 0


# Files


@pytest.mark.parametrize(
    ("payload", "name", "size"),
    [
        (b"", None, 0),
        (b"\0", None, 1),
        (b"\0\x10abc", None, 5),
        (b"\0\0data3", None, 5),
        (b"\0\3a.b", "a.b", 0),
        (b"\0\x08a..b.txtx", "a..b.txt", 1),
    ],
)
def test_file_payload(payload: bytes, name: str | None, size: int) -> None:
    found, data = decode_file(payload)
    assert (found, len(data)) == (name, size)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "ü" * 128, "\ud800"])
def test_file_name_that_is_not_allowed(name: str) -> None:
    assert not is_filename(name)
    with pytest.raises(InvalidArgument):
        encode_file(name, b"")


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"a\\b", b"\xff", b"a" * 256])
def test_file_payload_with_a_bad_name(name: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_file(len(name).to_bytes(2, "big") + name + b"data")


@given(st.binary(max_size=80))
def test_arbitrary_file_payload_gives_a_value_or_our_error(payload: bytes) -> None:
    try:
        name, data = decode_file(payload)
    except DecodeError:
        return
    assert name is None or is_filename(name)
    assert payload.endswith(bytes(data))


# Trace


def test_short_trace_names_its_length() -> None:
    with pytest.raises(DecodeError, match=r"^trace payload too short: 3 bytes$"):
        decode_trace(b"abc")


def test_trace_answer_has_the_official_form() -> None:
    answer = TraceAnswer(4, 3, "ACK TEXT 6 bytes", 2, 1)
    raw = encode_trace_answer(answer)
    assert raw == (
        b'{"ack_sent_at_ns":4,"inbox_written_at_ns":3,"inner_ack":"ACK TEXT 6 bytes",'
        b'"received_at_ns":2,"sent_at_ns":1}'
    )
    assert decode_trace_answer(raw) == answer
    with pytest.raises(DecodeError):
        decode_trace_answer(b"[]")


# Message IDs


@pytest.mark.parametrize("text", ["a", "abc-1", "A_b.c:9-", "x" * 128])
def test_message_id(text: str) -> None:
    assert is_message_id(text)


@pytest.mark.parametrize("text", ["", "a b", "ä", "x" * 129, "a\n", "a/b"])
def test_no_message_id(text: str) -> None:
    assert not is_message_id(text)


def test_new_message_id_is_32_hex_digits() -> None:
    assert new_message_id(bytes(range(16))) == "000102030405060708090a0b0c0d0e0f"


@given(ids, ids, st.integers(min_value=0, max_value=9), st.binary(max_size=40))
def test_tagged_frame_comes_back(
    message_id: str | None, reply_to: str | None, inner: int, payload: bytes
) -> None:
    tagged = Tagged(Tags(message_id, reply_to), inner, payload)
    assert decode_tagged(encode_tagged(*tagged)) == tagged


@pytest.mark.parametrize(
    "header",
    [b"{}", b"null", b'{"message_id":null}', b'{"message_id":""}', b'{"a":"\xff"}'],
)
def test_header_without_ids(header: bytes) -> None:
    raw = len(header).to_bytes(2, "big") + header + b"\0\0\0\1hi"
    assert decode_tagged(raw) == Tagged(Tags(), 1, b"hi")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\0\0\0\0\0\1hi",
        b"\4\1" + b" " * 1023 + b"{}" + b"\0\0\0\1",
        b"\0\2{}\0\0",
        b"\0\2[]\0\0\0\1",
        b'\0\x10{"message_id":5}\0\0\0\1',
        b'\0\x13{"message_id":"\xff"}\0\0\0\1',
        b"\0\4{} x\0\0\0\1",
        b"\0\2{}\0\0\0\x0a",
    ],
)
def test_tagged_frame_that_ends_the_connection(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_tagged(raw)


def test_what_cannot_be_tagged_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        encode_tagged(Tags("a b"), 1, b"")
    with pytest.raises(InvalidArgument):
        encode_tagged(Tags("a"), FrameType.TAGGED, b"")


@given(st.binary(max_size=80))
def test_arbitrary_bytes_give_a_value_or_our_error(raw: bytes) -> None:
    for decode in (decode_tagged, decode_trace, decode_trace_answer):
        try:
            decode(raw)
        except DecodeError:
            continue
