"""Payloads of binary mode."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry import binary
from pilotfleet.protocol.registry.binary import BinaryType
from pilotfleet.protocol.registry.framing import (
    BinaryFrameDecoder,
    encode_binary_frame,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "registry.json").read_bytes()
)
BINARY = VECTORS["computed"]["binary"]
KEY_A = Identity(bytes.fromhex(VECTORS["computed"]["key_a"]["seed"]))
LOOKUP = BINARY["lookup_reply"]
RESOLVE = BINARY["resolve_reply"]

CASES: list[tuple[str, BinaryType, Any]] = [
    (
        "heartbeat_request",
        BinaryType.HEARTBEAT,
        binary.HeartbeatRequest(1, KEY_A.sign(b"heartbeat:1")),
    ),
    (
        "heartbeat_reply",
        BinaryType.HEARTBEAT_OK,
        binary.HeartbeatReply(BINARY["heartbeat_reply"]["time"]),
    ),
    (
        "heartbeat_reply_warning",
        BinaryType.HEARTBEAT_OK,
        binary.HeartbeatReply(BINARY["heartbeat_reply"]["time"], True),
    ),
    ("lookup_request", BinaryType.LOOKUP, binary.LookupRequest(1)),
    (
        "lookup_reply",
        BinaryType.LOOKUP_OK,
        binary.LookupReply(
            node_id=LOOKUP["node_id"],
            public=LOOKUP["public"],
            task_exec=LOOKUP["task_exec"],
            networks=tuple(LOOKUP["networks"]),
            public_key=base64.b64decode(LOOKUP["public_key"]),
            hostname=LOOKUP["hostname"],
            tags=tuple(LOOKUP["tags"]),
            real_addr=LOOKUP["real_addr"],
        ),
    ),
    (
        "resolve_request",
        BinaryType.RESOLVE,
        binary.ResolveRequest(2, 1, KEY_A.sign(b"resolve:1:2")),
    ),
    (
        "resolve_reply",
        BinaryType.RESOLVE_OK,
        binary.ResolveReply(2, RESOLVE["real_addr"], tuple(RESOLVE["lan_addrs"]), 3),
    ),
    (
        "resolve_reply_unknown_age",
        BinaryType.RESOLVE_OK,
        binary.ResolveReply(2, RESOLVE["real_addr"]),
    ),
]


@pytest.mark.parametrize(("name", "kind", "value"), CASES, ids=[c[0] for c in CASES])
def test_recorded_frames_are_met_and_read(
    name: str, kind: BinaryType, value: Any
) -> None:
    frame = bytes.fromhex(BINARY[name]["frame"])
    assert encode_binary_frame(kind, value.encode()) == frame
    assert BinaryFrameDecoder().feed(frame) == [(kind, value.encode())]
    assert type(value).decode(value.encode()) == value
    # More than is needed is accepted in requests and replies alike.
    assert type(value).decode(value.encode() + b"more") == value


def test_recorded_error_is_met_and_read() -> None:
    payload = binary.encode_error(BINARY["error"]["text"])
    frame = encode_binary_frame(BinaryType.ERROR, payload)
    assert frame.hex() == BINARY["error"]["frame"]
    assert binary.decode_error(payload) == BINARY["error"]["text"]


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        (binary.HeartbeatRequest.decode, "heartbeat request too short: 3 bytes"),
        (binary.LookupRequest.decode, "lookup request too short: 3 bytes"),
        (binary.ResolveRequest.decode, "resolve request too short: 3 bytes"),
    ],
)
def test_short_requests_are_refused_with_the_specified_text(
    decode: Any, error: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(bytes(3))
    assert str(caught.value) == error


def test_long_lists_and_errors_are_refused() -> None:
    with pytest.raises(DecodeError, match="list of 1025 entries"):
        binary.ResolveReply.decode(bytes(6) + b"\x04\x01" + bytes(3000))
    with pytest.raises(DecodeError, match="error text of 65001 bytes"):
        binary.decode_error(b"\xfd\xe9" + bytes(65_001))


def test_texts_that_are_not_utf8_are_refused() -> None:
    payload = binary.ResolveReply(1, "aa").encode().replace(b"aa", b"\xff\xff")
    with pytest.raises(DecodeError, match="field is not UTF-8"):
        binary.ResolveReply.decode(payload)


def test_long_texts_are_cut_or_refused() -> None:
    payload = binary.encode_error("é" * 40_000)
    assert len(payload) == 2 + binary.MAX_ERROR_TEXT
    assert binary.decode_error(payload).startswith("éé")
    with pytest.raises(InvalidArgument):
        binary.ResolveReply(1, "x" * 70_000).encode()
    with pytest.raises(InvalidArgument):
        binary.LookupReply(1, True, True, (), b"", "x" * 256, (), "").encode()


@given(st.binary(max_size=120))
def test_random_payloads_give_a_value_or_a_decode_error(data: bytes) -> None:
    for _, _, value in CASES:
        with contextlib.suppress(DecodeError):
            type(value).decode(data)
    with contextlib.suppress(DecodeError):
        binary.decode_error(data)
