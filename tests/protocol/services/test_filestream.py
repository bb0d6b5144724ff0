"""File streams: recorded bytes, the sender's window, the receiver's order."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.services.dataexchange import FrameDecoder
from pilotfleet.protocol.services.filestream import (
    CHUNK_SIZE,
    MAX_HELD,
    MAX_HELD_CHUNKS,
    WINDOW_CHUNKS,
    ZERO_TRANSFER,
    Abort,
    Ack,
    Chunk,
    Complete,
    Done,
    FileStreamMessage,
    Init,
    InitAck,
    MalformedMessage,
    Reassembly,
    SendWindow,
    decode_file_stream,
    encode_file_stream,
    transfer_id_of,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: list[dict[str, Any]] = [
    frame
    for frame in json.loads(VECTORS.read_text())["data_exchange"]["frames"]
    if frame["name"].startswith("filestream_")
]
DATA = b"some file\n"
SHA256 = hashlib.sha256(DATA).digest()
ID = transfer_id_of(SHA256)
MESSAGES: dict[str, FileStreamMessage] = {
    "filestream_init": Init(ID, 10, SHA256, CHUNK_SIZE, b"report.txt"),
    "filestream_chunk": Chunk(ID, 0, DATA),
    "filestream_ack": Ack(ID, 10),
    "filestream_done": Done(ID),
    "filestream_init_ack": InitAck(ID, 0),
    "filestream_complete_ok": Complete(ID, True),
    "filestream_complete_fail": Complete(ID, False, "no active transfer"),
    "filestream_abort": Abort(ID, "no active transfer (send INIT first)"),
}


@pytest.mark.parametrize("frame", RECORDED, ids=lambda frame: frame["name"])
def test_recorded_message(frame: dict[str, Any]) -> None:
    [(_, payload)] = FrameDecoder().feed(bytes.fromhex(frame["hex"]))
    message = MESSAGES[frame["name"]]
    assert decode_file_stream(payload) == message
    assert encode_file_stream(message) == payload


@pytest.mark.parametrize(
    ("payload", "text", "transfer"),
    [
        (b"\2" + ID[:5], "malformed stream frame", ZERO_TRANSFER),
        (b"\1" + ID + b"abc", "malformed INIT", ID),
        (b"\2" + ID + b"abc", "malformed CHUNK", ID),
        (b"\3" + ID, "malformed ACK", ID),
        (b"\5" + ID, "malformed INIT-ACK", ID),
        (b"\6" + ID, "malformed COMPLETE", ID),
    ],
)
def test_malformed_message(payload: bytes, text: str, transfer: bytes) -> None:
    with pytest.raises(MalformedMessage, match=f"^{text}$") as caught:
        decode_file_stream(payload)
    assert caught.value.transfer_id == transfer


@pytest.mark.parametrize("extra", [b"", b"xx"])
def test_init_whose_name_has_another_length_is_malformed(extra: bytes) -> None:
    raw = encode_file_stream(Init(ID, 10, SHA256, CHUNK_SIZE, b"n"))
    with pytest.raises(MalformedMessage):
        decode_file_stream(raw[: -1 if not extra else None] + extra)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode_file_stream(b"\x09" + ID)


def test_long_name_is_taken_but_not_sent() -> None:
    init = Init(ID, 10, SHA256, CHUNK_SIZE, b"n" * 256)
    with pytest.raises(InvalidArgument):
        encode_file_stream(init)
    short = encode_file_stream(Init(ID, 10, SHA256, CHUNK_SIZE, b"n"))
    assert decode_file_stream(short[:-3] + b"\1\0" + b"n" * 256) == init


@given(st.binary(max_size=90))
def test_arbitrary_payload_gives_a_value_or_our_error(payload: bytes) -> None:
    try:
        decode_file_stream(payload)
    except DecodeError:
        return


# Sender


def test_window_stops_after_sixteen_chunks() -> None:
    window = SendWindow(CHUNK_SIZE * 40)
    sent = list(iter(window.next_chunk, None))
    assert sent == [(n * CHUNK_SIZE, CHUNK_SIZE) for n in range(WINDOW_CHUNKS)]
    window.acknowledge(CHUNK_SIZE)
    assert window.next_chunk() == (WINDOW_CHUNKS * CHUNK_SIZE, CHUNK_SIZE)
    assert window.next_chunk() is None
    assert not window.is_sent


def test_window_begins_where_the_receiver_is() -> None:
    window = SendWindow(100, resume=40)
    assert window.next_chunk() == (40, 60)
    assert window.is_sent
    assert SendWindow(100, resume=1000).is_sent


def test_window_of_an_empty_file_has_no_chunk() -> None:
    window = SendWindow(0)
    assert window.is_sent
    assert window.next_chunk() is None


def test_old_ack_changes_nothing_and_an_impossible_one_is_refused() -> None:
    window = SendWindow(CHUNK_SIZE * 2)
    window.next_chunk()
    window.acknowledge(CHUNK_SIZE)
    window.acknowledge(0)
    assert window.acknowledged == CHUNK_SIZE
    with pytest.raises(DecodeError):
        window.acknowledge(CHUNK_SIZE + 1)


@given(st.integers(min_value=0, max_value=CHUNK_SIZE * 20), st.data())
def test_window_covers_the_file_once(size: int, data: st.DataObject) -> None:
    resume = data.draw(st.integers(min_value=0, max_value=size))
    window = SendWindow(size, resume=resume)
    position = resume
    while not window.is_sent:
        chunk = window.next_chunk()
        if chunk is None:
            window.acknowledge(position)
            continue
        assert chunk[0] == position
        position += chunk[1]
    assert position == size


# Receiver


def test_chunk_beyond_a_gap_waits_for_the_gap() -> None:
    reassembly = Reassembly(10)
    assert reassembly.add(4, b"efgh") == []
    assert (reassembly.count, reassembly.held_bytes) == (0, 4)
    assert b"".join(reassembly.add(0, b"abcd")) == b"abcdefgh"
    assert (reassembly.count, reassembly.held_bytes) == (8, 0)


def test_known_chunk_changes_nothing() -> None:
    reassembly = Reassembly(10, start=5)
    assert reassembly.add(0, b"abcde") == []
    assert reassembly.add(3, b"deXY") == [b"XY"]
    assert reassembly.count == 7


def test_chunk_beyond_the_file_is_refused() -> None:
    reassembly = Reassembly(100)
    with pytest.raises(
        InvalidArgument, match=r"^chunk at 90 of 20 bytes exceeds declared size 100$"
    ):
        reassembly.add(90, b"y" * 20)
    assert reassembly.count == 0


def test_held_bytes_have_a_bound() -> None:
    reassembly = Reassembly(10 * MAX_HELD)
    for offset in range(1, 10 * MAX_HELD - CHUNK_SIZE, CHUNK_SIZE):
        reassembly.add(offset, bytes(CHUNK_SIZE))
    assert reassembly.held_bytes == MAX_HELD
    reassembly.discard()
    assert reassembly.held_bytes == 0


def test_held_chunks_have_a_bound() -> None:
    reassembly = Reassembly(MAX_HELD)
    for offset in range(1, 2 * MAX_HELD_CHUNKS):
        reassembly.add(offset, b"x")
    assert reassembly.held_bytes == MAX_HELD_CHUNKS
    # A longer copy of one that is held takes its place.
    reassembly.add(1, b"xyz")
    assert reassembly.held_bytes == MAX_HELD_CHUNKS + 2


@given(st.binary(max_size=60), st.data())
def test_file_arrives_in_any_order(file: bytes, data: st.DataObject) -> None:
    cut = st.integers(min_value=0, max_value=len(file))
    bounds = data.draw(st.lists(st.tuples(cut, cut), max_size=12))
    pieces = [(min(a, b), max(a, b)) for a, b in bounds]
    reassembly = Reassembly(len(file))
    written = b""
    for start, end in [*pieces, (0, len(file))]:
        written += b"".join(reassembly.add(start, file[start:end]))
        assert reassembly.count == len(written)
    assert written == file
    assert reassembly.is_complete
    assert reassembly.held_bytes == 0
