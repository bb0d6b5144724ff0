"""Task frames: recorded bytes, limits, arbitrary cuts, arbitrary bytes."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.services.tasks import (
    MAX_FILENAME,
    MAX_FRAME,
    MAX_SENT_FILE,
    MAX_TEXT,
    Ack,
    Cancel,
    FrameType,
    Message,
    Ping,
    Results,
    StatusUpdate,
    Submit,
    SubmitResponse,
    TaskFrameDecoder,
    base_name,
    decode_message,
    encode_frame,
    encode_message,
    format_task_id,
    is_task_id,
    refusal_of,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: list[dict[str, Any]] = json.loads(VECTORS.read_text())["tasks"]["frames"]

task_ids = st.from_regex(r"[A-Za-z0-9-]{1,64}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
numbers = st.integers(0, 1 << 53)
messages = st.one_of(
    st.builds(Submit, task_ids, texts, texts, texts, st.integers(-100, 100), numbers),
    st.builds(SubmitResponse, task_ids, st.sampled_from([200, 400]), texts),
    st.builds(StatusUpdate, task_ids, texts, texts),
    st.builds(
        Results,
        task_id=task_ids,
        result_type=texts,
        result_text=texts,
        filename=texts,
        time_idle_ms=numbers,
        time_cpu_ms=numbers,
        error=texts,
        retryable=st.booleans(),
        completed_unix=numbers,
        reward=numbers,
        receipt=texts,
    ),
    st.builds(Ack, task_ids, st.sampled_from([3, 4, 6, 7]), texts),
    st.builds(Cancel, task_ids),
    st.builds(Ping, task_ids),
)


@pytest.mark.parametrize("frame", RECORDED, ids=lambda frame: str(frame["name"]))
def test_recorded_frame(frame: dict[str, Any]) -> None:
    raw = bytes.fromhex(frame["hex"])
    [(frame_type, body)] = TaskFrameDecoder().feed(raw)
    assert frame_type == frame["frame_type"]
    message = decode_message(frame_type, body)
    assert encode_message(message) == raw
    fields = json.loads(frame["json"])
    assert {name: getattr(message, name) for name in fields} == fields


def test_type_one_is_told_apart_by_its_status() -> None:
    assert isinstance(decode_message(1, b'{"task_id":"a"}'), Submit)
    answer = decode_message(1, b'{"task_id":"a","status":200}')
    assert isinstance(answer, SubmitResponse)
    assert answer.is_accepted


def test_fields_of_ours_stay_away_from_official_peers() -> None:
    body = encode_message(Results("a", result_type="text", result_text="x"))[8:]
    assert set(json.loads(body)) == {"task_id", "result_type", "result_text"}
    body = encode_message(Submit("a", "x", "from", "to"))[8:]
    official = {"task_id", "task_description", "from_addr", "to_addr"}
    assert set(json.loads(body)) == official
    assert json.loads(encode_message(Ack("a"))[8:]) == {"task_id": "a"}


@given(message=messages)
def test_every_message_survives_the_wire(message: Message) -> None:
    [frame] = TaskFrameDecoder().feed(encode_message(message))
    assert decode_message(*frame) == message


@given(sent=st.lists(messages, max_size=4), cuts=st.lists(st.integers(1, 9)))
def test_cuts_do_not_matter(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(encode_message(message) for message in sent)
    decoder = TaskFrameDecoder()
    received = []
    for size in (*cuts, len(stream) + 1):
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert [decode_message(*frame) for frame in received] == sent


@given(frame_type=st.integers(0, 9), body=st.binary(max_size=80))
def test_arbitrary_bytes_are_refused_or_read(frame_type: int, body: bytes) -> None:
    try:
        decode_message(frame_type, body)
    except DecodeError:
        return


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_names = sorted({*Submit.__struct_fields__, *Results.__struct_fields__, "of", "status"})


@given(
    frame_type=st.integers(0, 9),
    fields=st.fixed_dictionaries({}, optional=dict.fromkeys(_names, _json)),
)
def test_fields_of_any_type_are_refused_or_read(
    frame_type: int, fields: dict[str, Any]
) -> None:
    # With NaN and infinity, which are no JSON but are what some programs write.
    body = json.dumps({"task_id": "a", **fields}).encode()
    try:
        message = decode_message(frame_type, body)
    except DecodeError:
        return
    assert (
        decode_message(*TaskFrameDecoder().feed(encode_message(message))[0]) == message
    )


@given(data=st.lists(st.integers(0, 3).map(lambda n: bytes([n])), max_size=60))
def test_arbitrary_streams_are_refused_or_read_whole_or_byte_by_byte(
    data: list[bytes],
) -> None:
    assert frames_of([b"".join(data)]) == frames_of(data)


def frames_of(pieces: list[bytes]) -> list[tuple[int, bytes]] | None:
    decoder = TaskFrameDecoder()
    try:
        return [frame for piece in pieces for frame in decoder.feed(piece)]
    except DecodeError:
        return None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"task_id":7}',
        b'{"task_description":"no id"}',
        b'{"task_id":""}',
        b'{"task_id":"../../evil","task_description":"x"}',
        b'{"task_id":"' + b"a" * 65 + b'"}',
        b'{"task_id":"a\\n"}',
        b'{"task_id":"a","task_description":"\xff"}',
        b'{"task_id":"a","extra":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_submission_that_is_not_valid_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_message(FrameType.SUBMIT, body)


def test_legacy_and_unknown_types_are_refused() -> None:
    for frame_type in (0, FrameType.RESULT, 8, 0xFFFF_FFFF):
        with pytest.raises(DecodeError, match="type"):
            decode_message(frame_type, b'{"task_id":"a"}')


def test_stated_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(DecodeError, match="16777217"):
        TaskFrameDecoder().feed(struct.pack("!II", 1, MAX_FRAME + 1))
    assert TaskFrameDecoder().feed(struct.pack("!II", 1, MAX_FRAME)) == []


def test_longest_body_can_be_sent_and_not_one_byte_more() -> None:
    assert len(encode_frame(4, bytes(MAX_FRAME))) == MAX_FRAME + 8
    with pytest.raises(InvalidArgument):
        encode_frame(4, bytes(MAX_FRAME + 1))


def test_refused_submission_can_still_be_answered_by_its_id() -> None:
    refusal = refusal_of(FrameType.SUBMIT, b'{"task_id":"../x"}', "why")
    assert refusal == SubmitResponse("../x", 400, "why")


@pytest.mark.parametrize(
    ("frame_type", "body"),
    [
        (FrameType.SUBMIT, b"{}"),
        # An answer to an answer could be answered for ever.
        (FrameType.SUBMIT, b'{"task_id":"../x","status":200}'),
        (FrameType.STATUS_UPDATE, b'{"task_id":"../x","status":"ACCEPTED"}'),
        (FrameType.SEND_RESULTS, b'{"task_id":"../x"}'),
    ],
)
def test_nothing_but_a_submission_is_answered_when_it_cannot_be_read(
    frame_type: int, body: bytes
) -> None:
    assert refusal_of(frame_type, body, "why") is None


def test_longest_file_fits_a_frame_with_the_longest_other_fields() -> None:
    results = Results(
        "a" * 64,
        result_type="file",
        filename="\0" * MAX_FILENAME,
        file_data=base64.b64encode(bytes(MAX_SENT_FILE)).decode(),
        error="<" * MAX_TEXT,
    )
    assert len(encode_message(results)) <= MAX_FRAME


def test_made_id_looks_like_the_official_one() -> None:
    task_id = format_task_id(bytes(range(16)))
    assert task_id == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert is_task_id(task_id)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("out.csv", "out.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a.txt", "a.txt"),
        ("nul\0in.txt", "in.txt"),
        ("..", "result"),
        ("a/", "result"),
        ("", "result"),
    ],
)
def test_file_name_loses_its_folders(name: str, kept: str) -> None:
    assert base_name(name) == kept


def test_file_name_is_cut_to_the_limit_between_characters() -> None:
    assert len(base_name("é" * 200).encode()) <= MAX_FILENAME
